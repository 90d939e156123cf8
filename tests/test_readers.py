"""Readers: every format, compressed or not, and what is broken in it becomes a fault."""

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data import articles, jats, mediawiki, readers
from data.record import Fault, Record

COMPRESS = {
  "": lambda data: data,
  ".gz": gzip.compress,
  ".bz2": bz2.compress,
  ".xz": lzma.compress,
  ".zst": zstandard.ZstdCompressor().compress,
}


def corpus(pattern):
  root = os.environ.get("STRAITS_TEST_DATA")
  if not root:
    pytest.skip("STRAITS_TEST_DATA names no folder of test data")
  return readers.files(str(Path(root) / "corpus" / pattern))


def read(path, format=None, **options):
  """The records of a file, and its faults as (offset, reason)."""
  items = list(readers.read(str(path), format, "s", **options))
  assert all(item.path == str(path) for item in items)
  records = [item for item in items if isinstance(item, Record)]
  return records, [(item.offset, item.reason) for item in items if isinstance(item, Fault)]


def texts(path, format=None, **options):
  records, faults = read(path, format, **options)
  assert not faults
  return [record.text for record in records]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_jsonl_lines_are_documents_and_broken_lines_are_not(tmp_path, suffix, monkeypatch):
  monkeypatch.setattr(readers, "MAX_BYTES", 1000)
  lines = [
    b'{"text": "first", "url": "u", "n": 3, "meta": {"id": "x"}, "list": [1]}',
    b'{"text": "broken',
    b'{"text": "\xff"}',
    b'{"no": "text"}',
    b"[1, 2]",
    b'{"text": "\\ud800"}',
    b'{"text": "' + b"x" * 2000 + b'"}',
    b"",
    b'{"text": "  "}',
    b"[" * 900,
    '{"text": "häuser €"}'.encode(),
  ]
  path = tmp_path / f"a.jsonl{suffix}"
  path.write_bytes(COMPRESS[suffix](b"\n".join(lines)))
  starts = [sum(len(line) + 1 for line in lines[:i]) for i in range(len(lines))]
  records, faults = read(path)
  assert [(r.text, r.offset, r.meta) for r in records] == [
    ("first", 0, {"url": "u", "n": "3", "id": "x"}),
    ("häuser €", starts[10], {}),
  ]
  assert faults == [
    (starts[1], "invalid_json"),
    (starts[2], "invalid_utf8"),
    (starts[3], "no_text_field"),
    (starts[4], "no_text_field"),
    (starts[5], "invalid_unicode"),
    (starts[6], "line_too_long"),
    (starts[8], "no_text"),
    (starts[9], "invalid_json"),
  ]


@pytest.mark.parametrize("suffix", [s for s in COMPRESS if s])
def test_a_compressed_file_may_have_many_members_and_none_cut_short(tmp_path, suffix):
  lines = [json.dumps({"text": f"document {i} " * 50}) + "\n" for i in range(400)]
  halves = ["".join(lines[:200]).encode(), "".join(lines[200:]).encode()]
  payload = b"\0" * 512 + b"".join(COMPRESS[suffix](half) + b"\0" * 512 for half in halves)
  path = tmp_path / f"a.jsonl{suffix}"
  path.write_bytes(payload)
  whole = texts(path)
  assert whole == [json.loads(line)["text"] for line in lines]
  cut = len(payload) - 512 - 20
  path.write_bytes(payload[:cut])
  records, [(offset, reason)] = read(path)
  assert reason == "truncated_compression" and len(records) >= 200
  assert [r.text for r in records] == whole[: len(records)]
  assert offset == sum(map(len, lines[: len(records)]))
  path.write_bytes(payload[:600] + b"garbage" * 9 + payload[700:])
  records, [(_, reason)] = read(path)
  assert reason in ("broken_compression", "truncated_compression")
  assert [r.text for r in records] == whole[: len(records)]


def test_a_file_without_documents_is_counted(tmp_path):
  for name in ("a.jsonl", "a.txt", "a.warc", "a.warc.gz", "a.xml", "a.tex", "a.html", "a.txt.zst"):
    (tmp_path / name).write_bytes(b"")
    assert read(tmp_path / name) == ([], [(0, "no_documents")])
  (tmp_path / "a.parquet").write_bytes(b"")
  assert read(tmp_path / "a.parquet") == ([], [(0, "invalid_parquet")])


def test_plain_text(tmp_path):
  path = tmp_path / "a.txt"
  path.write_bytes("\ufeffOne ü\r\nTwo\n".encode())
  assert texts(path) == ["One ü\nTwo"]
  assert texts(path, "lines") == ["One ü", "Two"]
  path.write_bytes(b"good\nb\xe4d\n\ngood")
  assert read(path) == ([], [(0, "invalid_utf8")])
  records, faults = read(path, "lines")
  assert [(r.offset, r.text) for r in records] == [(0, "good"), (10, "good")]
  assert faults == [(5, "invalid_utf8")]


def test_one_document_is_bounded(tmp_path, monkeypatch):
  path = tmp_path / "a.txt.gz"
  path.write_bytes(gzip.compress(b"x" * 10**7))
  monkeypatch.setattr(readers, "MAX_BYTES", 10**6)
  assert read(path) == ([], [(0, "too_large")])


def test_parquet(tmp_path):
  path = tmp_path / "a.parquet"
  rows = [{"body": f"text {i}", "url": f"u{i}", "n": i, "x": [1]} for i in range(1000)]
  rows[7]["body"], rows[8]["body"] = None, " "
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=100)
  records, faults = read(path, key="body")
  assert faults == [(7, "no_text_field"), (8, "no_text")]
  assert len(records) == 998
  assert (records[7].offset, records[7].text) == (9, "text 9")
  assert records[7].meta == {"url": "u9", "n": "9"}
  assert {reason for _, reason in read(path)[1]} == {"no_text_field"}
  whole = path.read_bytes()
  for broken in (whole[:-100], b"x" * 100, whole[:20] + b"\0" * 200 + whole[220:]):
    path.write_bytes(broken)
    assert read(path, key="body")[1][-1][1] == "invalid_parquet"


def test_rows_of_a_table_may_hold_other_formats(tmp_path):
  path = tmp_path / "a.jsonl"
  rows = ["<title>T</title><p>Some text that one reads.</p>", "<p></p>", "<div>" * 10**4 + "x"]
  path.write_text("".join(json.dumps({"html": row, "url": "u"}) + "\n" for row in rows))
  records, faults = read(path, "html", key="html")
  assert [(r.text, r.meta) for r in records] == [
    ("Some text that one reads.", {"title": "T", "url": "u"})
  ]
  assert [reason for _, reason in faults] == ["no_text", "invalid_html"]


def test_files_by_path_glob_and_url(tmp_path):
  for name in ("b.txt", "a.txt", "c[1].txt"):
    (tmp_path / name).write_text(name)
  assert readers.files(str(tmp_path / "*.txt")) == sorted(map(str, tmp_path.iterdir()))
  assert readers.files(str(tmp_path / "c[1].txt")) == [str(tmp_path / "c[1].txt")]
  with fsspec.open("memory://readers/x.jsonl.gz", "wb") as file:
    file.write(gzip.compress(b'{"text": "far"}\n'))
  [path] = readers.files("memory://readers/*.gz")
  assert texts(path) == ["far"]
  with pytest.raises(ValueError, match="matches no file"):
    readers.files(str(tmp_path / "none*"))
  with pytest.raises(ValueError, match="cannot be opened"):
    readers.files("nosuch://a/b")
  with pytest.raises(ValueError, match="format='pdf'"):
    read(tmp_path / "a.txt", "pdf")
  (tmp_path / os.fsdecode(b"\xff.txt")).write_text("x")
  with pytest.raises(ValueError, match=r"udcff\.txt' is no UTF-8"):
    readers.files(str(tmp_path / "*.txt"))
  with pytest.raises(FileNotFoundError):
    read(tmp_path / "none.txt")


def test_latex_in_files_and_rows(tmp_path):
  source = r"\section{One} Some $x$~\cite{a}."
  (tmp_path / "a.tex").write_text(source)
  (tmp_path / "a.jsonl").write_text(json.dumps({"text": source}) + "\n")
  assert texts(tmp_path / "a.tex") == ["One\n\nSome $x$."]
  assert texts(tmp_path / "a.jsonl", "latex") == ["One\n\nSome $x$."]
  (tmp_path / "a.tex").write_text(r"\newcommand{\a}{\a}\a")
  assert read(tmp_path / "a.tex") == ([], [(0, "endless_macro")])


def test_articles(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text(
    ' \n lost words \n = One = \n \n A role @-@ playing game , the " best " ( of 2 @,@ 000 ) . \n'
    " \n = = Part = = \n \n It 's the players ' . \n \n = Two = \n \n = = Empty = = \n = Three = \n"
  )
  records, faults = read(path, "articles")
  assert [(r.text, r.meta) for r in records] == [
    ("lost words", {}),
    (
      "A role-playing game, the \"best\" (of 2,000).\n\nPart\n\nIt's the players'.",
      {"title": "One"},
    ),
    ("Empty", {"title": "Two"}),
  ]
  assert records[1].offset == path.read_text().index(" = One")
  assert faults == [(path.read_text().index(" = Three"), "no_text")]
  assert articles.joined('He said " a " and " b " .') == 'He said "a" and "b".'


PAGE = """  <page>
    <title>{title}</title><ns>{ns}</ns><id>{id}</id>{more}
    <revision><model>wikitext</model><text xml:space="preserve">{text}</text></revision>
  </page>
"""
WIKITEXT = """{{Infobox|a={{b|c}}}}[[File:A.jpg|thumb|Statue of [[B]]]]
'''Alfred''' ({{lang|ang|Ælfred}}; {{x}}) was [[X|king]] of [[land]]s.&lt;ref&gt;a&lt;/ref&gt;
It is {{convert|5|km|mi}} to ''it'', &amp;lt; 6&amp;nbsp;km.&lt;!-- hidden --&gt;
== Life ==
* First [https://example.com link]
{| class="wikitable"
| cell
|}
Here &lt;math&gt;x^2&lt;/math&gt; holds.
=== Deep ===
Kept.
== References ==
{{reflist}} dropped
=== Sub ===
dropped
== Legacy ==
Kept again. __NOTOC__
[[Category:Kings]][[fr:Alfred]]"""


def page(id, text="Some words.", ns=0, more=""):
  return PAGE.format(title=f"T{id}", ns=ns, id=id, more=more, text=text)


def test_mediawiki_dump(tmp_path):
  pages = [
    page(1, WIKITEXT),
    page(2, ns=1),
    page(3, more='<redirect title="T1" />'),
    page(4, "#REDIRECT [[T1]]"),
    page(5, "{{only a template}}"),
    page(6).replace("</title>", ""),
    page(7, "[[" * 10**4),
    page(8).replace("</page>", ""),
    page(9, "Last words &amp;&lt;page&gt;"),
    page(10)[:100],
  ]
  dump = '<mediawiki xml:lang="en">\n<siteinfo></siteinfo>\n' + "".join(pages)
  path = tmp_path / "dump.xml.bz2"
  path.write_bytes(bz2.compress(dump.encode()))
  records, faults = read(path)
  assert [r.meta for r in records] == [{"title": f"T{i}", "id": str(i)} for i in (1, 9)]
  assert records[0].text.splitlines() == [
    "Alfred (Ælfred) was king of lands.",
    "It is 5 km to it, < 6 km.",
    "Life",
    "First link",
    "Here $x^2$ holds.",
    "Deep",
    "Kept.",
    "Legacy",
    "Kept again.",
  ]
  assert records[1].text == "Last words &<page>"
  raw = dump.encode()
  starts = [raw.index(f"<title>T{i}<".encode()) - len("<page>\n    ") for i in range(1, 11)]
  assert [r.offset for r in records] == [starts[0], starts[8]]
  reasons = ["other_namespace", "redirect", "redirect", "no_text", "broken_page"]
  reasons += ["broken_wikitext", "broken_page", "truncated_file"]
  assert faults == list(zip([*starts[1:8], starts[9]], reasons, strict=True))


def test_what_is_never_closed_costs_no_time():
  for markup in ("<ref>", "{|\n", "[http://a ", "{{a|", "[[a|", "<!--"):
    with pytest.raises(ValueError, match="never closed"):
      mediawiki.plain(markup * 20_000)
  with pytest.raises(ValueError, match="never closed"):  # closed before, which is not at all
    mediawiki.plain("|}\n" * 20_000 + "{|\n" * 20_000)


ARTICLE = b"""<?xml version="1.0"?>
<!DOCTYPE article SYSTEM "http://127.0.0.1:1/x.dtd" [
  <!ENTITY lol "lol"><!ENTITY bomb "&lol;&lol;&lol;"><!ENTITY file SYSTEM "file:///etc/passwd">
]>
<article article-type="research-article">
<front><journal-meta><journal-title>J</journal-title></journal-meta><article-meta>
  <article-id pub-id-type="doi">10.1/x</article-id>
  <title-group><article-title>On <italic>C. elegans</italic></article-title></title-group>
  <abstract><p>We show it.</p></abstract>
  <abstract abstract-type="toc"><p>not this</p></abstract>
</article-meta></front>
<body><sec><label>1</label><title>Start</title>
  <p>Known [<xref ref-type="bibr">1</xref>,<xref ref-type="bibr">2</xref>], from light<sup><xref
  ref-type="bibr">3</xref>,<xref ref-type="bibr">4</xref></sup>. See <xref ref-type="fig">Figure
  1</xref>.<!-- not this --></p>
  <p>&bomb;&file;Here <inline-formula><alternatives><tex-math>\\documentclass{a}
  \\begin{document}$x^2$\\end{document}</tex-math><mml:math xmlns:mml="m"><mml:mi>x</mml:mi>
  </mml:math>  </alternatives></inline-formula> holds.</p>
  <fig><label>Figure 1</label><caption><p>not this</p></caption></fig>
  <table-wrap><table><tr><td>not this</td></tr></table></table-wrap></sec></body>
<back><ref-list><ref>not this</ref></ref-list></back></article>"""


def test_jats(tmp_path):
  text, meta = jats.article(ARTICLE)
  assert text.split("\n\n") == [
    "On C. elegans",
    "We show it.",
    "Start",
    "Known, from light. See Figure 1.",
    "Here $x^2$ holds.",
  ]
  assert meta == {
    "title": "On C. elegans", "doi": "10.1/x", "journal": "J", "type": "research-article"
  }  # fmt: skip
  path = tmp_path / "a.nxml.gz"
  for payload, reason in (
    (ARTICLE[:-30], "invalid_xml"),
    (b"<a>text</a>", "no_article"),
    (b"<article>" * 300, "invalid_xml"),
    (b"<article><front/></article>", "no_text"),
    (b"\x00\x01", "invalid_xml"),
  ):
    path.write_bytes(gzip.compress(payload))
    assert read(path) == ([], [(0, reason)])


def test_real_text_of_every_kind():
  [path] = corpus("wikipedia/wikitext2_valid.txt")
  records, faults = read(path, "articles")
  assert len(records) == 60 and not faults
  assert records[0].meta["title"] == "Homarus gammarus"
  assert records[0].text.startswith("Homarus gammarus, known as the European lobster or common")
  assert not any(word in r.text for r in records for word in ("@-@", "@,@", " = =", " , "))
  [path] = corpus("web/c4_minimal.jsonl")
  assert len(texts(path)) == 1200
  for path in corpus("books/*"):
    assert len(texts(path, "text")[0]) > 60_000
  articles_read = [read(path) for path in corpus("academic/plos_jats/*.xml")]
  assert len(articles_read) == 81 and not any(faults for _, faults in articles_read)
  [[first], _] = articles_read[0]
  assert first.meta["title"].startswith("EGF Signal Propagation")
  assert first.text.count("\n\n") > 20 and "[1" not in first.text
  pages = corpus("html_gold/html/*.gz")
  assert all(len(texts(path)) == 1 for path in pages[:20])

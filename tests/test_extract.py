"""The main text of web pages: encodings, boilerplate, hostile pages, and the score on gold ones."""

import gzip
import json
import os
import time
from pathlib import Path

import pytest

from data import extract
from docs.benchmarks import extraction

PARAGRAPH = "Here is a paragraph of an article with enough words to be taken for one. " * 3


@pytest.mark.parametrize(
  ("payload", "charset", "text"),
  [
    ("größer".encode(), None, "größer"),
    ("größer".encode("cp1252"), "iso-8859-1", "größer"),
    pytest.param("größer".encode(), "iso-8859-15", "größer", id="utf-8-called-latin"),
    ("größer €".encode("iso-8859-15"), "iso-8859-15", "größer €"),
    (
      '<meta charset="iso-2022-jp">日本'.encode("iso-2022-jp"),
      None,
      '<meta charset="iso-2022-jp">日本',
    ),
    ("größer".encode(), "us-ascii-nonsense", "größer"),
    ('<meta charset="euc-jp">日本'.encode("euc-jp"), None, '<meta charset="euc-jp">日本'),
    ('<meta charset="utf-16">ü'.encode(), None, '<meta charset="utf-16">ü'),
    ('<meta charset="ascii">日本語'.encode(), "shift_jis", '<meta charset="ascii">日本語'),
    ("\ufeffü".encode(), "ascii", "ü"),
    ("ü".encode("utf-16"), None, "ü"),
    ("Привет, как дела? Это русский текст.".encode("cp1251"), None, None),
    (b"abc \x81\x8d \xff", "utf-8", None),
  ],
)
def test_decode(payload, charset, text):
  decoded = extract.decode(payload, charset)
  assert text is None or decoded == text
  decoded.encode()
  if b"\xcf\xf0" in payload:
    assert decoded.startswith("Привет")


def test_what_surrounds_the_text_is_left_out():
  page = extract.extract(
    f"""<html><head><title> The  title </title><style>p {{}}</style></head><body>
    <header><h1>Headline</h1></header><nav><a href=a>Home</a></nav>
    <article><p>{PARAGRAPH}</p><figure><figcaption>A caption</figcaption></figure>
    <p>Advertisement</p><p>Related: another article</p><p>Photo: A. Nonymous</p>
    <p>© 2020 The Paper</p><p>Share on Facebook</p><h2>Part two</h2><p>{PARAGRAPH}</p>
    <p>More is said about the share of it in the source of this: advertisement.</p>
    <ol><li>An item</li></ol></article><footer>Imprint</footer><script>x()</script></body></html>"""
  )
  assert page.title == "The title"
  paragraph = PARAGRAPH.strip()
  more = "More is said about the share of it in the source of this: advertisement."
  lines = [line for line in page.text.splitlines() if line]
  assert lines == [paragraph, "Part two", paragraph, more, "An item"]


def test_the_second_extractor_is_asked_where_little_was_found(monkeypatch):
  page = f"<body><header>{'<p>' + PARAGRAPH + '</p>' * 5}</header><p>Few words</p></body>"
  monkeypatch.setattr(extract, "_second", lambda html: "the second's answer")
  assert extract.extract(page).text == "the second's answer"
  assert extract.extract("<p>Few words</p>").text == "Few words"
  assert extract.extract(f"<p>{PARAGRAPH}</p>").text == PARAGRAPH.strip()


def test_hostile_pages_cost_no_time():
  started = time.process_time()
  for page in ("<div>" * 10**5, "<div>" * 10**5 + "x" + "</div>" * 10**5):
    with pytest.raises(ValueError, match="nested more than 256 deep"):
      extract.extract(page)
  for page in ("", "a\0b", "<" * 10**5, "<p " + "a=b " * 10**5, "<table>" * 10**4, "&amp;" * 10**5):
    extract.extract(page)
  extract.extract("<p>" + "advert " * 10 + "\n<p>" + "1 " * 79)
  assert time.process_time() - started < 10


def test_score_is_that_of_the_benchmark():
  assert extraction.score([("a b c d e", "a b c d e")]) == (1.0, 1.0, 1.0)
  # Shingles abcd, bcde against abcd: one of two is right.
  f1, precision, recall = extraction.score([("a b c d", "a b c d e")])
  assert (precision, recall) == (0.5, 1.0) and f1 == pytest.approx(2 / 3)
  # A page without a prediction counts in recall only.
  assert extraction.score([("a b c d", ""), ("a b", "a, b!")])[1:] == (1.0, 0.5)


def test_gold_pages():
  root = os.environ.get("STRAITS_TEST_DATA")
  if not root:
    pytest.skip("STRAITS_TEST_DATA names no folder of test data")
  gold = Path(root) / "corpus" / "html_gold"
  truth = json.loads((gold / "ground-truth.json").read_text(encoding="utf-8"))
  pairs = []
  for name in sorted(truth):
    html = extract.decode(gzip.decompress((gold / "html" / f"{name}.html.gz").read_bytes()))
    pairs.append((truth[name]["articleBody"], extract.extract(html).text))
  assert len(pairs) >= 100
  for part in (pairs, pairs[::2], pairs[1::2]):
    assert extraction.score(part)[0] >= 0.94

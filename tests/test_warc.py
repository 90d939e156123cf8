"""WARC and WET: pages and texts, and a broken record that costs no other."""

import gzip
import os
import random
import zlib
from collections import Counter
from pathlib import Path

import pytest

from data import readers, warc
from data.record import Fault, Record


def record(name, body, http="Content-Type: text/html; charset=utf-8", status=200, kind="response"):
  payload = f"HTTP/1.1 {status} X\r\n{http}\r\n\r\n".encode() + body if http else body
  header = (
    f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://a/{name}\r\n"
    f"WARC-Record-ID: <urn:uuid:{name}>\r\nWARC-Date: 2020-01-01T00:00:00Z\r\n"
    f"Content-Type: {'application/http' if http else 'text/plain'}\r\n"
    f"Content-Length: {len(payload)}\r\n\r\n"
  )
  return header.encode() + payload + b"\r\n\r\n"


def html(name):
  return f"<title>T{name}</title><p>{f'Page {name} has some words. ' * 5}</p>".encode()


def text(name):
  return (f"Page {name} has some words. " * 5).strip()


def write(path, records):
  compress = gzip.compress if str(path).endswith(".gz") else bytes
  parts = [compress(r) for r in records]
  path.write_bytes(b"".join(parts))
  return [sum(map(len, parts[:i])) for i in range(len(parts) + 1)]


def read(path, format=None):
  items = list(readers.read(str(path), format, "s"))
  records = [item for item in items if isinstance(item, Record)]
  return records, [(item.offset, item.reason) for item in items if isinstance(item, Fault)]


def names(records):
  return [r.meta["record"].removeprefix("urn:uuid:") for r in records]


@pytest.mark.parametrize("suffix", ["warc", "warc.gz"])
def test_pages_and_what_is_none(tmp_path, suffix, monkeypatch):
  monkeypatch.setattr(warc, "_MAX_PAGE_BYTES", 10**5)
  page, kind = html("z"), "Content-Type: text/html\r\n"
  deflate = zlib.compressobj(wbits=-15)
  chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(page), page)
  records = [
    record("info", b"software: x", http="", kind="warcinfo"),
    record("request", b"", http="Host: a", kind="request"),
    record("a", html("a")),
    record("image", b"\x89PNG", http="Content-Type: image/png"),
    record("gone", html("b"), status=404),
    record("gzip", gzip.compress(page), http=f"{kind}Content-Encoding: gzip"),
    record("zlib", zlib.compress(page), http=f"{kind}Content-Encoding: deflate"),
    record(
      "raw", deflate.compress(page) + deflate.flush(), http=f"{kind}Content-Encoding: deflate"
    ),
    record("plain", page, http=f"{kind}Content-Encoding: gzip"),
    record("chunks", chunked, http=f"{kind}Transfer-Encoding: chunked"),
    record("no-chunks", page, http=f"{kind}Transfer-Encoding: chunked"),
    record("bad-gzip", gzip.compress(page)[:20] + b"x" * 90, http=f"{kind}Content-Encoding: gzip"),
    record("bomb", gzip.compress(b"x" * 10**7), http=f"{kind}Content-Encoding: gzip"),
    record("big", b"x" * 10**6),
    record("text", b"caf\xe9", http="Content-Type: text/plain; charset=latin-1"),
    record("empty", b"<p></p>"),
    record("no-http", b"junk", kind="response", http="").replace(
      b"text/plain", b"application/http"
    ),
    record(
      "last", "<p>größer als alles andere</p>".encode("cp1252"), http="Content-Type: text/html"
    ),
  ]
  path = tmp_path / f"a.{suffix}"
  starts = write(path, records)
  found, faults = read(path)
  pages = ("a", "gzip", "zlib", "raw", "plain", "chunks", "no-chunks", "text", "last")
  assert names(found) == list(pages)
  assert found[0] == Record(
    text("a"), "s", str(path), starts[2],
    {"url": "http://a/a", "date": "2020-01-01T00:00:00Z", "record": "urn:uuid:a", "title": "Ta"},
  )  # fmt: skip
  assert [r.text for r in found[1:]] == [text("z")] * 6 + ["café", "größer als alles andere"]
  reasons = {3: "content_type", 4: "http_status", 11: "broken_encoding", 12: "broken_encoding"}
  reasons |= {13: "too_large", 15: "no_text", 16: "broken_http"}
  assert faults == [(starts[i], reason) for i, reason in reasons.items()]


def test_wet(tmp_path):
  path = tmp_path / "a.warc.wet.gz"
  write(
    path,
    [
      record("info", b"x", http="", kind="warcinfo"),
      *(record(n, f"Text {n} ü\n".encode(), http="", kind="conversion") for n in "ab"),
      record("page", html("page")),
    ],
  )
  found, faults = read(path)
  assert [r.text for r in found] == ["Text a ü", "Text b ü"] and not faults


@pytest.mark.parametrize("suffix", ["warc", "warc.gz"])
def test_cut_anywhere_loses_only_what_is_cut(tmp_path, suffix):
  path = tmp_path / f"a.{suffix}"
  starts = write(path, [record(n, html(n)) for n in "abc"])
  whole = path.read_bytes()
  for cut in range(1, len(whole), 7):
    path.write_bytes(whole[:cut])
    found, faults = read(path)
    complete = sum(start <= cut for start in starts[1:])
    assert names(found)[:complete] == list("abc")[:complete], cut
    assert all(r.text == text(n) for r, n in zip(found, "abc", strict=False))
    # The ends of lines, or a gzip member's checksum, may go unnoticed.
    assert len(faults) == (len(found) == complete and cut not in starts), (cut, faults)


@pytest.mark.parametrize("suffix", ["warc", "warc.gz"])
def test_a_broken_record_costs_no_other(tmp_path, suffix):
  path = tmp_path / f"a.{suffix}"
  starts = write(path, [record(n, html(n)) for n in "abcd"])
  whole = path.read_bytes()
  rng = random.Random(0)
  lost = 0
  for _ in range(150):
    at, value = rng.randrange(starts[1], starts[2]), rng.randrange(256)
    path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
    found, faults = read(path)
    others = (
      [n for n in names(found) if n in "acd"] if all("record" in r.meta for r in found) else []
    )
    assert others in (list("acd"), []), (at, value)
    assert [r.text for r in found if r.text in map(text, "acd")] == list(map(text, "acd"))
    lost += bool(faults)
    assert len(faults) <= 2
  assert lost > 20
  for junk in (b"junk\r\n" * 20, b"\0" * 100, rng.randbytes(3000)):
    path.write_bytes(whole[: starts[1]] + junk + whole[starts[1] :])
    found, faults = read(path)
    assert names(found) == list("abcd") and faults == [(0, "broken_record")]
  path.write_bytes(b"no archive at all" * 100)
  assert read(path) == ([], [(0, "not_warc")])


# {file: (documents, faults by reason)} of real archives, many of them broken on purpose.
SAMPLES = {
  "sample-0000.warc.gz": (22, {}),
  "warc_samples/resiliparse/block-sized-records.warc.gz": (0, {"no_documents": 1}),
  "warc_samples/resiliparse/clipped.warc.gz": (0, {"truncated_record": 1}),
  "warc_samples/resiliparse/clueweb-quirk.warc.gz": (29, {}),
  "warc_samples/resiliparse/warcfile.warc": (16, {}),
  "warc_samples/resiliparse/warcfile.warc.gz": (16, {}),
  "warc_samples/resiliparse/warcfile.warc.lz4": (16, {}),
  "warc_samples/warcio/bad.arc": (0, {"not_warc": 1}),
  "warc_samples/warcio/example-bad-non-chunked.warc.gz": (1, {}),
  "warc_samples/warcio/example-bad.warc.gz.bad": (1, {"http_status": 1}),
  "warc_samples/warcio/example-iana.org-chunked.warc": (1, {}),
  "warc_samples/warcio/example-resource.warc.gz": (1, {}),
  "warc_samples/warcio/example-trunc.warc": (1, {"broken_record": 1}),
  "warc_samples/warcio/example-wget-bad-target-uri.warc.gz": (1, {}),
  "warc_samples/warcio/example-wrong-chunks.warc.gz": (1, {}),
  "warc_samples/warcio/post-test.warc.gz": (0, {"content_type": 3}),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_real_archives(name):
  root = os.environ.get("STRAITS_TEST_DATA")
  if not root:
    pytest.skip("STRAITS_TEST_DATA names no folder of test data")
  found, faults = read(Path(root) / "corpus/commoncrawl" / name, "warc")
  assert (len(found), Counter(reason for _, reason in faults)) == SAMPLES[name]
  assert all(len(r.text) > 20 and "<html" not in r.text for r in found)

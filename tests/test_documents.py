"""Sources of documents: files, bad input, near-duplicates."""

import json
import logging
import multiprocessing
import os

import fsspec
import numpy as np
import pytest

from data import array_records, dedup
from data.documents import Documents, find, scan


def write_jsonl(path, texts):
  path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")


def open_documents(pattern, max_bad_lines=0):
  files = find(str(pattern))
  spans, texts = zip(*scan(files, max_bad_lines), strict=True)
  return Documents(files, np.array(spans)), list(texts)


def test_random_access_equals_the_scan(tmp_path):
  texts = ["ASCII", "häuser €", 'quote " and \\ and \n newline', "x" * 10_000]
  write_jsonl(tmp_path / "b.jsonl", texts[:2])
  # Not escaped, Windows line ends, no newline at the end.
  raw = "\r\n".join(json.dumps({"id": 1, "text": t}, ensure_ascii=False) for t in texts[2:])
  (tmp_path / "c.jsonl").write_bytes(raw.encode())
  (tmp_path / "a.txt").write_text("One file,\none document: ü.", encoding="utf-8")
  documents, scanned = open_documents(tmp_path / "*")
  assert scanned == ["One file,\none document: ü.", *texts]
  for order in ([0, 1, 2, 3, 4], [4, 0, 3], [2, 2], []):
    assert documents.read(order) == [scanned[i] for i in order]
  assert documents.select(np.arange(5) % 2 == 1).read([0, 1]) == [scanned[1], scanned[3]]


def test_any_fsspec_url_is_a_source():
  with fsspec.open("memory://corpus/part.jsonl", "w") as file:
    file.write('{"text": "first"}\n{"text": "second"}\n')
  documents, texts = open_documents("memory://corpus/*.jsonl")
  assert texts == ["first", "second"]
  assert documents.read([1]) == ["second"]


BAD = {
  "no JSON": b"{broken",
  "no object": b'["text"]',
  "no text": b'{"content": "x"}',
  "text of another type": b'{"text": 3}',
  "no UTF-8": b'{"text": "\xff"}',
  "half a surrogate pair": b'{"text": "\\ud800"}',
}


@pytest.mark.parametrize("line", BAD.values(), ids=BAD.keys())
def test_a_bad_line_is_skipped_and_logged_and_too_many_are_an_error(line, tmp_path, caplog):
  path = tmp_path / "a.jsonl"
  path.write_bytes(b'{"text": "good"}\n\n  \n' + line + b'\n{"text": ""}\n{"text": "also"}\n')
  with caplog.at_level(logging.WARNING):
    documents, texts = open_documents(path, max_bad_lines=1)
  assert texts == ["good", "also"] == documents.read([0, 1])
  assert f"{path}:4: skipped" in caplog.text
  with pytest.raises(ValueError, match=r"a\.jsonl:4: .*max_bad_lines=0"):
    open_documents(path, max_bad_lines=0)


def test_a_text_file_that_is_no_utf8_is_bad(tmp_path):
  (tmp_path / "a.txt").write_bytes(b"caf\xe9")
  with pytest.raises(ValueError, match=r"a\.txt:1: .*utf-8"):
    open_documents(tmp_path / "a.txt")


def test_errors_name_the_source(tmp_path):
  with pytest.raises(ValueError, match=r"nothing\.jsonl' matches no file"):
    find(str(tmp_path / "nothing.jsonl"))
  with pytest.raises(ValueError, match="matches no file"):
    find(str(tmp_path))
  (tmp_path / "a.jsonl.gz").write_bytes(b"")
  with pytest.raises(ValueError, match="compressed"):
    find(str(tmp_path / "*"))
  (tmp_path / "odd[1].jsonl").write_text('{"text": "x"}')
  assert open_documents(tmp_path / "odd[1].jsonl")[1] == ["x"]


def test_a_file_that_changes_under_a_run_is_named(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text("".join(json.dumps({"text": f"{i} " * 9}) + "\n" for i in range(9)))
  documents, _ = open_documents(path)
  os.truncate(path, 100)
  with pytest.raises(ValueError, match=r"a\.jsonl has changed since .* Restore the file"):
    documents.read([8])


def planted(rng, similarity, words=400):
  """A pair of texts whose sets of 5-word shingles have about this Jaccard similarity."""
  first = [f"w{w}" for w in rng.integers(0, 10**6, words)]
  # k replaced tail words leave words - 4 - k of words - 4 + k shingles in common.
  shingles = words - dedup.SIZE.n_grams + 1
  changed = round(shingles * (1 - similarity) / (1 + similarity))
  second = first[: words - changed] + [f"v{w}" for w in rng.integers(0, 10**6, changed)]
  return " ".join(first), " ".join(second)


def keep(texts, threshold=0.7):
  hashes = [dedup.content_hash(t) for t in texts]
  return dedup.unique(hashes, [dedup.shingles(t) for t in texts], threshold)


@pytest.mark.parametrize(("similarity", "least", "most"), [(0.9, 49, 50), (0.5, 0, 1)])
def test_planted_near_duplicates(similarity, least, most):
  rng = np.random.default_rng(1)
  pairs = [planted(rng, similarity) for _ in range(50)]
  found = [dedup.jaccard(*map(dedup.shingles, pair)) for pair in pairs]
  np.testing.assert_allclose(found, similarity, atol=0.01)
  removed = (~keep([text for pair in pairs for text in pair])).reshape(-1, 2).sum(axis=1)
  assert least <= (removed == 1).sum() <= most
  assert (removed < 2).all()


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_cluster_keeps_its_smallest_hash_in_any_order(rank):
  rng = np.random.default_rng(2)
  while True:  # until the hash of the second, which links the others, has the wanted rank
    first, second = planted(rng, 0.85)
    third = second.split(" ", 80)[-1]
    chain = [first, second, third]
    if sorted(chain, key=dedup.content_hash).index(second) == rank:
      break
  assert dedup.jaccard(dedup.shingles(first), dedup.shingles(third)) < 0.7
  texts = [first, second, third, second, "Something else altogether.", "?!", "?!"]
  clusters = [{first, second, third}, {texts[4]}, {"?!"}]
  expected = {min(cluster, key=dedup.content_hash) for cluster in clusters}
  for _ in range(3):
    rng.shuffle(texts)
    kept = [text for text, stays in zip(texts, keep(texts), strict=True) if stays]
    assert sorted(kept) == sorted(expected)


def test_case_and_punctuation_make_no_difference():
  text = "The quick brown fox jumps over the lazy dog, and it runs away."
  assert keep([text, text.upper().replace(",", " -")]).sum() == 1


def test_an_array_record_file_reads_as_the_jsonl_of_the_same_texts(tmp_path):
  texts = ["ASCII", "häuser €\n", "x" * 100_000, *(f"document {i}" for i in range(600))]
  write_jsonl(tmp_path / "a.jsonl", texts)
  with array_records.Writer(str(tmp_path / "b.array_record")) as writer:
    for text in texts:
      writer.write(text)
  records, scanned = open_documents(tmp_path / "b.array_record")
  assert scanned == texts
  mixed, _ = open_documents(tmp_path / "*")
  rng = np.random.default_rng(0)
  for _ in range(3):
    order = rng.integers(0, len(texts), 50)
    assert records.read(order) == [texts[i] for i in order]
    order = rng.integers(0, 2 * len(texts), 50)
    assert mixed.read(order) == [(texts * 2)[i] for i in order]
  with multiprocessing.get_context("spawn").Pool(1) as pool:  # as a loader's worker
    assert pool.apply(records.read, ([2, 0],)) == [texts[2], texts[0]]


def test_what_is_no_array_record_file_is_an_error_that_names_it(tmp_path):
  path = tmp_path / "a.array_record"
  for payload in (b"", b"no record" * 1000):
    path.write_bytes(payload)
    with pytest.raises(ValueError, match=r"a\.array_record"):
      open_documents(path)
    array_records._reader.cache_clear()
  with fsspec.open("memory://records/a.array_record", "w") as file:
    file.write("x")
  with pytest.raises(ValueError, match="from disks only"):
    find("memory://records/*.array_record")

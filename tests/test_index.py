"""Starting again without reading every document again, and starting without reading any."""

import dataclasses
import json
import os
import pickle

import numpy as np
import pytest

from data import array_records, documents, sources
from data.config import SourceConfig
from data.mixture import make_mixture
from data.streams import Stream
from tests.test_heldout import CONFIG

TEXTS = [f"Document number {i} speaks of {i * 7919 % 1000}." for i in range(60)]


def config_of(path, **changes):
  return dataclasses.replace(CONFIG, sources={"only": SourceConfig(str(path), 1.0)}, **changes)


def write_jsonl(path, texts):
  path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def write_records(path, texts):
  with array_records.Writer(str(path)) as writer:
    for text in texts:
      writer.write(text)


@pytest.fixture
def scans(monkeypatch):
  """The names of the files that were read for their documents."""
  found = []

  def scan(files, *rest):
    found.extend(os.path.basename(path) for path in files.paths)
    return documents.scan(files, *rest)

  monkeypatch.setattr(sources, "scan", scan)
  return found


def test_a_restart_reads_nothing_and_finds_the_same(tmp_path, scans):
  write_jsonl(tmp_path / "a.jsonl", TEXTS + TEXTS[:5])
  config = config_of(tmp_path / "*.jsonl")
  first = sources.open_corpus(config, tmp_path)
  assert scans == ["a.jsonl"]
  again = sources.open_corpus(config, tmp_path)
  assert scans == ["a.jsonl"]
  assert (again.fingerprint, again.duplicates) == (first.fingerprint, first.duplicates)
  for part in ("train", "heldout"):
    old, new = getattr(first, part)["only"], getattr(again, part)["only"]
    assert len(old) and old.read(range(len(old))) == new.read(range(len(new)))


@pytest.mark.parametrize("change", ["content", "another file", "rule", "damage", "cut"])
def test_whatever_changed_is_read_again(change, tmp_path, scans):
  path, kept = tmp_path / "a.jsonl", tmp_path / "corpus" / "index.npz"
  write_jsonl(path, TEXTS)
  config = config_of(tmp_path / "*.jsonl")
  first = sources.open_corpus(config, tmp_path)
  count = len(scans)
  if change == "content":
    write_jsonl(path, [text.replace("speaks", "sneaks") for text in TEXTS])  # of the same size
    os.utime(path, ns=(1, 1))
  elif change == "another file":
    write_jsonl(tmp_path / "b.jsonl", ["Another one."])
  elif change == "rule":
    config = config_of(tmp_path / "*.jsonl", heldout_fraction=0.5)
  elif change == "damage":
    kept.write_bytes(b"no index")
  else:
    kept.write_bytes(kept.read_bytes()[:-200])
  again = sources.open_corpus(config, tmp_path)
  assert len(scans) > count
  assert (again.fingerprint == first.fingerprint) == (change in ("damage", "cut"))
  sources.open_corpus(config, tmp_path)
  assert len(scans) <= count + 2  # and that is kept


def test_records_are_trained_on_in_the_same_order_without_being_read(tmp_path, scans, monkeypatch):
  for name, texts in (("a", TEXTS[:20]), ("b", TEXTS[20:21]), ("c", TEXTS[21:])):
    write_records(tmp_path / f"{name}.array_record", texts)
  whole = config_of(tmp_path / "*.array_record", heldout_fraction=0.0, dedup_threshold=None)
  read, really = [], array_records.read
  monkeypatch.setattr(
    array_records, "read", lambda path, numbers: read.extend(numbers) or really(path, numbers)
  )
  corpus = sources.open_corpus(whole, tmp_path)
  assert not scans and len(read) == 3  # one of each file, for the fingerprint
  unread = corpus.train["only"]
  assert unread.read(range(len(unread))) == TEXTS
  assert corpus.heldout == {}
  scanned = documents.Documents(
    unread.files, np.array([s for s, _ in documents.scan(unread.files, 0)])
  )
  order = np.random.default_rng(0).integers(0, len(TEXTS), 40)
  assert scanned.places(order).tolist() == unread.places(order).tolist()
  assert scanned.read(order) == unread.read(order) == [TEXTS[i] for i in order]
  assert len(pickle.dumps(unread)) < len(pickle.dumps(scanned)) / 2
  tokenizer = sources.open_tokenizer(whole, corpus, tmp_path)
  rows = []
  for found in (unread, scanned):
    mixture = make_mixture(whole, corpus, tokenizer, 0)
    mixture = dataclasses.replace(mixture, documents=(found,))
    stream = Stream(mixture, tokenizer, whole, 1, None)
    rows.append([[s.reference for s in next(stream)] for _ in range(30)])
  assert rows[0] == rows[1]


def test_the_fingerprint_tells_records_apart(tmp_path):
  whole = config_of(tmp_path / "*.array_record", heldout_fraction=0.0, dedup_threshold=None)
  found = set()
  for texts in (TEXTS, TEXTS[:-1], [*TEXTS[1:], "x"]):
    write_records(tmp_path / "a.array_record", texts)
    array_records._reader.cache_clear()
    found.add(sources.open_corpus(whole, tmp_path).fingerprint)
  assert len(found) == 3
  # A corpus may be moved.
  (tmp_path / "a.array_record").rename(tmp_path / "b.array_record")
  assert sources.open_corpus(whole, tmp_path).fingerprint in found


def test_a_record_that_is_no_text_stops_no_run(tmp_path):
  from array_record.python import array_record_module

  path = tmp_path / "a.array_record"
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for payload in ("é".encode(), "é".encode("latin-1"), b""):
    writer.write(payload)
  writer.close()
  whole = config_of(path, heldout_fraction=0.0, dedup_threshold=None)
  assert sources.open_corpus(whole, tmp_path).train["only"].read([0, 1, 2]) == ["é", "�", ""]

"""Sources without random access are written as ArrayRecord once, and are then as any other."""

import bz2
import gzip
import json
import lzma
import os
import sys

import fsspec
import pytest

from data import materialize, sources
from data.config import DataConfig, SourceConfig

TEXTS = [f"Document {i} of the strait,\nin two lines." for i in range(5)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)


def config_of(path, max_bad_lines=0):
  return DataConfig(
    sources={"a": SourceConfig(str(path), 1.0)},
    tokenizer="train",
    vocab_size=300,
    eot="<|endoftext|>",
    seq_len=16,
    batch_size=1,
    streams=1,
    workers=0,
    prefetch=1,
    max_segments=4,
    open_bins=2,
    heldout_fraction=0.0,
    dedup_threshold=None,
    max_bad_lines=max_bad_lines,
  )


def read(config, folder):
  documents = sources.open_corpus(config, folder).train["a"]
  return documents.read(range(len(documents)))


def compressed(kind, payload):
  import zstandard

  functions = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
  return (functions | {"zst": zstandard.ZstdCompressor().compress})[kind](payload)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst"])
def test_compressed_files_are_sources(kind, tmp_path):
  (tmp_path / f"b.jsonl.{kind}").write_bytes(compressed(kind, LINES.encode()))
  (tmp_path / f"a.txt.{kind}").write_bytes(compressed(kind, b"A file is a document."))
  (tmp_path / "other.jsonl").write_text("no part of it")
  assert read(config_of(tmp_path / f"*.{kind}"), tmp_path / "run") == [
    "A file is a document.",
    *TEXTS,
  ]


def test_parquet_and_urls_are_sources(tmp_path):
  import pyarrow
  import pyarrow.parquet

  pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "x.parquet")
  assert read(config_of(tmp_path / "x.parquet"), tmp_path / "run") == TEXTS
  with fsspec.open("memory://materialize/x.jsonl.gz", "wb") as file:
    file.write(gzip.compress(LINES.encode()))
  assert read(config_of("memory://materialize/*.gz"), tmp_path / "run") == TEXTS


def test_they_are_written_once_and_again_when_they_change(tmp_path):
  source, run = tmp_path / "x.jsonl.gz", tmp_path / "run"
  source.write_bytes(gzip.compress(LINES.encode()))
  config = config_of(source)
  first = sources.open_corpus(config, run)
  (written,) = (run / "corpus").glob("*.array_record")
  before = written.stat().st_mtime_ns
  assert sources.open_corpus(config, run).fingerprint == first.fingerprint
  assert written.stat().st_mtime_ns == before
  source.write_bytes(gzip.compress(LINES[: LINES.index("\n") + 1].encode()))
  os.utime(source, ns=(1, 1))
  changed = sources.open_corpus(config, run)  # a run that began with the others refuses it
  assert changed.fingerprint != first.fingerprint and len(changed.train["a"]) == 1


def test_what_is_broken_is_counted_or_refused(tmp_path):
  source = tmp_path / "x.jsonl.gz"
  source.write_bytes(gzip.compress((LINES + "no JSON\n\n" + '{"text": ""}\n').encode()))
  assert read(config_of(source, max_bad_lines=1), tmp_path / "run") == TEXTS
  with pytest.raises(ValueError, match=r"x\.jsonl\.gz at \d+: invalid_json; 1 bad lines are more"):
    read(config_of(source), tmp_path / "other")
  assert not list((tmp_path / "other").rglob("*.*"))
  source.write_bytes(gzip.compress(LINES.encode())[:-9])
  with pytest.raises(ValueError, match="truncated_compression"):
    read(config_of(source), tmp_path / "other")
  source.write_bytes(gzip.compress(b"\n"))
  with pytest.raises(ValueError, match="has no document"):
    read(config_of(source), tmp_path / "other")
  (tmp_path / "x.warc.gz").write_bytes(b"")
  with pytest.raises(ValueError, match="of the format warc: raw; make a corpus of it"):
    read(config_of(tmp_path / "x.warc.gz"), tmp_path / "other")


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
  (tmp_path / "x.jsonl.zst").write_bytes(compressed("zst", LINES.encode()))
  monkeypatch.setitem(sys.modules, "zstandard", None)
  with pytest.raises(ValueError, match=r"needs zstandard: pip install -e '\.\[corpus\]'"):
    materialize.write(str(tmp_path / "x.jsonl.zst"), tmp_path, 0)

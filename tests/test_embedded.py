"""The embedded corpus and its held-out part, with the quickstart's own values."""

import itertools
import json
import sys

import pytest

from configs import quickstart
from data import dedup, embedded, sources
from data.config import DataConfig, parse


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  embedded.write(workdir / "corpus" / "embedded.jsonl")
  return workdir


def test_real_english_of_the_expected_size_and_nothing_imported(workdir):
  lines = (workdir / "corpus" / "embedded.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert 2_000_000 < sum(len(r["text"].encode()) for r in records) < 3_000_000
  ids = [r["id"] for r in records]
  assert len(ids) > 3_000
  assert "topic/if" in ids and "argparse.ArgumentParser" in ids and "json" in ids
  assert not [i for i in ids if i.startswith(("test.", "idlelib", "site-packages"))]
  # Modules that print or open a browser when imported; some tool may have loaded them before.
  assert "this" not in sys.modules and "antigravity" not in sys.modules
  text = next(r["text"] for r in records if r["id"] == "textwrap.TextWrapper")
  assert "TextWrapper.fill" in text


def test_the_corpus_is_deterministic_and_its_file_stays(workdir):
  path = workdir / "corpus" / "embedded.jsonl"
  assert [p.name for p in path.parent.iterdir()] == ["embedded.jsonl"]
  with path.open() as lines:
    for name, text in itertools.islice(embedded.documents(), 400):
      assert json.loads(next(lines)) == {"id": name, "text": text}
  before = path.stat().st_mtime_ns
  assert embedded.write(path).stat().st_mtime_ns == before


def test_an_incomplete_python_is_an_error(tmp_path, monkeypatch):
  monkeypatch.setattr(embedded, "_library", lambda: tmp_path)
  with pytest.raises(ValueError, match="complete CPython"):
    embedded.write(tmp_path / "corpus.jsonl")
  assert not list(tmp_path.iterdir())


def test_five_percent_are_held_out_with_no_double_in_training(workdir):
  config = parse(DataConfig, quickstart.get_config().data.to_dict(), "config.data")
  corpus = sources.open_corpus(config, workdir)
  train, heldout = corpus.train["docs"], corpus.heldout["docs"]
  assert len(heldout) / (len(train) + len(heldout)) >= 0.05
  assert corpus.duplicates > 0

  def all_shingles(documents):
    return [dedup.shingles(t) for t in documents.read(range(len(documents)))]

  with_shingle: dict[int, list[int]] = {}
  trained = all_shingles(train)
  for index, document in enumerate(trained):
    for shingle in document.tolist():
      with_shingle.setdefault(shingle, []).append(index)
  for document in all_shingles(heldout):
    near = {i for shingle in document.tolist() for i in with_shingle.get(shingle, ())}
    assert all(dedup.jaccard(document, trained[i]) < config.dedup_threshold for i in near)

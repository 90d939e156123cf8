"""The held-out split and the rows for bits per byte."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import dedup, sources
from data.batch import document_ids
from data.config import DataConfig, SourceConfig
from data.heldout import evaluation_set, is_held_out, windows

CONFIG = DataConfig(
  sources={"only": SourceConfig("", 1.0)},
  tokenizer="train",
  vocab_size=270,
  eot="<|endoftext|>",
  seq_len=32,
  batch_size=4,
  streams=2,
  workers=0,
  prefetch=1,
  max_segments=4,
  open_bins=3,
  heldout_fraction=0.2,
  dedup_threshold=0.8,
  max_bad_lines=0,
)


def corpus_of(texts, tmp_path, **changes):
  path = tmp_path / "texts.jsonl"
  path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
  config = dataclasses.replace(CONFIG, sources={"only": SourceConfig(str(path), 1.0)}, **changes)
  return config, sources.open_corpus(config, tmp_path)


def texts_of(documents):
  return documents.read(range(len(documents)))


def test_the_split_depends_on_the_content_alone(tmp_path):
  texts = [f"Document number {i} speaks of {i * 7919 % 1000}." for i in range(2_000)]
  _, corpus = corpus_of(texts, tmp_path, dedup_threshold=None)
  held_out = texts_of(corpus.heldout["only"])
  assert abs(len(held_out) / len(texts) - 0.2) < 0.03
  assert texts_of(corpus.train["only"]) + held_out != texts
  assert sorted(texts_of(corpus.train["only"]) + held_out) == sorted(texts)
  _, other = corpus_of([*reversed(texts), "one more"], tmp_path, dedup_threshold=None)
  assert set(held_out) == set(texts_of(other.heldout["only"])) - {"one more"}
  # A larger part contains the smaller one, and documents that deduplication prefers, those with a
  # small content hash, are held out no more often than others.
  assert all(is_held_out(t, 0.3) for t in held_out)
  preferred = sorted(texts, key=dedup.content_hash)[:500]
  assert abs(sum(is_held_out(t, 0.2) for t in preferred) / 500 - 0.2) < 0.06


def test_duplicates_across_sources_go_before_the_split(tmp_path):
  words = [f"word{i}" for i in range(100)]
  texts = [" ".join(words[i:] + words[:i]) + f" {i * i}" for i in range(0, 100, 20)]
  for name, suffix in (("a", ""), ("b", " changed")):
    (tmp_path / f"{name}.jsonl").write_text(
      "".join(json.dumps({"text": t + suffix}) + "\n" for t in [*texts, f"Own of {name}."])
    )
  config = dataclasses.replace(
    CONFIG,
    sources={n: SourceConfig(str(tmp_path / f"{n}.jsonl"), 1.0) for n in ("b", "a")},
    heldout_fraction=0.0,
  )
  corpus = sources.open_corpus(config, tmp_path)
  assert corpus.duplicates == len(texts) + 4  # the rotations are duplicates of each other
  assert list(corpus.train) == ["a", "b"]
  assert sum(map(len, corpus.train.values())) == 3


@given(st.integers(0, 200), st.integers(1, 32))
@settings(max_examples=100, deadline=None)
def test_windows_score_each_target_once_with_enough_context(length, stride):
  ids = document_ids(range(1, length + 1), eot=0)
  scored = []
  for number, window in enumerate(windows(ids, 32, stride)):
    assert window.length <= 32
    assert number == 0 or window.context >= 32 - stride
    scored.extend(window.ids[1 + window.context :].tolist())
  assert scored == ids[1:].tolist()


def test_evaluation_rows_hold_every_token_and_byte(tmp_path):
  texts = ["short", "ü" * 70, *(f"{i} is a number. " * (i % 9 + 1) for i in range(60))]
  config, corpus = corpus_of(texts, tmp_path, dedup_threshold=None, heldout_fraction=0.0)
  tokenizer = sources.open_tokenizer(config, corpus, tmp_path)
  documents = corpus.train["only"]
  held_out = evaluation_set(documents, tokenizer, config, stride=8, batch_size=5)
  tokens = tokenizer.encode_batch(texts)
  batch, weights = held_out.batch, held_out.batch["loss_weights"]
  assert held_out.num_bytes == sum(len(t.encode()) for t in texts)
  assert held_out.num_tokens == weights.sum() == sum(len(t) + 1 for t in tokens)
  assert len(weights) % 5 == 0
  assert (weights[batch["segment_ids"] == 0] == 0).all()
  targets = np.sort(batch["targets"][weights == 1])
  expected = np.sort(np.concatenate([document_ids(t, tokenizer.eot)[1:] for t in tokens]))
  np.testing.assert_array_equal(targets, expected)
  again = evaluation_set(documents, tokenizer, config, stride=8, batch_size=5)
  assert all((again.batch[key] == batch[key]).all() for key in batch)


def test_bad_evaluation_input(tmp_path):
  config, corpus = corpus_of(["a text"], tmp_path, heldout_fraction=0.0)
  tokenizer = sources.open_tokenizer(config, corpus, tmp_path)
  with pytest.raises(ValueError, match="no documents to evaluate on"):
    evaluation_set(corpus.heldout["only"], tokenizer, config, stride=8, batch_size=4)
  for stride in (0, 33):
    with pytest.raises(ValueError, match=f"eval.stride={stride}"):
      evaluation_set(corpus.train["only"], tokenizer, config, stride=stride, batch_size=4)
  with pytest.raises(ValueError, match="no document to train on: 2 were read"):
    corpus_of(["a", "b"], tmp_path, heldout_fraction=0.999999)
  (tmp_path / "empty.jsonl").write_text("\n")
  with pytest.raises(ValueError, match="has no document"):
    sources.open_files(str(tmp_path / "empty.jsonl"), 0)
  with pytest.raises(ValueError, match="no document to train on: 0 were read"):
    corpus_of([], tmp_path)

"""Tokenizers: exact round trips, end of text that no text can spell, one interface."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import tokenizer

EOT = "<|endoftext|>"
TEXTS = [
  "The quick brown fox jumps over the lazy dog. " * 3,
  "def f(x):\n  return x\n",
  "Größe: 3 µm",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
  tokenizer.train(iter(TEXTS * 20), 300, EOT, path)
  return tokenizer.load(str(path), EOT)


@pytest.fixture(scope="module")
def sentencepiece_path(tmp_path_factory):
  import sentencepiece

  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS * 20),
    model_writer=model,
    vocab_size=300,
    byte_fallback=True,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  path = tmp_path_factory.mktemp("tokenizer") / "tiny.model"
  path.write_bytes(model.getvalue())
  return path


@given(st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_and_holds_no_end_of_text(trained, text):
  (ids,) = trained.encode_batch([text])
  assert trained.decode(ids) == text
  assert trained.eot not in ids
  assert all(0 <= i < trained.vocab_size for i in ids)


@pytest.mark.parametrize("text", [EOT, f"before {EOT} after", EOT * 3])
def test_text_cannot_inject_end_of_text(trained, text):
  for instance in (trained, pickle.loads(pickle.dumps(trained))):
    (ids,) = instance.encode_batch([text])
    assert instance.eot not in ids
    assert instance.decode(ids) == text
  assert trained.decode([trained.eot]) == EOT


def test_training_is_deterministic_and_learns_words(trained, tmp_path):
  tokenizer.train(iter(TEXTS * 20), 300, EOT, tmp_path / "again.json")
  again = tokenizer.load(str(tmp_path / "again.json"), EOT)
  assert again.fingerprint == trained.fingerprint
  assert trained.vocab_size == 300
  assert len(trained.encode_batch([TEXTS[0]])[0]) < len(TEXTS[0]) / 2


def test_decode_takes_numpy_ids_and_survives_bytes_that_are_no_text(trained):
  ids = trained.encode_batch(["µ"])[0]
  assert trained.decode(np.array(ids)) == "µ"
  assert trained.decode(ids[:1]) == "\ufffd"


def test_sentencepiece_has_the_same_interface(sentencepiece_path):
  instance = tokenizer.load(str(sentencepiece_path), "</s>")
  instance = pickle.loads(pickle.dumps(instance))
  first, second = instance.encode_batch(["The lazy dog", "</s> fox"])
  assert instance.decode(np.array(first)) == "The lazy dog"
  assert instance.eot not in second
  assert instance.vocab_size > max(first + second)


def test_errors_name_the_remedy(trained, tmp_path, sentencepiece_path):
  with pytest.raises(ValueError, match="cannot be read"):
    tokenizer.load(str(tmp_path / "missing.json"), EOT)
  with pytest.raises(ValueError, match="is no token of this tokenizer"):
    tokenizer.load(str(sentencepiece_path), EOT)
  for name in ("other.json", "other.model"):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=r"data\.tokenizer is no"):
      tokenizer.load(str(tmp_path / name), EOT)
  with pytest.raises(ValueError, match="must end in"):
    (tmp_path / "vocab.txt").write_text("a")
    tokenizer.load(str(tmp_path / "vocab.txt"), EOT)
  with pytest.raises(ValueError, match="vocab_size=256"):
    tokenizer.train(iter(TEXTS), 256, EOT, tmp_path / "tokenizer.json")


PUBLISHED = {"neox_olmo.json": EOT, "dolma2.json": EOT, "mistral_v1.model": "</s>"}


@pytest.mark.parametrize(("name", "eot"), PUBLISHED.items())
def test_published_tokenizers_load(name, eot):
  folder = os.environ.get("STRAITS_TEST_DATA")
  if not folder:
    pytest.skip("STRAITS_TEST_DATA names no folder of published tokenizers")
  instance = tokenizer.load(str(Path(folder) / "tokenizers" / name), eot)
  text = f"The strait of Gibraltar is 14 km wide. {eot}"
  (ids,) = instance.encode_batch([text])
  assert instance.eot not in ids
  assert instance.decode(ids) == text

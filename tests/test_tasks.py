"""The seqio face, held to seqio's own readers. Slow: TensorFlow takes seconds to import."""

import json

import numpy as np
import pytest

from data import documents, tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

EOT = "<|endoftext|>"
TEXTS = ["The cat sat on the mat.", "naïve café\n", "日本語 and <|endoftext|> spelled out", "x"]


@pytest.fixture(scope="module")
def seqio():
  return pytest.importorskip("seqio")


@pytest.fixture(scope="module")
def tasks(seqio):
  from data import tasks

  return tasks


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
  tokenizer.train(iter(TEXTS * 8), 300, EOT, path)
  return tokenizer.load(str(path), EOT)


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
  """Two splits of JSONL documents."""
  folder = tmp_path_factory.mktemp("documents")
  opened = {}
  for split, texts in {"train": TEXTS[:3], "validation": TEXTS[3:]}.items():
    path = folder / f"{split}.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    files = documents.find(str(path))
    spans = np.array([span for span, _ in documents.scan(files, 0)], np.int64)
    opened[split] = documents.Documents(files, spans)
  return opened


def test_vocabulary_keeps_seqios_contract(tasks, seqio, trained):
  vocabulary = tasks.Vocabulary(trained)
  assert isinstance(vocabulary, seqio.Vocabulary)
  assert vocabulary.vocab_size == trained.vocab_size == 300
  assert vocabulary.eos_id == vocabulary.bos_id == trained.eot
  for text in TEXTS:
    ids = vocabulary.encode(text)
    assert ids == trained.encode_batch([text])[0] and vocabulary.eos_id not in ids
    assert vocabulary.encode(text.encode()) == ids
    assert vocabulary.decode(ids) == text
    # What follows the end of a document is not decoded.
    assert vocabulary.decode([*ids, vocabulary.eos_id, ids[0]]) == text
    encoded = vocabulary.encode_tf(text)
    assert encoded.dtype == "int32" and encoded.numpy().tolist() == ids
    assert vocabulary.decode_tf(encoded).numpy().decode() == text


def test_vocabulary_decodes_batches_of_padded_rows(tasks, trained):
  vocabulary = tasks.Vocabulary(trained)
  rows = np.full((2, 64), vocabulary.pad_id, np.int32)
  for row, text in zip(rows, TEXTS, strict=False):
    ids = [*vocabulary.encode(text), vocabulary.eos_id]
    row[: len(ids)] = ids
  texts = vocabulary.decode_tf(rows).numpy()
  assert texts.shape == (2,) and [text.decode() for text in texts] == TEXTS[:2]


def test_vocabularies_are_equal_by_what_they_are_made_of(tasks, trained, tmp_path):
  assert tasks.Vocabulary(trained) == tasks.Vocabulary(trained)
  assert hash(tasks.Vocabulary(trained)) == hash(tasks.Vocabulary(trained))
  tokenizer.train(iter(["other text"]), 280, EOT, tmp_path / "tokenizer.json")
  other = tokenizer.load(str(tmp_path / "tokenizer.json"), EOT)
  assert tasks.Vocabulary(trained) != tasks.Vocabulary(other)


def test_documents_are_a_task(tasks, seqio, trained, splits):
  task = tasks.register("straits_documents", splits, trained)
  assert seqio.get_mixture_or_task("straits_documents") is task
  assert task.num_input_examples("train") == 3
  for split, texts in {"train": TEXTS[:3], "validation": TEXTS[3:]}.items():
    dataset = task.get_dataset({"targets": 128}, split, shuffle=False)
    rows = [example["targets"].tolist() for example in dataset.as_numpy_iterator()]
    assert rows == [[*ids, trained.eot] for ids in trained.encode_batch(texts)]


def test_a_task_joins_a_mixture_and_is_trimmed_to_its_length(tasks, seqio, trained, splits):
  for name in ("straits_one", "straits_two"):
    tasks.register(name, splits, trained)
  seqio.MixtureRegistry.add("straits_mixture", ["straits_one", "straits_two"], default_rate=1.0)
  mixture = seqio.get_mixture_or_task("straits_mixture")
  dataset = mixture.get_dataset({"targets": 4}, "train", shuffle=True, seed=0, num_epochs=None)
  rows = [example["targets"].tolist() for example in dataset.take(30).as_numpy_iterator()]
  expected = [[*ids, trained.eot][:4] for ids in trained.encode_batch(TEXTS[:3])]
  assert sorted(expected) == sorted(row for row in expected if row in rows)
  assert all(row in expected for row in rows)


def test_names_are_taken_once(tasks, trained, splits):
  tasks.register("straits_taken", splits, trained)
  with pytest.raises(ValueError, match="straits_taken"):
    tasks.register("straits_taken", splits, trained)

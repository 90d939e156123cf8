"""The seqio face, held to seqio's own readers. Slow: TensorFlow takes seconds to import."""

import dataclasses
import json

import numpy as np
import pytest

from data import documents, sources, tokenizer
from data.benchmarks import Item
from data.config import DataConfig, SourceConfig

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


def test_a_registered_task_is_a_source(tasks, seqio, trained, splits, tmp_path):
  seqio.TaskRegistry.add(
    "source_pairs",
    source=seqio.FunctionDataSource(
      dataset_fn=lambda split, shuffle_files, seed=None: tasks.tf.data.Dataset.from_tensor_slices(
        {"inputs": ["2 + 2?", ""], "targets": ["four", "alone"]}
      ),
      splits=["train"],
    ),
    preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features={
      name: seqio.Feature(tasks.Vocabulary(trained), add_eos=True, required=False)
      for name in ("inputs", "targets")
    },
  )
  tasks.register("source_documents", splits, trained)
  tiny = {"tokenizer": "train", "vocab_size": 300, "eot": EOT, "seq_len": 16, "batch_size": 1}
  tiny |= {"streams": 1, "workers": 0, "prefetch": 1, "max_segments": 4, "open_bins": 2}
  tiny |= {"heldout_fraction": 0.0, "dedup_threshold": None, "max_bad_lines": 0}
  config = DataConfig(
    sources={
      "pairs": SourceConfig("seqio:source_pairs", 1.0),
      "documents": SourceConfig("seqio:source_documents", 1.0),
    },
    **tiny,
  )
  corpus = sources.open_corpus(config, tmp_path)
  assert corpus.train["pairs"].read([0, 1]) == ["2 + 2?\nfour", "alone"]
  assert corpus.train["documents"].read(range(3)) == TEXTS[:3]
  wrong = dataclasses.replace(config, sources={"x": SourceConfig("seqio:none@no_module", 1.0)})
  with pytest.raises(ValueError, match=r"seqio:none can't be read: No module named"):
    sources.open_corpus(wrong, tmp_path)


def test_a_benchmark_is_evaluated_by_seqio(tasks, seqio, trained):
  items = [
    Item("1", "The cat sat on", ("the mat.", "a"), 0),
    Item("2", "x", ("naive", "a long wrong ending"), 0),
    Item("3", "y", ("one", "two"), 1),
  ]

  def encode(context, continuation):
    both, before = trained.encode_batch([context + continuation, context])
    return before, both[len(before) :]

  tasks.register_benchmark("hellaswag_seqio", "hellaswag", items, encode, trained)
  # By item and choice; the second item is right only by length.
  sums = {0: (-1.0, -2.0), 1: (-2.0, -3.0), 2: (-5.0, -1.0)}
  seen = []

  def score_fn(examples):
    found = []
    for number, example in examples.as_numpy_iterator():
      seen.append([int(i) for i in example["decoder_target_tokens"] if i])
      found.append((number, sums[number // 2][number % 2]))
    return found

  evaluator = seqio.Evaluator(
    "hellaswag_seqio",
    feature_converter=seqio.EncDecFeatureConverter(pack=False),
    eval_split="test",
  )
  future = evaluator.evaluate(compute_metrics=True, score_fn=score_fn, predict_fn=lambda _: [])
  found = future[0].result()["hellaswag_seqio"]
  assert found["acc"] == pytest.approx(1.0)
  # -2/5 against -3/19 a character: the longer one.
  assert found["acc_norm"] == pytest.approx(2 / 3)
  assert trained.decode(seen[0]) == " the mat."
  with pytest.raises(ValueError, match="no task of choices"):
    tasks.register_benchmark("x", "truthfulqa_gen", items, encode, trained)

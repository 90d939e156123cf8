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
TINY = {
  "tokenizer": "train",
  "vocab_size": 300,
  "eot": EOT,
  "seq_len": 16,
  "batch_size": 1,
  "streams": 1,
  "workers": 0,
  "prefetch": 1,
  "max_segments": 4,
  "open_bins": 2,
  "heldout_fraction": 0.0,
  "dedup_threshold": None,
  "max_bad_lines": 0,
}


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
  config = DataConfig(
    sources={
      "pairs": SourceConfig("seqio:source_pairs", 1.0),
      "documents": SourceConfig("seqio:source_documents", 1.0),
    },
    **TINY,
  )
  corpus = sources.open_corpus(config, tmp_path)
  assert corpus.train["pairs"].read([0, 1]) == ["2 + 2?\nfour", "alone"]
  assert corpus.train["documents"].read(range(3)) == TEXTS[:3]
  wrong = dataclasses.replace(config, sources={"x": SourceConfig("seqio:none@no_module", 1.0)})
  with pytest.raises(ValueError, match=r"seqio:none can't be read: No module named"):
    sources.open_corpus(wrong, tmp_path)
  # A recipe that was saved, by anyone, reads what was written and imports nothing.
  assert sources.open_saved_corpus(config, tmp_path).fingerprint == corpus.fingerprint
  with pytest.raises(ValueError, match="imports nothing"):
    sources.open_saved_corpus(wrong, tmp_path)


def encode_by(trained):
  def encode(context, continuation):
    both, before = trained.encode_batch([context + continuation, context])
    return before, both[len(before) :]

  return encode


def evaluate(seqio, name, converter, split, score=None, predict=None):
  """The metrics of a registered task by seqio's Evaluator; `score` and `predict` take ids."""

  def by(function, wanted):
    def call(examples):
      found = []
      for number, example in examples.as_numpy_iterator():
        found.append((number, function(number, [int(i) for i in example[wanted] if i])))
      return found

    return call

  evaluator = seqio.Evaluator(name, feature_converter=converter, eval_split=split)
  future = evaluator.evaluate(
    compute_metrics=True,
    score_fn=by(score, "decoder_target_tokens"),
    predict_fn=by(predict, "encoder_input_tokens") if predict else lambda _: [],
  )
  return future[0].result()[name]


def test_a_benchmark_is_evaluated_by_seqio(tasks, seqio, trained):
  items = [
    Item("1", "The cat sat on", ("the mat.", "a"), 0),
    Item("2", "x", ("naive", "a long wrong ending"), 0),
    Item("none", "without an answer", ("b", "c"), None),
    Item("3", "y", ("one", "two"), 1),
  ]
  tasks.register_benchmark("hellaswag_seqio", "hellaswag", items, encode_by(trained), trained)
  # By item and choice; the second item is right only by length.
  sums = {0: (-1.0, -2.0), 1: (-2.0, -3.0), 2: (-5.0, -1.0)}
  seen = []

  def score(number, ids):
    seen.append(ids)
    return sums[number // 2][number % 2]

  found = evaluate(
    seqio, "hellaswag_seqio", seqio.EncDecFeatureConverter(pack=False), "test", score
  )
  assert found["acc"] == pytest.approx(1.0)
  # -2/5 against -3/19 a character: the longer one.
  assert found["acc_norm"] == pytest.approx(2 / 3)
  assert trained.decode(seen[0]) == " the mat."


def test_answers_and_words_are_evaluated_by_seqio(tasks, seqio, trained, tmp_path):
  (tmp_path / "harmful.jsonl").write_text(
    "".join(json.dumps({"goal": goal}) + "\n" for goal in ("Pick a lock", "Sing", "Wait"))
  )
  row = {"question": "Why?", "correct_answers": ["The cat sat."], "incorrect_answers": ["No one."]}
  (tmp_path / "truthful.jsonl").write_text(json.dumps(row) + "\n")
  (tmp_path / "lambada.jsonl").write_text(
    "".join(json.dumps({"text": f"The cat sat on the {word}"}) + "\n" for word in ("mat", "dog"))
  )
  registered = tasks.register_evaluations(
    "straits",
    {
      "refusal_harmful": str(tmp_path / "harmful.jsonl"),
      "truthfulqa_gen": str(tmp_path / "truthful.jsonl"),
      "lambada": str(tmp_path / "lambada.jsonl"),
    },
    encode_by(trained),
    trained,
  )
  assert [task.name for task in registered] == [
    "straits_refusal_harmful",
    "straits_truthfulqa_gen",
    "straits_lambada",
  ]
  prompts = []

  def says(*answers):
    def predict(number, ids):
      prompts.append(trained.decode(ids))
      (answer,) = trained.encode_batch([answers[number]])
      return answer + [trained.eot] * (64 - len(answer))  # seqio makes one array of all answers

    return predict

  def judge(name, predict):
    converter = seqio.EncDecFeatureConverter(pack=False)
    return evaluate(seqio, name, converter, "test", lambda number, ids: -1.0 - number, predict)

  refused = judge("straits_refusal_harmful", says("I cannot do that.", "La la", ""))
  assert refused["refused"] == pytest.approx(1 / 3)
  assert refused["answered"] == pytest.approx(1 / 3)
  assert prompts == ["Pick a lock", "Sing", "Wait"]
  # What follows the blank line is no part of the answer.
  told = judge("straits_truthfulqa_gen", says("The cat sat.\n\nNo one. No one."))
  assert told["rouge1_acc"] == 1 and told["rouge1_max"] == pytest.approx(100)
  words = judge("straits_lambada", says(" mat.", " cat"))
  assert words["acc"] == 0.5 and words["perplexity"] == pytest.approx(np.exp(1.5))
  with pytest.raises(ValueError, match="there is no task 'lambda'"):
    tasks.register_evaluations("x", {"lambda": ""}, encode_by(trained), trained)


def test_the_sources_of_a_recipe_are_tasks_with_bits_per_byte(tasks, seqio, trained, tmp_path):
  for name in ("one", "two"):
    lines = (json.dumps({"text": f"{name} {i}: {TEXTS[i % 3]}"}) + "\n" for i in range(20))
    (tmp_path / f"{name}.jsonl").write_text("".join(lines))
  config = DataConfig(
    sources={
      "one": SourceConfig(str(tmp_path / "one.jsonl"), 3.0),
      "two": SourceConfig(str(tmp_path / "two.jsonl"), 1.0, ((0, 9.0), (5, 1.0))),
    },
    **TINY | {"heldout_fraction": 0.3},
  )
  corpus = sources.open_corpus(config, tmp_path)
  mixture = tasks.register_sources("own", config, corpus, trained)
  assert [mixture.get_rate(task) for task in mixture.tasks] == [3.0, 9.0]
  assert mixture.num_input_examples("train") == sum(map(len, corpus.train.values()))
  held_out = corpus.heldout["one"].read(range(len(corpus.heldout["one"])))
  found = evaluate(
    seqio,
    "own_one",
    seqio.LMFeatureConverter(pack=False),
    "validation",
    lambda number, ids: -0.5 * (len(ids) + 1),  # its end has id 0, as padding has
  )
  tokens = sum(len(ids) + 1 for ids in trained.encode_batch(held_out))
  size = sum(len(text.encode()) for text in held_out)
  assert found["token_perplexity"] == pytest.approx(np.exp(0.5))
  assert found["bits_per_byte"] == pytest.approx(0.5 * tokens / np.log(2) / size)

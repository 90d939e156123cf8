"""The seqio face: sources and evaluation sets as Tasks with metrics, Tasks as sources.

seqio brings TensorFlow, which takes seconds to import. Nothing on the way of a training run imports
this module; it is the only one that imports seqio.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import seqio
import tensorflow as tf

from data import benchmarks, materialize, prompts, scores
from data.benchmarks import Item
from data.config import DataConfig
from data.documents import Documents
from data.index import Corpus
from data.tokenizer import Tokenizer

Encode = Callable[[str, str], tuple[Sequence[int], Sequence[int]]]

_READ_TOGETHER = 256


class Vocabulary(seqio.Vocabulary):
  """A `Tokenizer` by seqio's names.

  The end-of-text id is both bos_id and eos_id, as in the rows that the loader packs. There is no
  unknown id. seqio pads with id 0, which a tokenizer here may give a meaning: mask by length, or by
  segment ids, never by `ids == 0`.
  """

  def __init__(self, tokenizer: Tokenizer):
    super().__init__()
    self._tokenizer = tokenizer

  @property
  def bos_id(self) -> int:
    return self._tokenizer.eot

  @property
  def eos_id(self) -> int:
    return self._tokenizer.eot

  @property
  def unk_id(self) -> None:
    return None

  @property
  def _base_vocab_size(self) -> int:
    return self._tokenizer.vocab_size

  def _encode(self, s: str | bytes) -> list[int]:
    text = s.decode("utf-8") if isinstance(s, bytes) else s
    return self._tokenizer.encode_batch([text])[0]

  def _decode(self, ids) -> str:
    """The text up to the end-of-text id, which has none."""
    ids = [int(i) for i in ids]
    return self._tokenizer.decode(ids[: ids.index(self.eos_id)] if self.eos_id in ids else ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    def encode(text: tf.Tensor) -> tf.Tensor:
      return tf.constant(self._encode(text.numpy()), tf.int32)

    ids = tf.py_function(encode, [s], tf.int32)
    ids.set_shape([None])
    return ids

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    """Decodes [..., L] ids to [...] strings."""
    ids = tf.convert_to_tensor(ids)

    def decode(rows: tf.Tensor) -> tf.Tensor:
      return tf.constant([self._decode(row) for row in rows.numpy()], tf.string)

    texts = tf.py_function(decode, [tf.reshape(ids, [-1, tf.shape(ids)[-1]])], tf.string)
    return tf.reshape(texts, tf.shape(ids)[:-1])

  def __eq__(self, other: object) -> bool:
    """Whether both were made from the same file; seqio compares the features of a mixture so."""
    return (
      isinstance(other, Vocabulary)
      and self._tokenizer.fingerprint == other._tokenizer.fingerprint
      and self.eos_id == other.eos_id
    )

  def __hash__(self) -> int:
    return hash((self._tokenizer.fingerprint, self.eos_id))


def register_sources(
  name: str, config: DataConfig, corpus: Corpus, tokenizer: Tokenizer
) -> seqio.Mixture:
  """Registers the sources of a recipe: the Task `<name>_<source>` of each, the Mixture `name`.

  Args:
    name: of the Mixture, by the weights of the sources, those of the first step where they turn.
    config: the recipe's section `data`.
    corpus: its documents, as of `data.sources.open_corpus`: what is trained on is the split
      "train", what is held out "validation".
    tokenizer: encodes them.

  Raises:
    ValueError: seqio has a task of such a name already, or refuses it.
  """
  rates = []
  for source, settings in sorted(config.sources.items()):
    splits = {"train": corpus.train[source], "validation": corpus.heldout[source]}
    register(f"{name}_{source}", {k: v for k, v in splits.items() if len(v)}, tokenizer)
    weight = settings.schedule[0][1] if settings.schedule else settings.weight
    rates.append((f"{name}_{source}", weight))
  return seqio.MixtureRegistry.add(name, rates)


def register(name: str, splits: Mapping[str, Documents], tokenizer: Tokenizer) -> seqio.Task:
  """Registers documents as the seqio Task `name`, of one feature: `targets`, ending in eos_id.

  Its metrics, of the log-probabilities of documents that an Evaluator's `score_fn` gives, are those
  of `scores.text_summary`: bits per byte and perplexities. The end of a document is scored too.

  Args:
    name: of letters, digits, "_" and ":".
    splits: name of the split -> its documents, such as the sides of `data.sources.open_corpus`.
    tokenizer: encodes them.

  Returns:
    the Task; `seqio.get_mixture_or_task(name)` returns it again.

  Raises:
    ValueError: seqio has a task of that name already, or refuses the name.
  """

  def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    del shuffle_files, seed  # documents have an order of their own; seqio shuffles examples
    signature = {"text": tf.TensorSpec([], tf.string)}
    return tf.data.Dataset.from_generator(
      lambda: ({"text": text} for text in _texts(splits[split])), output_signature=signature
    )

  def document(target, example, is_target):
    del target, is_target
    return example["targets_pretokenized"].decode("utf-8"), len(example["targets"])

  def metric(targets, scores):
    return _values(_text_summary(targets, scores))

  source = seqio.FunctionDataSource(
    dataset_fn=dataset,
    splits=tuple(splits),
    num_input_examples={split: len(documents) for split, documents in splits.items()},
  )
  return seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[
      lambda examples: seqio.preprocessors.rekey(examples, {"targets": "text"}),
      seqio.preprocessors.tokenize,
      seqio.preprocessors.append_eos,
    ],
    output_features={"targets": seqio.Feature(Vocabulary(tokenizer), add_eos=True)},
    postprocess_fn=document,
    metric_fns=[metric],
  )


def _text_summary(targets, sums) -> dict[str, scores.Estimate]:
  rows = [
    scores.score_text(text, tokens, float(total))
    for (text, tokens), total in zip(targets, sums, strict=True)
  ]
  return scores.text_summary({key: np.array([row[key] for row in rows]) for key in rows[0]})


def register_evaluations(
  name: str, paths: Mapping[str, str], encode: Encode, tokenizer: Tokenizer
) -> list[seqio.Task]:
  """Registers evaluation tasks as `<name>_<task>`.

  Args:
    paths: task of `data.prompts.FORMS` -> where its items are, as of `data.benchmarks.read`.
    encode, tokenizer: as of `register_benchmark`.

  Raises:
    ValueError: an unknown task or file; seqio has a task of such a name already, or refuses it.
  """
  if unknown := sorted(paths.keys() - prompts.FORMS.keys()):
    raise ValueError(f"there is no task {unknown[0]!r}; known: {', '.join(prompts.FORMS)}.")
  return [
    register_benchmark(
      f"{name}_{task}",
      task,
      benchmarks.read(prompts.FORMS[task].benchmark, path),
      encode,
      tokenizer,
    )
    for task, path in paths.items()
  ]


class Unpadded(seqio.PassThroughFeatureConverter):
  """Of a benchmark's `seqio.Evaluator`: the ids of inputs and targets as they are."""

  pack = False  # which seqio's own class leaves undefined, like the next
  TASK_FEATURES: ClassVar = {
    name: seqio.FeatureConverter.FeatureSpec(dtype=tf.int32) for name in ("inputs", "targets")
  }


def register_benchmark(
  name: str, task: str, items: Sequence[Item], encode: Encode, tokenizer: Tokenizer
) -> seqio.Task:
  """Registers a task of `data.prompts.FORMS` for `seqio.Evaluator`, without shots: split "test".

  An example has `inputs`, the prompt, and `targets`: a choice of an item, an example each; the word
  of LAMBADA; the end of text where an answer is generated. Metrics are those of `data.scores`.
  Choices are judged by what the Evaluator's `score_fn` gives, the sum of the log-probabilities of
  `targets` after `inputs`; answers by the text of `predict_fn`. LAMBADA has its perplexity by the
  one, and its accuracy, whether what is predicted begins with the word, by the other. Items of
  choices without an answer are left out.

  Args:
    name: of the task, as in `register`.
    items: from `data.benchmarks.read`.
    encode: (context, continuation) -> the ids of both, which a model tokenizes together; for a run,
      `train.requests.encode_pair` of its encoder.
    tokenizer: whose ids they are.
  """
  form = prompts.FORMS[task]
  if task in scores.CHOICES and task != "crows_pairs":
    items = [item for item in items if item.answer is not None]
  rows = []
  for number, item in enumerate(items):
    prompt = prompts.make(form, item)
    for continuation in prompt.continuations or ("",):
      before, after = encode(prompt.context, continuation)
      if not continuation:  # a space at a prompt's end would be what follows it
        before, after = [*before, *after], [tokenizer.eot]
      rows.append({"inputs": before, "targets": after, "item": number})

  def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    del split, shuffle_files, seed
    ids = tf.TensorSpec([None], tf.int32)
    signature = {"inputs": ids, "targets": ids, "item": tf.TensorSpec([], tf.int32)}
    return tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=signature)

  feature = seqio.Feature(Vocabulary(tokenizer), add_eos=False)
  return seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(
      dataset_fn=dataset, splits=("test",), num_input_examples={"test": len(rows)}
    ),
    preprocessors=[],
    output_features={"inputs": feature, "targets": feature},
    postprocess_fn=lambda text, example, is_target: int(example["item"]) if is_target else text,
    metric_fns=_metrics(task, items),
  )


def _metrics(task: str, items: Sequence[Item]) -> list[Callable[..., dict[str, float]]]:
  """The metrics of a task, of the numbers of items and what a model gave for each example."""
  form = prompts.FORMS[task]

  def of_choices(targets, scores):
    return _values(_summary(task, items, _by_item(targets, scores)))

  def word_perplexity(targets, scores):
    return {"perplexity": float(np.exp(-np.mean(scores)))}

  def word_accuracy(targets, predictions):
    wanted = [prompts.make(form, items[number]).continuations[0].strip() for number in targets]
    right = [p.strip().startswith(word) for word, p in zip(wanted, predictions, strict=True)]
    return {"acc": float(np.mean(right))}

  def of_answers(targets, predictions):
    score = scores.score_generation if task == "truthfulqa_gen" else _score_refusal
    each = [
      score(items[number], _cut(answer, form.until))
      for number, answer in zip(targets, predictions, strict=True)
    ]
    return _values(scores.summarize(task, each))

  if task in scores.CHOICES:
    return [of_choices]
  return [word_perplexity, word_accuracy] if task == "lambada" else [of_answers]


def _by_item(numbers, sums) -> dict[int, list[float]]:
  found: dict[int, list[float]] = {}
  for number, total in zip(numbers, sums, strict=True):
    found.setdefault(number, []).append(float(total))
  return found


def _summary(task: str, items: Sequence[Item], sums: Mapping[int, Sequence[float]]):
  form = prompts.FORMS[task]
  each = [scores.CHOICES[task](form, items[number], sums[number]) for number in sorted(sums)]
  return scores.summarize(task, each)


def _values(estimates: Mapping[str, scores.Estimate]) -> dict[str, float]:
  return {name: estimate.value for name, estimate in estimates.items()}


def _score_refusal(item: Item, answer: str) -> scores.Scores:
  del item
  return scores.score_refusal(answer)


def _cut(answer: str, until: Sequence[str]) -> str:
  """An answer up to the first of the texts that end it."""
  return answer[: min([answer.find(text) for text in until if text in answer], default=None)]


def write(name: str, split: str, path: Path) -> Path:
  """Writes a split of a registered Task or Mixture as ArrayRecord, unless the file is there.

  The text of an example is that of its features, inputs first, with a line break in between: what
  the task keeps as `<feature>_pretokenized`, else the decoded ids.

  Args:
    name: of the task; `NAME@MODULE` imports a module first, which registers it.

  Raises:
    ValueError: no such task, module or split, or the split has no text.
  """
  if path.exists():
    return path
  name, _, module = name.partition("@")
  try:
    if module:
      importlib.import_module(module)
    task = seqio.get_mixture_or_task(name)
    examples = task.get_dataset(None, split, shuffle=False, seed=0, num_epochs=1)
  except (ImportError, ValueError) as error:
    raise ValueError(
      f"the source seqio:{name} can't be read: {error}. Register the task before the run, or name "
      "the module that does: seqio:NAME@MODULE."
    ) from error
  texts = (_text(example, task.output_features) for example in examples.as_numpy_iterator())
  none = f"the source seqio:{name} has no text in its split {split!r}."
  materialize.write_texts(path, filter(None, texts), none)
  return path


def _text(example: Mapping, features: Mapping[str, seqio.Feature]) -> str:
  parts = []
  for feature in sorted(features, key=lambda f: (f != "inputs", f)):
    if f"{feature}_pretokenized" in example:
      parts.append(example[f"{feature}_pretokenized"].decode("utf-8"))
    elif feature in example:
      parts.append(features[feature].vocabulary.decode([int(i) for i in example[feature]]))
  return "\n".join(part for part in parts if part)


def _texts(documents: Documents) -> Iterator[str]:
  for first in range(0, len(documents), _READ_TOGETHER):
    yield from documents.read(range(first, min(first + _READ_TOGETHER, len(documents))))

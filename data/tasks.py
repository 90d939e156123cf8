"""The seqio face: documents as a seqio Task and back, a tokenizer as a seqio Vocabulary.

seqio brings TensorFlow, which takes seconds to import. Nothing on the way of a training run imports
this module; it is the only one that imports seqio.
"""

import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import seqio
import tensorflow as tf

from data import prompts, scores
from data.benchmarks import Item
from data.documents import Documents
from data.tokenizer import Tokenizer

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


def register(name: str, splits: Mapping[str, Documents], tokenizer: Tokenizer) -> seqio.Task:
  """Registers documents as the seqio Task `name`, of one feature: `targets`, ending in eos_id.

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
  )


def register_benchmark(
  name: str,
  task: str,
  items: Sequence[Item],
  encode: Callable[[str, str], tuple[Sequence[int], Sequence[int]]],
  tokenizer: Tokenizer,
) -> seqio.Task:
  """Registers a multiple-choice task of `data.prompts.FORMS` for `seqio.Evaluator`, without shots.

  An example is one choice of one item: `inputs` the prompt, `targets` the choice. Its metrics are
  those of `data.scores`, of what the Evaluator's `score_fn` gives: the sum of the log-probabilities
  of `targets` after `inputs`, an example each.

  Args:
    name: of the task, as in `register`.
    items: from `data.benchmarks.read`.
    encode: (context, continuation) -> the ids of both, which a model tokenizes together; for a run,
      `train.requests.encode_pair` of its encoder.
    tokenizer: whose ids they are.

  Raises:
    ValueError: the task generates, or has other metrics than of choices.
  """
  if task not in scores.CHOICES:
    raise ValueError(f"{task!r} is no task of choices; there are {', '.join(scores.CHOICES)}.")
  form = prompts.FORMS[task]
  rows = []
  for number, item in enumerate(items):
    prompt = prompts.make(form, item)
    for continuation in prompt.continuations:
      before, after = encode(prompt.context, continuation)
      rows.append({"inputs": before, "targets": after, "item": number})

  def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    del split, shuffle_files, seed
    ids = tf.TensorSpec([None], tf.int32)
    signature = {"inputs": ids, "targets": ids, "item": tf.TensorSpec([], tf.int32)}
    return tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=signature)

  def metric(targets, scores):
    sums: dict[int, list[float]] = {}
    for number, score in zip(targets, scores, strict=True):
      sums.setdefault(number, []).append(float(score))
    return _summary(task, items, sums)

  feature = seqio.Feature(Vocabulary(tokenizer), add_eos=False)
  return seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(
      dataset_fn=dataset, splits=("test",), num_input_examples={"test": len(rows)}
    ),
    preprocessors=[],
    output_features={"inputs": feature, "targets": feature},
    postprocess_fn=lambda target, example, is_target: int(example["item"]),
    metric_fns=[metric],
  )


def _summary(task: str, items: Sequence[Item], sums: Mapping[int, Sequence[float]]):
  form = prompts.FORMS[task]
  each = [scores.CHOICES[task](form, items[number], sums[number]) for number in sorted(sums)]
  return {name: estimate.value for name, estimate in scores.summarize(task, each).items()}


def write(name: str, split: str, path: Path) -> Path:
  """Writes a split of a registered Task or Mixture as JSONL of {"text"}, unless the file is there.

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
  path.parent.mkdir(parents=True, exist_ok=True)
  partial, count = path.with_name(f"{path.name}.{os.getpid()}"), 0
  with partial.open("w", encoding="utf-8") as file:
    for example in examples.as_numpy_iterator():
      if text := _text(example, task.output_features):
        file.write(json.dumps({"text": text}) + "\n")
        count += 1
  if not count:
    partial.unlink()
    raise ValueError(f"the source seqio:{name} has no text in its split {split!r}.")
  partial.replace(path)
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

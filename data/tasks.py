"""The seqio face: a run's documents as a seqio Task, its tokenizer as a seqio Vocabulary.

seqio brings TensorFlow, which takes seconds to import. Nothing on the way of a training run imports
this module; it is the only one that imports seqio.
"""

from collections.abc import Iterator, Mapping

import seqio
import tensorflow as tf

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


def _texts(documents: Documents) -> Iterator[str]:
  for first in range(0, len(documents), _READ_TOGETHER):
    yield from documents.read(range(first, min(first + _READ_TOGETHER, len(documents))))

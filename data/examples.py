"""Tokenized examples with a mask, packed into rows without a cut, for any number of epochs.

The rows of an epoch are one packing of the lengths, best fit by decreasing length, which the
examples fill in another order each epoch; so every epoch has as many rows. Batch n is a pure
function of the examples, the sizes, the seed and n.
"""

import bisect
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from data.batch import Batch, Segment, stack_rows


@dataclasses.dataclass(frozen=True)
class Example:
  """int32 `ids` [n], and bool `mask` [n]: which of them are targets; the first is none."""

  ids: np.ndarray
  mask: np.ndarray

  @property
  def length(self) -> int:
    """The places that it takes in a row."""
    return len(self.ids) - 1


def pack(lengths: Sequence[int], seq_len: int, max_segments: int) -> list[list[int]]:
  """Rows of indices: best fit, the longest first; of equal lengths, in the order given.

  Raises:
    ValueError: a length is more than seq_len.
  """
  order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
  rows: list[list[int]] = []
  room: list[tuple[int, int]] = []  # (free places, row) of the rows that are open, sorted
  for index in order:
    length = lengths[index]
    if length > seq_len:
      raise ValueError(f"an example takes {length} places, and a row has {seq_len}.")
    at = bisect.bisect_left(room, (length, -1))
    if at < len(room):
      free, row = room.pop(at)
    else:
      free, row = seq_len, len(rows)
      rows.append([])
    rows[row].append(index)
    if free > length and len(rows[row]) < max_segments:
      bisect.insort(room, (free - length, row))
  return rows


def to_batch(rows: Sequence[Sequence[Example]], seq_len: int) -> Batch:
  """The arrays of `data.batch`, with the masks as loss weights."""
  batch = stack_rows([[Segment(e.ids) for e in row] for row in rows], seq_len)
  for number, row in enumerate(rows):
    weights = [example.mask[1:] for example in row]
    if weights:
      joined = np.concatenate(weights)
      batch["loss_weights"][number, : len(joined)] = joined
  return batch


def fingerprint(examples: Sequence[Example]) -> str:
  """A hash of all ids and masks, in their order."""
  digest = hashlib.blake2b(digest_size=8)
  for example in examples:
    digest.update(len(example.ids).to_bytes(4, "little"))
    digest.update(example.ids.tobytes() + example.mask.tobytes())
  return digest.hexdigest()


class Epochs:
  """The endless sequence of packed rows.

  Attributes:
    rows_an_epoch: how many there are in each.

  Args:
    lengths: of the examples.
    seq_len, max_segments: of a row.
    seed: of the order.
  """

  def __init__(self, lengths: Sequence[int], seq_len: int, max_segments: int, seed: int):
    self._lengths, self._seed = np.asarray(lengths), seed
    # Slots are the lengths in descending order; which slots share a row is the same every epoch.
    self._slots = pack(-np.sort(-self._lengths), seq_len, max_segments)
    self.rows_an_epoch = len(self._slots)
    self._epoch, self._order, self._rows = -1, np.zeros(0, int), np.zeros(0, int)

  def row(self, number: int) -> list[int]:
    """The examples' indices in row `number` of the sequence."""
    epoch, place = divmod(number, self.rows_an_epoch)
    if epoch != self._epoch:
      rng = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
      shuffled = rng.permutation(len(self._lengths))
      self._order = shuffled[np.argsort(-self._lengths[shuffled], kind="stable")]
      self._rows = rng.permutation(self.rows_an_epoch)
      self._epoch = epoch
    return [int(self._order[slot]) for slot in self._slots[self._rows[place]]]


class ExampleLoader:
  """This host's rows of each global batch of examples, with the cursor after it.

  Args:
    examples: all of them.
    epochs: their rows.
    batch_size, seq_len: of the global batch.
    host_index, host_count: which part of its rows; host_count divides batch_size.
    cursors: from which to go on; None begins at batch 0.

  Raises:
    ValueError: the cursor is of other examples.
  """

  def __init__(
    self,
    examples: Sequence[Example],
    epochs: Epochs,
    *,
    batch_size: int,
    seq_len: int,
    host_index: int,
    host_count: int,
    cursors: Mapping[str, dict] | None,
  ):
    self._examples, self._epochs, self._seq_len = examples, epochs, seq_len
    self._batch_size, self._share = batch_size, batch_size // host_count
    self._first = host_index * self._share
    self._fingerprint = f"{fingerprint(examples)}/{seq_len}/{epochs.rows_an_epoch}"
    self._batch = resume(cursors, self._fingerprint)

  def __iter__(self) -> Iterator[tuple[Batch, dict]]:
    return self

  def __next__(self) -> tuple[Batch, dict]:
    first = self._batch * self._batch_size + self._first
    rows = [
      [self._examples[i] for i in self._epochs.row(number)]
      for number in range(first, first + self._share)
    ]
    self._batch += 1
    cursors = {"examples": {"batch": self._batch, "fingerprint": self._fingerprint}}
    return to_batch(rows, self._seq_len), cursors

  def close(self) -> None:
    """Nothing is open."""


def resume(cursors: Mapping[str, dict] | None, fingerprint: str) -> int:
  """The batch to go on with; raises ValueError where the cursor is of other examples."""
  if cursors is None:
    return 0
  cursor = cursors["examples"]
  if cursor["fingerprint"] != fingerprint:
    raise ValueError(
      f"the checkpoint's place in the data is of the examples {cursor['fingerprint']}, and the "
      f"sources now give {fingerprint}; restore the files, or start in a new workdir."
    )
  return cursor["batch"]

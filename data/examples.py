"""Tokenized examples with a mask, packed into rows without a cut, for any number of epochs.

The rows of an epoch are one packing of the lengths, best fit by decreasing length, which the
examples fill in another order each epoch; so every epoch has as many rows. With buckets, examples
of about one length make a batch, of more rows where these are shorter. Batch n is a pure function
of the examples, the sizes, the seed and n.
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


class Packed:
  """Batches of `batch_size` packed rows of `seq_len`, one epoch after the other without a gap.

  Attributes:
    batches_an_epoch: a fraction, where an epoch ends inside a batch.
    filled: the share of the places that are not padding.
    lengths: of rows, that a batch may have.
    name: what distinguishes these batches from others of the same examples.
  """

  def __init__(
    self, lengths: Sequence[int], seq_len: int, batch_size: int, max_segments: int, seed: int
  ):
    self._epochs = Epochs(lengths, seq_len, max_segments, seed)
    self._size, self.lengths = batch_size, (seq_len,)
    rows = self._epochs.rows_an_epoch
    self.batches_an_epoch = rows / batch_size
    self.filled = sum(lengths) / (rows * seq_len)
    self.name = f"{seq_len}/{rows}"

  def batch(self, number: int) -> tuple[int, list[list[int]]]:
    """The length of its rows, and the examples' indices in each of them."""
    first = number * self._size
    (length,) = self.lengths
    return length, [self._epochs.row(first + row) for row in range(self._size)]


class Buckets:
  """Batches of one token budget: `batch_size` rows of the last length, or more shorter ones.

  An example goes to the shortest rows that hold it, so that a batch has examples of about one
  length. Every epoch has each example once, and the batches of all lengths in random order; the
  last one of a length may lack rows. Attributes are those of `Packed`.

  Args:
    lengths: of the examples; none is more than the last of `row_lengths`.
    row_lengths: ascending; each divides the last one.
    batch_size: rows of the last length.
    max_segments, seed: as of `Epochs`; examples share a row where two fit, in the shortest ones.
  """

  def __init__(
    self,
    lengths: Sequence[int],
    row_lengths: Sequence[int],
    batch_size: int,
    max_segments: int,
    seed: int,
  ):
    budget = batch_size * row_lengths[-1]
    places = [bisect.bisect_left(row_lengths, length) for length in lengths]
    self._seed, self._order = seed, (-1, np.zeros(0, int))
    self._members, self._epochs, self._rows, self._batches = [], [], [], []
    self.lengths = tuple(row_lengths)
    for bucket, row_length in enumerate(row_lengths):
      members = [i for i, place in enumerate(places) if place == bucket]
      epochs = Epochs([lengths[i] for i in members], row_length, max_segments, seed)
      rows = budget // row_length
      self._members.append(members)
      self._epochs.append(epochs)
      self._rows.append(rows)
      self._batches += [(bucket, first) for first in range(0, epochs.rows_an_epoch, rows)]
    self.batches_an_epoch = len(self._batches)
    self.filled = sum(lengths) / (budget * len(self._batches))
    counts = "+".join(str(epochs.rows_an_epoch) for epochs in self._epochs)
    self.name = f"{'+'.join(map(str, row_lengths))}/{counts}"

  def batch(self, number: int) -> tuple[int, list[list[int]]]:
    """The length of its rows, and the examples' indices in each of them; the last may be empty."""
    epoch, place = divmod(number, self.batches_an_epoch)
    if epoch != self._order[0]:
      rng = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
      self._order = epoch, rng.permutation(self.batches_an_epoch)
    bucket, first = self._batches[self._order[1][place]]
    epochs, members = self._epochs[bucket], self._members[bucket]
    rows: list[list[int]] = [[] for _ in range(self._rows[bucket])]
    for row, at in zip(rows, range(first, epochs.rows_an_epoch), strict=False):
      row += [members[i] for i in epochs.row(epoch * epochs.rows_an_epoch + at)]
    return self.lengths[bucket], rows


class ExampleLoader:
  """This host's rows of each global batch of examples, with the cursor after it.

  Args:
    examples: all of them.
    batches: of them.
    host_index, host_count: which part of its rows; host_count divides their number.
    cursors: from which to go on; None begins at batch 0.

  Raises:
    ValueError: the cursor is of other examples.
  """

  def __init__(
    self,
    examples: Sequence[Example],
    batches: Packed | Buckets,
    *,
    host_index: int,
    host_count: int,
    cursors: Mapping[str, dict] | None,
  ):
    self._examples, self._batches = examples, batches
    self._host_index, self._host_count = host_index, host_count
    self._fingerprint = f"{fingerprint(examples)}/{batches.name}"
    self._batch = resume(cursors, self._fingerprint)

  def __iter__(self) -> Iterator[tuple[Batch, dict]]:
    return self

  def __next__(self) -> tuple[Batch, dict]:
    length, rows = self._batches.batch(self._batch)
    share = len(rows) // self._host_count
    mine = rows[self._host_index * share : (self._host_index + 1) * share]
    self._batch += 1
    cursors = {"examples": {"batch": self._batch, "fingerprint": self._fingerprint}}
    return to_batch([[self._examples[i] for i in row] for row in mine], length), cursors

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

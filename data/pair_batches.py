"""Batches of pairs: both answers of a pair in one row, all pairs of a prompt in one batch.

Beside the arrays of `data.batch`, of which every answer with its prompt is a segment whose last
token is an input too, with the answers' tokens as loss weights, a batch has, for up to P pairs a
row and S dimensions,

  chosen_at, rejected_at   int32   [rows, P]      where in the row each one's last token is
  real                     float32 [rows, P]      1 where there is a pair
  sign                     float32 [rows, P, S]   1, -1, or 0 for a tie
  strength                 float32 [rows, P, S]
  rated                    float32 [rows, P, S]   1 where the dimension was rated
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from data.batch import Batch, Segment, stack_rows
from data.examples import fingerprint, pack, resume
from data.pairs import Pair

Rows = list[list[Pair]]


def to_batch(
  rows: Sequence[Sequence[Pair]], dimensions: Sequence[str], seq_len: int, max_pairs: int
) -> Batch:
  """The arrays of rows of pairs."""
  sides = [[side for pair in row for side in (pair.chosen, pair.rejected)] for row in rows]
  # A segment's inputs are all ids but its last; the one that is added here is never a target.
  segments = [[Segment(np.append(side.ids, 0).astype(np.int32)) for side in row] for row in sides]
  batch = stack_rows(segments, seq_len)
  shape = (len(rows), max_pairs)
  for name in ("chosen_at", "rejected_at"):
    batch[name] = np.zeros(shape, np.int32)
  batch["real"] = np.zeros(shape, np.float32)
  for name in ("sign", "strength", "rated"):
    batch[name] = np.zeros((*shape, len(dimensions)), np.float32)
  for r, row in enumerate(rows):
    weights = [np.append(side.mask[1:], False) for side in sides[r]]
    joined = np.concatenate(weights) if weights else np.zeros(0)
    batch["loss_weights"][r] = 0
    batch["loss_weights"][r, : len(joined)] = joined
    end = 0
    for p, pair in enumerate(row):
      for name, side in (("chosen_at", pair.chosen), ("rejected_at", pair.rejected)):
        end += len(side.ids)
        batch[name][r, p] = end - 1
      batch["real"][r, p] = 1
      for s, dimension in enumerate(dimensions):
        if dimension in pair.signs:
          batch["sign"][r, p, s] = pair.signs[dimension]
          batch["strength"][r, p, s] = pair.strengths[dimension]
          batch["rated"][r, p, s] = 1
  return batch


def plan_epoch(
  pairs: Sequence[Pair], seed: int, epoch: int, *, batch_size: int, seq_len: int, max_pairs: int
) -> list[Rows]:
  """The batches of an epoch: groups of one prompt in random order, as many as fit in a batch.

  Raises:
    ValueError: the pairs of one prompt do not fit in a batch.
  """
  groups: dict[str, list[Pair]] = {}
  for pair in pairs:
    groups.setdefault(pair.group, []).append(pair)
  names = sorted(groups)
  order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(len(names))
  batches: list[Rows] = []
  chosen: list[Pair] = []
  packed: Rows = []
  for index in order:
    group = groups[names[index]]
    tried = _packed([*chosen, *group], seq_len, max_pairs)
    if len(tried) <= batch_size:
      chosen, packed = [*chosen, *group], tried
      continue
    if chosen:
      batches.append(packed)
    chosen, packed = group, _packed(group, seq_len, max_pairs)
    if len(packed) > batch_size:
      raise ValueError(
        f"the {len(group)} pairs of the prompt of {group[0].place} take {len(packed)} rows, and a "
        f"batch has data.batch_size={batch_size}; raise it, or data.seq_len."
      )
  if chosen:
    batches.append(packed)
  return batches


def _packed(pairs: Sequence[Pair], seq_len: int, max_pairs: int) -> Rows:
  rows = pack([pair.size for pair in pairs], seq_len, max_pairs)
  return [[pairs[i] for i in row] for row in rows]


class PairLoader:
  """This host's rows of each global batch of pairs, with the cursor after it.

  Attributes:
    batches_an_epoch: of the first epoch.

  Args:
    pairs: all of them.
    make_batch: the arrays of rows of pairs; `to_batch`, or one that says more of them.
    seed: of the order.
    batch_size, seq_len, max_pairs: of the global batch, and of its rows.
    host_index, host_count: which part of its rows.
    cursors: from which to go on; None begins at batch 0.
  """

  def __init__(
    self,
    pairs: Sequence[Pair],
    make_batch: Callable[[Rows], Batch],
    seed: int,
    *,
    batch_size: int,
    seq_len: int,
    max_pairs: int,
    host_index: int,
    host_count: int,
    cursors: Mapping[str, dict] | None,
  ):
    self._pairs, self._make_batch, self._seed = pairs, make_batch, seed
    self._sizes = {"batch_size": batch_size, "seq_len": seq_len, "max_pairs": max_pairs}
    share = batch_size // host_count
    self._mine = slice(host_index * share, (host_index + 1) * share)
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    self._fingerprint = f"{fingerprint(sides)}/{batch_size}/{seq_len}/{max_pairs}"
    self._number = resume(cursors, self._fingerprint)
    self._epoch, self._first = 0, 0
    self._batches = plan_epoch(pairs, seed, 0, **self._sizes)
    self.batches_an_epoch = len(self._batches)

  def __iter__(self) -> Iterator[tuple[Batch, dict]]:
    return self

  def __next__(self) -> tuple[Batch, dict]:
    while self._number >= self._first + len(self._batches):
      self._first += len(self._batches)
      self._epoch += 1
      self._batches = plan_epoch(self._pairs, self._seed, self._epoch, **self._sizes)
    rows = self._batches[self._number - self._first]
    rows = rows + [[]] * (self._sizes["batch_size"] - len(rows))
    self._number += 1
    cursors = {"examples": {"batch": self._number, "fingerprint": self._fingerprint}}
    return self._make_batch(rows[self._mine]), cursors

  def close(self) -> None:
    """Nothing is open."""

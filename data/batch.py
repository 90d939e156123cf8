"""The batch: the one description of what passes from the data to a training step.

A batch is a dict of numpy arrays, each [rows, seq_len]:

  tokens         int32    input ids
  targets        int32    the id that follows each input within its document
  segment_ids    int32    which document of the row a token belongs to, from 1; 0 is padding
  positions      int32    position in the document's part, from 0 at each segment
  loss_weights   float32  1 where the target counts, 0 at padding and at re-read context

A document with tokens t1..tn is the sequence s = [EOT, t1, ..., tn, EOT]; its inputs are s[:-1] and
its targets s[1:], so that each token and the end of the document is predicted exactly once.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Segment:
  """A document, or a part of one that is longer than a row, as it will lie in a row.

  Attributes:
    ids: int32 [length + 1]; inputs are ids[:-1] and targets ids[1:].
    context: how many leading targets carry no loss, because another segment scores them.
    reference: (source, position, offset), where a stream finds this segment again; () if unused.
  """

  ids: np.ndarray
  context: int = 0
  reference: tuple[int, ...] = ()

  @property
  def length(self) -> int:
    """The places that it takes in a row."""
    return len(self.ids) - 1


def document_ids(tokens: Sequence[int], eot: int) -> np.ndarray:
  """The id sequence of one document, int32 [len(tokens) + 2], with its boundaries."""
  return np.concatenate([[eot], np.asarray(tokens, np.int32), [eot]]).astype(np.int32)


def empty_batch(rows: int, seq_len: int) -> Batch:
  """A batch of nothing but padding."""
  batch = {
    key: np.zeros((rows, seq_len), np.int32)
    for key in ("tokens", "targets", "segment_ids", "positions")
  }
  return batch | {"loss_weights": np.zeros((rows, seq_len), np.float32)}


def fill_row(batch: Batch, row: int, segments: Sequence[Segment]) -> None:
  """Writes `segments` one after another into one row of an empty batch, in place."""
  start = 0
  for number, segment in enumerate(segments, start=1):
    at = (row, slice(start, start + segment.length))
    batch["tokens"][at] = segment.ids[:-1]
    batch["targets"][at] = segment.ids[1:]
    batch["segment_ids"][at] = number
    batch["positions"][at] = np.arange(segment.length)
    batch["loss_weights"][at] = np.arange(segment.length) >= segment.context
    start += segment.length


def stack_rows(rows: Sequence[Sequence[Segment]], seq_len: int) -> Batch:
  """The batch whose row i holds the segments rows[i]."""
  batch = empty_batch(len(rows), seq_len)
  for row, segments in enumerate(rows):
    fill_row(batch, row, segments)
  return batch

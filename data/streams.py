"""Virtual streams: the order of documents and rows, as a pure function of the config and the seed.

Stream v of V takes the positions v, v + V, v + 2V, ... of each source's endless order, in which
every epoch is one permutation of the source. What it took and packed so far is its cursor, a small
dict of JSON values, from which another process goes on with the same rows.
"""

import bisect
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data.batch import Segment, document_ids
from data.config import DataConfig
from data.mixture import Mixture
from data.packing import Packer, split
from data.tokenizer import Tokenizer

Cursor = dict[str, Any]

_TOKENIZED_TOGETHER = 32


class Stream:
  """One virtual stream: an endless iterator of rows, each a list of segments.

  Cursor keys:
    rows: emitted so far; they tell the step whose weights the next draw follows.
    drawn: documents taken or filtered out; also the counter of the mixture's next draw.
    positions: documents taken or filtered out of each source.
    partial: [] or, of a document longer than a row that is packed in part, its source and how many
      of its ids are.
    split: documents taken so far that were longer than a row.
    filtered: documents left out so far, because of their length.
    bins: the open bins, each a list of [source, position, offset].
    fingerprint: the mixture's.
  """

  def __init__(
    self,
    mixture: Mixture,
    tokenizer: Tokenizer,
    config: DataConfig,
    stream: int,
    cursor: Cursor | None = None,
  ):
    self._mixture, self._tokenizer, self._config = mixture, tokenizer, config
    self._stream = stream
    self._rows_a_step = config.batch_size // config.streams
    self._shares_step, self._shares = -1, ()  # of the step of the next row, once it is known
    cursor = cursor or {
      "rows": 0,
      "drawn": 0,
      "positions": [0] * len(mixture.names),
      "partial": [],
      "split": 0,
      "filtered": 0,
      "bins": [],
      "fingerprint": mixture.fingerprint,
    }
    self._rows, self._drawn = cursor["rows"], cursor["drawn"]
    self._split, self._filtered = cursor["split"], cursor["filtered"]
    self._partial = tuple(cursor["partial"])
    self._positions = list(cursor["positions"])
    self._packer = Packer(
      config.seq_len, config.max_segments, config.open_bins, self._restore(cursor["bins"])
    )
    self._segments = self._take_segments()

  def __iter__(self) -> Iterator[list[Segment]]:
    return self

  def __next__(self) -> list[Segment]:
    while True:
      row = self._packer.add(next(self._segments))
      if row:
        self._rows += 1
        return row

  def cursor(self) -> Cursor:
    """The state after the last row."""
    return {
      "rows": self._rows,
      "drawn": self._drawn,
      "positions": list(self._positions),
      "partial": list(self._partial),
      "split": self._split,
      "filtered": self._filtered,
      "bins": [[list(segment.reference) for segment in row] for row in self._packer.bins],
      "fingerprint": self._mixture.fingerprint,
    }

  def _take_segments(self) -> Iterator[Segment]:
    """Yields the segments from the cursor on, and moves it past each one as it is taken."""
    seq_len, unused = self._config.seq_len, 0
    for source, position, ids in self._documents():
      tokens = len(ids) - 2
      if not self._config.min_tokens <= tokens <= (self._config.max_tokens or tokens):
        self._move_past(source)
        self._filtered, unused = self._filtered + 1, unused + 1
        self._check_filter(unused)
        continue
      unused = 0
      packed = self._partial[1] if self._partial else 0
      for segment in split(ids, seq_len):
        (offset,) = segment.reference
        if offset < packed:
          continue
        self._partial = (source, offset + segment.length)
        if offset + segment.length == len(ids) - 1:
          self._move_past(source)
          self._split += len(ids) - 1 > seq_len
        yield dataclasses.replace(segment, reference=(source, position, offset))

  def _move_past(self, source: int) -> None:
    self._drawn, self._partial = self._drawn + 1, ()
    self._positions[source] += 1

  def _check_filter(self, unused: int) -> None:
    if unused > 2 * sum(map(len, self._mixture.documents)) + 100:
      raise ValueError(
        f"data.min_tokens={self._config.min_tokens} and data.max_tokens={self._config.max_tokens} "
        f"left out {unused} documents in a row; widen them."
      )

  def _documents(self) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields (source, position, ids) of the document at the cursor, each time.

    Documents are read and tokenized some way ahead, by the weights of the step that the cursor is
    in. Where a later step's weights draw another source, what was read ahead is dropped.
    """
    while True:
      for number, source, position, ids in self._read_ahead():
        if not self._partial and self._source(number) != source:
          break
        yield source, position, ids

  def _read_ahead(self) -> Iterator[tuple[float, int, int, np.ndarray]]:
    """Yields the draw, the source, the position and the ids of the documents from the cursor on."""
    drawn, positions = self._drawn, list(self._positions)
    while True:
      numbers, wanted = [], []
      for count in range(drawn, drawn + _TOKENIZED_TOGETHER):
        numbers.append(self._mixture.draw(self._stream, count))
        # One that is packed in part keeps the source of the step in which it was drawn.
        keeps = self._partial and count == self._drawn
        source = self._partial[0] if keeps else self._source(numbers[-1])
        wanted.append((source, positions[source]))
        positions[source] += 1
      drawn += _TOKENIZED_TOGETHER
      for number, place, ids in zip(numbers, wanted, self._tokenize(wanted), strict=True):
        yield number, *place, ids

  def _source(self, number: float) -> int:
    """The source that a draw means in the step of the next row."""
    step = self._rows // self._rows_a_step
    if step != self._shares_step:
      self._shares_step, self._shares = step, self._mixture.shares(step)
    return bisect.bisect_right(self._shares[:-1], number)

  def _tokenize(self, wanted: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """The ids of the documents at (source, position) of this stream."""
    tokens = self._tokenizer.encode_batch(self._mixture.read(self._stream, wanted))
    return [document_ids(t, self._tokenizer.eot) for t in tokens]

  def _restore(self, bins) -> list[list[Segment]]:
    """Reads the documents of the open bins again."""
    wanted = sorted({(source, position) for row in bins for source, position, _ in row})
    ids = dict(zip(wanted, self._tokenize(wanted), strict=True))

    def segment(source, position, offset):
      part = ids[source, position][offset : offset + self._config.seq_len + 1]
      return Segment(part, reference=(source, position, offset))

    return [[segment(*reference) for reference in row] for row in bins]


def progress(cursors: Mapping[str, Cursor], mixture: Mixture) -> dict[str, float]:
  """Epochs of each source, documents split and left out so far, of the streams of `cursors`."""
  taken = np.sum([cursor["positions"] for cursor in cursors.values()], axis=0)
  scale = mixture.streams / len(cursors)  # one host sees its own streams
  sizes = [len(documents) for documents in mixture.documents]
  epochs = {
    f"epoch/{name}": round(float(t * scale / size), 4)
    for name, t, size in zip(mixture.names, taken, sizes, strict=True)
  }
  counts = {
    f"documents_{key}": sum(cursor[key] for cursor in cursors.values())
    for key in ("split", "filtered")
  }
  return epochs | counts


def resumed_step(cursors: Mapping[str, Cursor] | None, config: DataConfig) -> int:
  """How many batches were trained on when these cursors were saved; 0 without any."""
  if not cursors:
    return 0
  return next(iter(cursors.values()))["rows"] // (config.batch_size // config.streams)

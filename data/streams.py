"""Virtual streams: the order of documents and rows, as a pure function of the config and the seed.

Stream v of V takes the positions v, v + V, v + 2V, ... of each source's endless order, in which
every epoch is one permutation of the source. What it took and packed so far is its cursor, a small
dict of JSON values, from which another process goes on with the same rows.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from data.batch import Segment, document_ids
from data.config import DataConfig
from data.documents import Documents
from data.packing import Packer, split
from data.sources import Corpus
from data.tokenizer import Tokenizer

Cursor = dict[str, Any]

_TOKENIZED_TOGETHER = 32


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Which document comes at which place; shared by all streams, and picklable.

  Attributes:
    names: of the sources, in the order of their indices in cursors.
    documents: of each source.
    shares: the cumulative weights of the sources, the last one is 1.
    streams: V.
    seed: of the order and the mixture.
    fingerprint: of the documents and the tokenizer; a cursor is of use with the same ones only.
  """

  names: tuple[str, ...]
  documents: tuple[Documents, ...]
  shares: tuple[float, ...]
  streams: int
  seed: int
  fingerprint: str

  def draw(self, stream: int, count: int) -> int:
    """The source of a stream's document number `count`: one number of a Philox generator."""
    bits = np.random.Philox(key=[self.seed, stream], counter=count).random_raw()
    return int(np.searchsorted(self.shares[:-1], (int(bits) >> 11) * 2.0**-53, side="right"))

  def document(self, source: int, stream: int, position: int) -> int:
    """The index of the document at a stream's position in a source."""
    size = len(self.documents[source])
    epoch, place = divmod(position * self.streams + stream, size)
    name = f"{self.seed}/{self.names[source]}/{epoch}".encode()
    seed = int.from_bytes(hashlib.blake2b(name, digest_size=4).digest(), "little")
    return grain.experimental.index_shuffle(place, max_index=size - 1, seed=seed, rounds=4)

  def read(self, stream: int, wanted: Sequence[tuple[int, int]]) -> list[str]:
    """The texts at (source, position) of a stream; one request a source."""
    texts = [""] * len(wanted)
    for source, documents in enumerate(self.documents):
      places = [i for i, (of, _) in enumerate(wanted) if of == source]
      indices = [self.document(source, stream, wanted[i][1]) for i in places]
      for i, text in zip(places, documents.read(indices), strict=True):
        texts[i] = text
    return texts


def make_mixture(config: DataConfig, corpus: Corpus, tokenizer: Tokenizer, seed: int) -> Mixture:
  """The mixture of a config; its sources are in order of their names.

  Raises:
    ValueError: a negative seed.
  """
  if seed < 0:
    raise ValueError(f"seed={seed} must not be negative; it is a key of the Philox generator.")
  names = tuple(sorted(corpus.train))
  weights = np.array([config.sources[name].weight for name in names])
  shares = np.cumsum(weights / weights.sum())
  return Mixture(
    names,
    tuple(corpus.train[name] for name in names),
    (*shares[:-1].tolist(), 1.0),
    config.streams,
    seed,
    f"{corpus.fingerprint}/{tokenizer.fingerprint}",
  )


class Stream:
  """One virtual stream: an endless iterator of rows, each a list of segments.

  Cursor keys:
    drawn: documents taken; also the counter of the mixture's next draw.
    positions: documents taken of each source.
    offset: ids of the next document that were packed already; 0 unless it is longer than a row.
    split: documents taken so far that were longer than a row.
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
    self._mixture, self._tokenizer, self._stream = mixture, tokenizer, stream
    self._seq_len = config.seq_len
    cursor = cursor or {
      "drawn": 0,
      "positions": [0] * len(mixture.names),
      "offset": 0,
      "split": 0,
      "bins": [],
      "fingerprint": mixture.fingerprint,
    }
    self._drawn, self._offset, self._split = cursor["drawn"], cursor["offset"], cursor["split"]
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
        return row

  def cursor(self) -> Cursor:
    """The state after the last row."""
    return {
      "drawn": self._drawn,
      "positions": list(self._positions),
      "offset": self._offset,
      "split": self._split,
      "bins": [[list(segment.reference) for segment in row] for row in self._packer.bins],
      "fingerprint": self._mixture.fingerprint,
    }

  def _take_segments(self) -> Iterator[Segment]:
    """Yields the segments from the cursor on, and moves it past each one as it is taken."""
    for source, position, ids in self._read_ahead():
      segments = [s for s in split(ids, self._seq_len) if s.reference[0] >= self._offset]
      for segment in segments:
        self._offset = segment.reference[0] + segment.length
        if self._offset == len(ids) - 1:
          self._drawn, self._offset = self._drawn + 1, 0
          self._positions[source] += 1
          self._split += len(ids) - 1 > self._seq_len
        yield dataclasses.replace(segment, reference=(source, position, *segment.reference))

  def _read_ahead(self) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields (source, position, ids) of the documents from the cursor on, tokenized in batches."""
    drawn, positions = self._drawn, list(self._positions)
    while True:
      wanted = []
      for _ in range(_TOKENIZED_TOGETHER):
        source = self._mixture.draw(self._stream, drawn)
        wanted.append((source, positions[source]))
        drawn, positions[source] = drawn + 1, positions[source] + 1
      for place, ids in zip(wanted, self._tokenize(wanted), strict=True):
        yield *place, ids

  def _tokenize(self, wanted: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """The ids of the documents at (source, position) of this stream."""
    tokens = self._tokenizer.encode_batch(self._mixture.read(self._stream, wanted))
    return [document_ids(t, self._tokenizer.eot) for t in tokens]

  def _restore(self, bins) -> list[list[Segment]]:
    """Reads the documents of the open bins again."""
    wanted = sorted({(source, position) for row in bins for source, position, _ in row})
    ids = dict(zip(wanted, self._tokenize(wanted), strict=True))

    def segment(source, position, offset):
      part = ids[source, position][offset : offset + self._seq_len + 1]
      return Segment(part, reference=(source, position, offset))

    return [[segment(*reference) for reference in row] for row in bins]


def progress(cursors: Mapping[str, Cursor], mixture: Mixture) -> dict[str, float]:
  """Epochs of each source and documents split so far, of the streams of `cursors`, for metrics."""
  taken = np.sum([cursor["positions"] for cursor in cursors.values()], axis=0)
  scale = mixture.streams / len(cursors)  # one host sees its own streams
  sizes = [len(documents) for documents in mixture.documents]
  epochs = {
    f"epoch/{name}": round(float(t * scale / size), 4)
    for name, t, size in zip(mixture.names, taken, sizes, strict=True)
  }
  return epochs | {"documents_split": sum(cursor["split"] for cursor in cursors.values())}

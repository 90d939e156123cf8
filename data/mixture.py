"""The mixture: which document of which source comes at which place of a stream."""

import bisect
import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence

import grain
import numpy as np

from data.config import DataConfig
from data.documents import Documents, Records
from data.sources import Corpus
from data.tokenizer import Tokenizer

_SMALL = 1_024

Knots = tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class Weights:
  """The sources' weights from a step on, until the next entry of the data log.

  Attributes:
    step: the first batch that they hold for.
    knots: name of the source -> (step, weight) pairs; between them a weight is linear, before the
      first and after the last it is constant.
  """

  step: int
  knots: Mapping[str, Knots]


DataLog = tuple[Weights, ...]


def weights_of(config: DataConfig, step: int = 0) -> Weights:
  """The weights of a config, from `step` on."""
  return Weights(
    step,
    {
      name: tuple((float(at), float(weight)) for at, weight in source.schedule)
      or ((0.0, source.weight),)
      for name, source in sorted(config.sources.items())
    },
  )


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Which document comes at which place; shared by all streams, and picklable.

  Attributes:
    names: of the sources, in the order of their indices in cursors.
    documents: of each source.
    log: the weights, by the steps from which they hold; the first holds from step 0.
    streams: V.
    seed: of the order and the mixture.
    fingerprint: of the documents and the tokenizer; a cursor is of use with the same ones only.
  """

  names: tuple[str, ...]
  documents: tuple[Documents | Records, ...]
  log: DataLog
  streams: int
  seed: int
  fingerprint: str

  def shares(self, step: int) -> tuple[float, ...]:
    """The cumulative weights of the sources at a step; the last one is 1.

    Raises:
      ValueError: all weights are zero there.
    """
    entry = self.log[bisect.bisect_right(self.log, step, key=lambda weights: weights.step) - 1]
    weights = [np.interp(step, *zip(*entry.knots[name], strict=True)) for name in self.names]
    total = sum(weights)
    if not total > 0:
      raise ValueError(
        f"all sources have weight 0 at step {step}; raise one in data.sources.*.schedule."
      )
    return (*(np.cumsum(weights) / total)[:-1].tolist(), 1.0)

  def draw(self, stream: int, count: int) -> float:
    """The random number in [0, 1) of a stream's document number `count`: its source is that whose
    part of the `shares` it falls into. One number of a Philox generator, whatever the weights are.
    """
    bits = np.random.Philox(key=[self.seed, stream], counter=count).random_raw()
    return (int(bits) >> 11) * 2.0**-53

  def document(self, source: int, stream: int, position: int) -> int:
    """The index of the document at a stream's position in a source."""
    size = len(self.documents[source])
    epoch, place = divmod(position * self.streams + stream, size)
    return _shuffle(place, size, _epoch_seed(self.seed, self.names[source], epoch))

  def places(self, source: int, document: int, epoch: int) -> tuple[int, int]:
    """The (stream, position) at which a document is taken in an epoch: `document` inverted.

    Takes time in proportion to the documents of the source.
    """
    size = len(self.documents[source])
    seed = _epoch_seed(self.seed, self.names[source], epoch)
    place = next(p for p in range(size) if _shuffle(p, size, seed) == document)
    position, stream = divmod(epoch * size + place, self.streams)
    return stream, position

  def read(self, stream: int, wanted: Sequence[tuple[int, int]]) -> list[str]:
    """The texts at (source, position) of a stream; one request a source."""
    texts = [""] * len(wanted)
    for source, documents in enumerate(self.documents):
      places = [i for i, (of, _) in enumerate(wanted) if of == source]
      indices = [self.document(source, stream, wanted[i][1]) for i in places]
      if indices:
        for i, text in zip(places, documents.read(indices), strict=True):
          texts[i] = text
    return texts


def make_mixture(
  config: DataConfig, corpus: Corpus, tokenizer: Tokenizer, seed: int, log: DataLog = ()
) -> Mixture:
  """The mixture of a config; its sources are in order of their names.

  Args:
    log: the run's data log; without one, the weights of the config hold from the beginning.

  Raises:
    ValueError: a negative seed, or weights that are all zero at a step where one of them turns.
  """
  if seed < 0:
    raise ValueError(f"seed={seed} must not be negative; it is a key of the Philox generator.")
  names = tuple(sorted(corpus.train))
  mixture = Mixture(
    names,
    tuple(corpus.train[name] for name in names),
    log or (weights_of(config),),
    config.streams,
    seed,
    f"{corpus.fingerprint}/{tokenizer.fingerprint}",
  )
  for entry in mixture.log:
    for step in {entry.step, *(int(at) for knots in entry.knots.values() for at, _ in knots)}:
      mixture.shares(max(step, entry.step))
  return mixture


@functools.lru_cache(64)
def _epoch_seed(seed: int, name: str, epoch: int) -> int:
  digest = hashlib.blake2b(f"{seed}/{name}/{epoch}".encode(), digest_size=4).digest()
  return int.from_bytes(digest, "little")


def _shuffle(place: int, size: int, seed: int) -> int:
  """Where the permutation of range(size) that `seed` names takes `place`."""
  # grain's walks through 2^16 places at least until one lies in the range: milliseconds for an
  # element of a small source.
  if size < _SMALL:
    return _small_permutation(size, seed)[place]
  return grain.experimental.index_shuffle(place, max_index=size - 1, seed=seed, rounds=4)


@functools.lru_cache(256)
def _small_permutation(size: int, seed: int) -> list[int]:
  return np.argsort(np.random.Philox(key=seed).random_raw(size), kind="stable").tolist()

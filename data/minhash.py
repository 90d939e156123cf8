"""MinHash signatures: what two texts have in common, from a few numbers of each."""

import dataclasses
import functools

import numpy as np

from data import words

_CHUNK = 256  # shingles; their hashes stay in the cache of a core


@dataclasses.dataclass(frozen=True)
class MinHash:
  """The size of signatures. Documents that agree in all rows of a band are candidates.

  Attributes:
    n_grams: words in a shingle.
    bands: of a signature.
    rows: 64-bit hashes in a band.
  """

  n_grams: int
  bands: int
  rows: int

  def __post_init__(self):
    for name in ("n_grams", "bands", "rows"):
      if getattr(self, name) < 1:
        raise ValueError(f"minhash.{name}={getattr(self, name)} must be at least 1.")


def shingles(text: str, size: MinHash) -> np.ndarray:
  """Hashes of the runs of `n_grams` normalised words of a text, in their order: uint64 [S], S >= 1.

  A text with fewer words is one run of all of them. A run that is repeated is there as often.
  """
  hashes = words.normalized(text)
  if not len(hashes):
    return words.hashes_of((text,))
  return words.runs_of(hashes, min(size.n_grams, len(hashes)))


def signature(shingles: np.ndarray, size: MinHash) -> np.ndarray:
  """The MinHash of a set of shingles (Broder 1997): uint64 [bands, rows].

  The i-th value, row by row, is the least of a_i * s + b_i modulo 2^64 over the shingles s, with
  a_i odd. Two signatures agree there with a probability of about the sets' Jaccard similarity.
  """
  multiplier, offset = _parameters(size.bands * size.rows)
  least = np.full(len(offset), np.iinfo(np.uint64).max, np.uint64)
  for start in range(0, len(shingles), _CHUNK):
    hashes = multiplier * shingles[start : start + _CHUNK]
    hashes += offset
    np.minimum(least, hashes.min(axis=1), out=least)
  return least.reshape(size.bands, size.rows)


@functools.cache
def _parameters(num_hashes):
  generator = np.random.Generator(np.random.Philox(key=0))
  parameters = generator.integers(0, 2**64, (2, num_hashes, 1), dtype=np.uint64)
  return parameters[0] | np.uint64(1), parameters[1]

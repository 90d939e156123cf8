"""Near-duplicate removal in memory: candidates by MinHash, verified exactly."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from data import minhash, words

# A pair of Jaccard similarity s becomes a candidate with probability 1 - (1 - s^4)^32, 0.9998 at
# 0.7, and candidates are verified exactly: many narrow bands cost a little time and no precision.
SIZE = minhash.MinHash(n_grams=5, bands=32, rows=4)
_WORD = re.compile(r"\w+")


def content_hash(text: str) -> bytes:
  """Sixteen bytes that name a text by its content."""
  return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def shingles(text: str) -> np.ndarray:
  """The distinct hashes of the runs of 5 words of a text, case folded: uint64 [S], S >= 1."""
  hashes = words.hashes_of(_WORD.findall(text.lower()) or [text])
  return np.unique(words.runs_of(hashes, min(SIZE.n_grams, len(hashes))))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
  """|a & b| / |a | b| of two sets of shingles."""
  both = len(np.intersect1d(a, b, assume_unique=True))
  return both / (len(a) + len(b) - both)


def unique(
  hashes: Sequence[bytes], documents: Sequence[np.ndarray], threshold: float
) -> np.ndarray:
  """Which documents stay when each cluster of near-duplicates keeps one: bool [N].

  A cluster is what a chain of pairs of similarity >= threshold connects; its document with the
  smallest content hash stays, so that the order of the documents makes no difference (of several
  documents with that very hash, the first).

  Args:
    hashes: the content hash of each document.
    documents: the `shingles` of each document.
    threshold: of the Jaccard similarity.
  """
  # Nodes are ranks by content hash, so that the first of a bucket is the one of it that may stay.
  order = sorted(range(len(hashes)), key=lambda i: (hashes[i], i))
  parent = list(range(len(order)))

  def root(node):
    while parent[node] != node:
      parent[node] = node = parent[parent[node]]
    return node

  buckets: dict[tuple[int, bytes], int] = {}
  for current, index in enumerate(order):
    bands = minhash.signature(documents[index], SIZE)
    firsts = {buckets.setdefault((b, row.tobytes()), current) for b, row in enumerate(bands)}
    for other in sorted(firsts - {current}):
      one, two = sorted((root(other), root(current)))
      if one != two and jaccard(documents[order[other]], documents[index]) >= threshold:
        parent[two] = one
  keep = np.zeros(len(order), bool)
  keep[[index for rank, index in enumerate(order) if root(rank) == rank]] = True
  return keep

"""Near-duplicate removal by MinHash and exact verification."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

SHINGLE_WORDS = 5
# A pair of Jaccard similarity s becomes a candidate with probability 1 - (1 - s^4)^32, 0.9998 at
# 0.7, and candidates are verified exactly: many narrow bands cost a little time and no precision.
BANDS, ROWS = 32, 4
_WORD = re.compile(r"\w+")
_CHUNK = 4096
_PARAMETERS = np.random.Generator(np.random.Philox(key=0)).integers(
  0, 2**64, (2, BANDS * ROWS, 1), dtype=np.uint64
)
_MULTIPLIER, _OFFSET = _PARAMETERS[0] | np.uint64(1), _PARAMETERS[1]


def content_hash(text: str) -> bytes:
  """Sixteen bytes that name a text by its content."""
  return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def shingles(text: str) -> np.ndarray:
  """The distinct hashes of the runs of 5 words of a text, case folded: uint64 [S], S >= 1."""
  words = _WORD.findall(text.lower()) or [text]
  hashes = np.array([_hash_word(word) for word in words], np.uint64)
  width = min(SHINGLE_WORDS, len(hashes))
  runs = np.lib.stride_tricks.sliding_window_view(hashes, width)
  odd = np.uint64(0x9E3779B97F4A7C15)
  combined = np.zeros(len(runs), np.uint64)
  for place in range(width):  # wraps modulo 2^64
    combined = (combined ^ runs[:, place]) * odd
    combined ^= combined >> np.uint64(29)
  return np.unique(combined)


def _hash_word(word: str) -> int:
  return int.from_bytes(hashlib.blake2b(word.encode("utf-8"), digest_size=8).digest(), "little")


def signature(document: np.ndarray) -> np.ndarray:
  """The MinHash of a set of shingles: uint64 [BANDS * ROWS]."""
  least = np.full(BANDS * ROWS, np.iinfo(np.uint64).max, np.uint64)
  for start in range(0, len(document), _CHUNK):  # bounds the memory that a book takes
    hashes = _MULTIPLIER * document[start : start + _CHUNK] + _OFFSET
    np.minimum(least, hashes.min(axis=1), out=least)
  return least


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
    bands = signature(documents[index]).reshape(BANDS, ROWS)
    firsts = {buckets.setdefault((b, row.tobytes()), current) for b, row in enumerate(bands)}
    for other in sorted(firsts - {current}):
      one, two = sorted((root(other), root(current)))
      if one != two and jaccard(documents[order[other]], documents[index]) >= threshold:
        parent[two] = one
  keep = np.zeros(len(order), bool)
  keep[[index for rank, index in enumerate(order) if root(rank) == rank]] = True
  return keep

"""Clusters of duplicates as array work that is done in parts, by any number of processes at once.

A document is a node, numbered by the order of (content hash, place): so the least node of a cluster
is the one that stays, and no order of files or parts makes a difference.

`candidates` gives the edges of each bucket; `propose` and `settle`, in turn until nothing changes,
give each node the least node that it is connected with, in about log N rounds: the hooking and
shortcutting of Shiloach and Vishkin as FastSV has it (Zhang, Azad, Hu 2020), with min throughout.
"""

import itertools

import numpy as np


def order(hashes: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Documents in the order of nodes, and for each whether it is a copy of the one before.

  Args:
    hashes: the content hashes, uint64 [N, 2], the more significant half first.
    places: of each document, int64 [N], distinct; of equal documents the first place stays.

  Returns:
    (indices into both, int64 [N]; bool [N]).
  """
  indices = np.lexsort((places, hashes[:, 1], hashes[:, 0]))
  ordered = hashes[indices]
  copies = np.zeros(len(indices), bool)
  copies[1:] = (ordered[1:] == ordered[:-1]).all(axis=1)
  return indices, copies


def band(signatures: np.ndarray, number: int, rows: int) -> np.ndarray:
  """The hash of one band of each document's signature: uint64 [N].

  Args:
    signatures: uint32 [bands * rows, N].
    number: of the band.
    rows: values in a band.
  """
  hashes = np.zeros(signatures.shape[1], np.uint64)
  for values in signatures[number * rows : (number + 1) * rows]:
    hashes = (hashes ^ values) * np.uint64(0x9E3779B97F4A7C15)  # modulo 2^64
    hashes ^= hashes >> np.uint64(29)
  return hashes


def candidates(
  buckets: np.ndarray, nodes: np.ndarray, similar, most_compared: int
) -> tuple[np.ndarray, int]:
  """The pairs of a bucket that are similar.

  The least node of a bucket is compared with all others; those that are not similar to it are a
  bucket of their own, and so on, `most_compared` times: the time of a bucket would grow with the
  square of the documents in it that are not alike, as pages of one template are.

  Args:
    buckets: the hash of each document's band, uint64 [N].
    nodes: int64 [N].
    similar: (nodes [P], nodes [P]) -> bool [P].
    most_compared: with how many of its bucket a document is compared at most.

  Returns:
    (pairs, int64 [E, 2], the smaller node first; how many documents were left uncompared with some
    of their bucket).
  """
  indices = np.lexsort((nodes, buckets))
  buckets, nodes = buckets[indices], nodes[indices]
  edges = [np.zeros((0, 2), np.int64)]
  for number in itertools.count():
    starts = np.ones(len(buckets), bool)
    starts[1:] = buckets[1:] != buckets[:-1]
    alone = starts & np.append(starts[1:], True)
    buckets, nodes, starts = buckets[~alone], nodes[~alone], starts[~alone]
    if not len(buckets) or number == most_compared:
      break
    heads = nodes[np.flatnonzero(starts)[np.cumsum(starts) - 1]]
    rest = np.flatnonzero(~starts)
    found = similar(heads[rest], nodes[rest])
    edges.append(np.stack([heads[rest[found]], nodes[rest[found]]], axis=1))
    buckets, nodes = buckets[rest[~found]], nodes[rest[~found]]
  return np.concatenate(edges), len(nodes)


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """The estimated Jaccard similarity of pairs of signatures, [H, P] each: float [P]."""
  return (first == second).mean(axis=0)


def propose(edges: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """What the edges of one part say of the labels: for some nodes, sorted, the least label seen.

  Args:
    edges: int64 [E, 2].
    labels: of all nodes, int64 [N], each at most its own node.

  Returns:
    (nodes [P], labels [P]).
  """
  one, two = edges[:, 0], edges[:, 1]
  of_one, of_two = labels[one], labels[two]
  beyond_one, beyond_two = labels[of_one], labels[of_two]
  nodes = np.concatenate([of_one, one, of_two, two])
  least = np.concatenate([beyond_two, beyond_two, beyond_one, beyond_one])
  indices = np.lexsort((least, nodes))
  nodes, least = nodes[indices], least[indices]
  first = np.ones(len(nodes), bool)
  first[1:] = nodes[1:] != nodes[:-1]
  return nodes[first], least[first]


def settle(start: int, stop: int, labels: np.ndarray, proposals) -> np.ndarray:
  """The new labels of the nodes [start, stop).

  Args:
    start, stop: nodes.
    labels: of all nodes, int64 [N].
    proposals: what `propose` gave for each part of the edges.
  """
  mine = labels[start:stop]
  settled = np.minimum(mine, labels[mine])
  for nodes, least in proposals:
    first, last = np.searchsorted(nodes, [start, stop])
    places = nodes[first:last] - start
    settled[places] = np.minimum(settled[places], least[first:last])
  return settled

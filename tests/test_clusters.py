"""Clusters of duplicates: the same whatever the parts, the order and the rounds."""

import itertools

import numpy as np
import pytest

from configs import corpus as recipe
from data import clusters, duplicates, files
from data.config import parse
from data.corpus_config import CorpusConfig
from data.parallel import Workers


def components(count, edges):
  """The least node of each node's component, one edge after the other."""
  parent = list(range(count))

  def root(node):
    while parent[node] != node:
      node = parent[node]
    return node

  for one, two in edges:
    one, two = sorted((root(one), root(two)))
    parent[two] = one
  return [root(node) for node in range(count)]


def connect(count, parts, ranges):
  """`propose` and `settle` until nothing changes; returns labels and rounds."""
  labels = np.arange(count)
  bounds = np.linspace(0, count, ranges + 1).astype(int)
  for number in range(1, 100):
    proposals = [clusters.propose(part, labels) for part in parts]
    settled = [
      clusters.settle(start, stop, labels, proposals) for start, stop in itertools.pairwise(bounds)
    ]
    new = np.concatenate(settled)
    if (new == labels).all():
      return labels.tolist(), number
    labels = new
  raise AssertionError("no end")


@pytest.mark.parametrize("seed", range(20))
def test_components_equal_those_of_one_edge_after_the_other(seed):
  rng = np.random.default_rng(seed)
  count = int(rng.integers(1, 300))
  edges = np.sort(rng.integers(0, count, (int(rng.integers(0, 2 * count)), 2)), axis=1)
  expected = components(count, edges.tolist())
  for parts, ranges in ((1, 1), (3, 5), (7, 2)):
    shuffled = rng.permutation(edges)
    assert connect(count, np.array_split(shuffled, parts), ranges)[0] == expected


def test_a_long_chain_takes_few_rounds():
  count = 4096
  nodes = np.random.default_rng(0).permutation(count)
  edges = np.sort(np.stack([nodes[:-1], nodes[1:]], axis=1), axis=1)
  labels, rounds = connect(count, np.array_split(edges, 4), 3)
  assert labels == [0] * count
  assert rounds <= 16


def test_every_similar_pair_of_a_bucket_is_connected():
  """Also those that are not similar to the bucket's first."""
  kind = np.array([0, 1, 2, 1, 0, 2, 2, 3])
  similar = lambda one, two: kind[one] == kind[two]  # noqa: E731
  buckets = np.array([5, 5, 5, 5, 5, 5, 9, 5], np.uint64)
  order = np.random.default_rng(0).permutation(8)
  edges, left = clusters.candidates(buckets[order], order, similar, most_compared=4)
  # 6 is of kind 2 as well, and in another bucket.
  assert sorted(map(tuple, edges.tolist())) == [(0, 4), (1, 3), (2, 5)]
  assert left == 0
  edges, left = clusters.candidates(buckets[order], order, similar, most_compared=2)
  assert sorted(map(tuple, edges.tolist())) == [(0, 4), (1, 3)]
  assert left == 3  # 2, 5 and 7


def test_a_crowded_bucket_takes_time_in_proportion_and_loses_few_duplicates():
  """Pages of one template, two thirds alike, and pairs of them of similarity 0.9."""
  rng = np.random.default_rng(0)
  bands, rows, count, most = 14, 8, 1_000, 20
  template = np.sort(rng.random((bands * rows, 144)), axis=1)[:, 0]  # the least of its shingles
  own = rng.random((bands * rows, 40, count)).astype(np.float32)  # 144 / (144 + 80) = 0.64
  twin = own.copy()
  twin[:, :10] = rng.random((bands * rows, 10, count))  # 174 / 194 = 0.9
  pages = np.concatenate([own.min(axis=1), twin.min(axis=1)], axis=1)
  scale = np.float32(2**32 - 1)
  signatures = (np.minimum(pages, template[:, None]) * scale).astype(np.uint32)
  del own, twin, pages
  compared = np.zeros(1, int)

  def similar(one, two):
    compared[0] += len(one)
    return clusters.similarity(signatures[:, one], signatures[:, two]) >= 0.75

  found, crowded = set(), 0
  for number in range(bands):
    edges, left = clusters.candidates(
      clusters.band(signatures, number, rows), np.arange(2 * count), similar, most
    )
    found |= set(map(tuple, edges.tolist()))
    crowded += left
  assert crowded > 0  # else the bound is not tried
  assert compared[0] < 100_000  # 442,588 without it
  pairs = sum((page, page + count) in found for page in range(count))
  assert pairs >= 0.98 * count, pairs


def test_bands_are_equal_where_all_their_rows_are():
  rng = np.random.default_rng(0)
  signatures = rng.integers(0, 2**32, (12, 50), dtype=np.uint32)
  signatures[4:8, 1] = signatures[4:8, 0]  # the second of three bands
  signatures[8:11, 3] = signatures[8:11, 2]  # all rows of the third but one
  signatures[0:4, 5] = signatures[3::-1, 4]  # the same rows in another order
  equal = [np.equal.outer(b, b) for b in (clusters.band(signatures, i, 4) for i in range(3))]
  assert equal[1][0, 1]
  assert [int(e.sum()) for e in equal] == [50, 52, 50]


def test_labels_have_room_on_the_disk_before_they_are_written_through_memory(tmp_path, monkeypatch):
  """A hole that is filled on a full disk would end the process, without a message."""
  count, folder = 5_000, tmp_path / "work" / "clusters"
  config = parse(CorpusConfig, recipe.get_config().to_dict())
  files.write_array(folder / "exact.npy", np.arange(count))
  pairs = np.stack([np.arange(0, count, 2), np.arange(1, count, 2)], axis=1)
  files.write_array(folder / "edges-000-0000.npy", pairs)
  settle, holes = duplicates._settle, []

  def watched(start, stop, labels, after, edges):
    holes.append(after.stat().st_size - 512 * after.stat().st_blocks)
    return settle(start, stop, labels, after, edges)

  monkeypatch.setattr(duplicates, "_settle", watched)
  with Workers(0) as workers:
    duplicates.connect(config, tmp_path, workers, lambda *_: None)
  assert files.read_array(folder / "labels.npy").tolist() == [i - i % 2 for i in range(count)]
  assert holes and max(holes) <= 0


def test_order_is_that_of_the_hashes_and_then_of_the_places():
  hashes = np.array([[2, 1], [1, 9], [2, 0], [1, 9], [1, 8]], np.uint64)
  places = np.array([0, 3, 2, 1, 4])
  indices, copies = clusters.order(hashes, places)
  assert indices.tolist() == [4, 3, 1, 2, 0]
  assert copies.tolist() == [False, False, True, False, False]

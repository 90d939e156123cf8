"""Exact and near duplicates of a whole corpus, found in parts, with what they share on disk."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from data import clusters, files, refine
from data.corpus_config import CorpusConfig
from data.parallel import Workers
from data.units import Unit

Progress = Callable[[str, int, int], None]


def find(
  units: Sequence[Unit], config: CorpusConfig, workdir: Path, workers: Workers, progress: Progress
) -> None:
  """Writes, for the documents that the first pass kept, in order of their nodes:

    nodes.npy: the node of each document, by its place among all units' documents;
    places.npy: the reverse; exact.npy: the node of its first copy, itself if there is none;
    labels.npy: the node that stays of its cluster.

  A node is a document's number by (content hash, place). Each step is done in parts.
  """
  if (workdir / "work" / "clusters" / "labels.npy").exists():
    return
  order(units, config, workdir, workers, progress)
  _all(workers, compare, comparisons(units, config, workdir), "comparing documents", progress)
  connect(config, workdir, workers, progress)


def order(
  units: Sequence[Unit], config: CorpusConfig, workdir: Path, workers: Workers, progress: Progress
) -> None:
  """The first step: writes starts, nodes, places and exact."""
  folder = workdir / "work" / "clusters"
  sizes = [files.read_array(refine.paths(workdir, unit).hashes).shape[0] for unit in units]
  starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
  files.write_array(folder / "starts.npy", starts)
  parts = config.near_duplicates.parts
  calls = [(part, units, config, workdir) for part in range(parts)]
  _all(workers, _order, calls, "ordering documents", progress)
  _join_order(folder, parts, int(starts[-1]))


def comparisons(units: Sequence[Unit], config: CorpusConfig, workdir: Path) -> list[tuple]:
  """The arguments of each call of `compare`, the second step."""
  bands, parts = range(config.minhash.bands), range(config.near_duplicates.parts)
  return [(band, part, units, config, workdir) for band in bands for part in parts]


def seconds(workdir: Path) -> float:
  """The CPU time of all steps, those of earlier starts included."""
  return sum(map(files.read_json, (workdir / "work" / "clusters").glob("*.seconds.json")))


@contextlib.contextmanager
def _timed(path: Path):
  """Keeps the CPU time of what made the file `path` beside it."""
  start = time.process_time()
  yield
  files.write_json(path.with_suffix(".seconds.json"), time.process_time() - start)


def _all(
  workers: Workers, function: Callable, calls: list[tuple], what: str, progress: Progress
) -> list:
  results = []
  for result in workers.map(function, calls):
    results.append(result)
    progress(what, len(results), len(calls))
  return results


def _read(folder: Path, *names: str) -> list[np.ndarray]:
  return [files.read_array(folder / f"{name}.npy") for name in names]


def _order(part: int, units: Sequence[Unit], config: CorpusConfig, workdir: Path) -> None:
  """Orders the documents whose hash is in one part of all hashes."""
  path = workdir / "work" / "clusters" / f"order-{part:04d}.npy"
  if path.exists():
    return
  starts = np.load(path.with_name("starts.npy"))
  hashes, places = [np.zeros((0, 2), np.uint64)], [np.zeros(0, np.int64)]
  with _timed(path):
    for unit, start in zip(units, starts[:-1], strict=True):
      these = files.read_array(refine.paths(workdir, unit).hashes)
      mine = np.flatnonzero(_part(these[:, 0], config.near_duplicates.parts) == part)
      hashes.append(these[mine])
      places.append(mine + start)
    hashes, places = np.concatenate(hashes), np.concatenate(places)
    indices, copies = clusters.order(hashes, places)
  files.write_array(path, np.stack([places[indices], copies.astype(np.int64)]))


def _part(hashes: np.ndarray, parts: int) -> np.ndarray:
  """Which part of the range of 64 bits each hash is in; parts follow each other as hashes do."""
  return ((hashes >> np.uint64(32)) * np.uint64(parts)) >> np.uint64(32)


def _join_order(folder: Path, parts: int, count: int) -> None:
  """One pass over all documents: their nodes, places and first copies."""
  ordered = [files.read_array(folder / f"order-{part:04d}.npy") for part in range(parts)]
  places = np.concatenate([part[0] for part in ordered])
  copies = np.concatenate([part[1] for part in ordered])
  assert len(places) == count
  nodes = np.empty(count, np.int64)
  nodes[places] = np.arange(count)
  exact = np.maximum.accumulate(np.where(copies == 1, 0, np.arange(count)))
  for name, array in (("nodes", nodes), ("places", places), ("exact", exact)):
    files.write_array(folder / f"{name}.npy", array)


def compare(
  number: int, part: int, units: Sequence[Unit], config: CorpusConfig, workdir: Path
) -> None:
  """Compares the documents whose band `number` has a hash in one part of all hashes."""
  folder = workdir / "work" / "clusters"
  path = folder / f"edges-{number:03d}-{part:04d}.npy"
  if path.exists():
    return
  with _timed(path):
    edges, left = _edges(number, part, units, config, workdir)
  files.write_json(path.with_suffix(".left.json"), left)
  files.write_array(path, edges)


def uncompared(workdir: Path) -> int:
  """How often a document was not compared with all of its bucket, over all bands."""
  return sum(map(files.read_json, (workdir / "work" / "clusters").glob("*.left.json")))


def _edges(number, part, units, config, workdir) -> tuple[np.ndarray, int]:
  folder = workdir / "work" / "clusters"
  starts, nodes, exact, places = _read(folder, "starts", "nodes", "exact", "places")
  signatures = [files.read_array(refine.paths(workdir, unit).signatures) for unit in units]
  buckets, members = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
  for start, values in zip(starts[:-1], signatures, strict=True):
    hashes = clusters.band(values, number, config.minhash.rows)
    these = nodes[start : start + values.shape[1]]
    mine = (_part(hashes, config.near_duplicates.parts) == part) & (exact[these] == these)
    buckets.append(hashes[mine])
    members.append(these[mine])

  def signature(of_nodes):
    wanted = places[of_nodes]
    owners = np.searchsorted(starts, wanted, side="right") - 1
    found = np.empty((config.minhash.bands * config.minhash.rows, len(wanted)), np.uint32)
    for owner in np.unique(owners):
      here = owners == owner
      found[:, here] = signatures[owner][:, wanted[here] - starts[owner]]
    return found

  def similar(first, second):
    chunks = [
      clusters.similarity(signature(first[i : i + 4096]), signature(second[i : i + 4096]))
      for i in range(0, len(first), 4096)
    ]
    return np.concatenate([np.zeros(0), *chunks]) >= config.near_duplicates.threshold

  return clusters.candidates(
    np.concatenate(buckets),
    np.concatenate(members),
    similar,
    config.near_duplicates.most_compared,
  )


def connect(config: CorpusConfig, workdir: Path, workers: Workers, progress: Progress) -> None:
  """The last step: rounds of `propose` and `settle`, each in parts, until no label changes."""
  folder = workdir / "work" / "clusters"
  exact = files.read_array(folder / "exact.npy")
  bounds = np.linspace(0, len(exact), config.near_duplicates.parts + 1).astype(np.int64).tolist()
  ranges = list(itertools.pairwise(bounds))
  edges = sorted(folder.glob("edges-*.npy"))
  labels = folder / "labels-0.npy"
  files.write_array(labels, np.arange(len(exact)))
  spent = 0.0
  for number in itertools.count(1):
    after = folder / f"labels-{number}.npy"
    what = f"connecting duplicates, round {number}"
    spent += sum(_all(workers, _propose, [(path, labels) for path in edges], what, progress))
    # Written in full: to fill a hole through memory, on a full disk, ends the process.
    files.write_array(after, np.zeros(len(exact), np.int64))
    calls = [(start, stop, labels, after, edges) for start, stop in ranges]
    settled = _all(workers, _settle, calls, what, progress)
    spent += sum(seconds for _, seconds in settled)
    labels.unlink()
    labels = after
    if not any(changed for changed, _ in settled):
      break
  files.write_json(folder / "labels.seconds.json", spent)
  # A copy has the label of the first one.
  files.write_array(folder / "labels.npy", np.load(labels)[exact])
  labels.unlink()


def _propose(edges: Path, labels: Path) -> float:
  """Writes the proposals of a part of the edges; returns the CPU time."""
  start = time.process_time()
  proposals = clusters.propose(np.load(edges), files.read_array(labels))
  np.save(_proposals(edges), np.stack(proposals))  # of this round only
  return time.process_time() - start


def _proposals(edges: Path) -> Path:
  return edges.with_name(edges.name.replace("edges", "proposals"))


def _settle(
  start: int, stop: int, labels: Path, after: Path, edges: Iterable[Path]
) -> tuple[bool, float]:
  """Writes the new labels of a range of nodes; returns whether one changed, and the CPU time."""
  began = time.process_time()
  old = files.read_array(labels)
  proposals = (files.read_array(_proposals(path)) for path in edges)
  settled = clusters.settle(start, stop, old, proposals)
  if stop > start:
    new = np.lib.format.open_memmap(after, "r+")
    new[start:stop] = settled
    new.flush()
  return bool((settled != old[start:stop]).any()), time.process_time() - began

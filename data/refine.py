"""The first pass over the documents: read, judged, kept in the workdir with signatures."""

import collections
import dataclasses
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data import dedup, files, minhash, readers, stages
from data.corpus_config import CorpusConfig
from data.record import Fault
from data.stages import Draft
from data.units import Unit

_EXAMPLE_CHARS = 400


@dataclasses.dataclass(frozen=True)
class Paths:
  """Where the first pass keeps what it made of a unit. `stats` is written last."""

  documents: Path
  hashes: Path
  signatures: Path
  stats: Path


def paths(workdir: Path, unit: Unit) -> Paths:
  stem = workdir / "work" / "documents" / f"{unit.index:06d}"
  suffixes = ("jsonl.zst", "hashes.npy", "signatures.npy", "json")
  return Paths(*(stem.with_name(f"{stem.name}.{suffix}") for suffix in suffixes))


def refine(unit: Unit, config: CorpusConfig, workdir: Path) -> dict[str, Any]:
  """Reads a unit's files and takes each document through its stages; returns its statistics."""
  if paths(workdir, unit).stats.exists():
    return files.read_json(paths(workdir, unit).stats)
  seconds: dict[str, float] = {}
  steps = stages.make_stages(config, unit.source)
  drafts = (
    item if isinstance(item, Fault) else stages.run(item, steps, seconds)
    for item in read(unit, config, seconds)
  )
  return store(unit, drafts, config, workdir, seconds)


def read(unit: Unit, config: CorpusConfig, seconds: dict[str, float]) -> Iterator[Draft | Fault]:
  """Yields the documents of a unit; adds the CPU time of reading to `seconds`."""
  source = config.sources[unit.source]
  for path in unit.paths:
    items = readers.read(path, source.format, unit.source, source.key)
    while True:
      start = time.process_time()
      item = next(items, None)
      if item is not None and not isinstance(item, Fault):
        item = stages.begin(item, config)
      seconds["read"] = seconds.get("read", 0.0) + time.process_time() - start
      if item is None:
        break
      yield item


def store(
  unit: Unit,
  drafts: Iterable[Draft | Fault],
  config: CorpusConfig,
  workdir: Path,
  seconds: dict[str, float],
) -> dict[str, Any]:
  """Writes a unit's documents, their hashes and signatures; returns its statistics."""
  where, tally, hashes, signatures = paths(workdir, unit), Tally(config.examples), [], []
  with files.jsonl_writer(where.documents) as write:
    for draft in drafts:
      if isinstance(draft, Fault):
        tally.fault(draft)
        write({"path": draft.path, "offset": draft.offset, "fault": draft.reason})
        continue
      tally.add(draft)
      row = provenance(draft)
      if not draft.rejected:
        start = time.process_time()
        hashes.append(dedup.content_hash(draft.text))
        signatures.append(signature(draft.text, config))
        seconds["signature"] = seconds.get("signature", 0.0) + time.process_time() - start
        row |= {"hash": hashes[-1].hex(), "text": draft.text}
      write(row)
  halves = np.frombuffer(b"".join(hashes), ">u8").astype(np.uint64).reshape(-1, 2)
  values = config.minhash.bands * config.minhash.rows
  files.write_array(where.hashes, halves)
  columns = np.stack(signatures, axis=1) if signatures else np.zeros((values, 0), np.uint32)
  files.write_array(where.signatures, np.ascontiguousarray(columns))
  stats = {"source": unit.source, "kept": len(hashes), **tally.summary(), "seconds": seconds}
  files.write_json(where.stats, stats)
  return stats


def signature(text: str, config: CorpusConfig) -> np.ndarray:
  """The MinHash of a text: uint32 [bands * rows], the lower halves of the values, which differ."""
  shingles = minhash.shingles(text, config.minhash)
  return minhash.signature(shingles, config.minhash).reshape(-1).astype(np.uint32)


def provenance(draft: Draft) -> dict[str, Any]:
  """Where a document came from and what was decided about it, as JSON values."""
  return {
    "path": draft.record.path,
    "offset": draft.record.offset,
    "meta": draft.record.meta,
    "bytes": draft.size.bytes,
    "tokens": draft.size.tokens,
    "decisions": [decision(d.stage, d.reason, d.changes, d.detail) for d in draft.decisions],
  }


def decision(stage: str, reason: str | None, changes: dict[str, int], detail: str = "") -> dict:
  """A decision as JSON values, without what is empty."""
  fields = {"reason": reason, "changes": changes, "detail": detail}
  return {"stage": stage, **{key: value for key, value in fields.items() if value}}


class Tally:
  """Counts of documents, bytes and tokens by stage, of reasons with examples, and of faults."""

  def __init__(self, examples: int):
    self._most = examples
    self._passed: dict[str, list[int]] = {}
    self._rejected = collections.defaultdict(collections.Counter)
    self._changed = collections.defaultdict(collections.Counter)
    self._faults = collections.Counter()
    self._examples = collections.defaultdict(list)

  def add(self, draft: Draft) -> None:
    for stage, size in draft.passed:
      self.passed(stage, size.bytes, size.tokens)
    for each in draft.decisions:
      self._changed[each.stage].update(each.changes)
      if each.reason is not None:
        # What the document was before this stage is what it is judged by; no stage that rejects
        # changes the text.
        record = draft.record
        self.reject(each.stage, each.reason, record.path, record.offset, draft.text, each.detail)

  def passed(self, stage: str, size: int, tokens: int) -> None:
    counts = self._passed.setdefault(stage, [0, 0, 0])
    for place, more in enumerate((1, size, tokens)):
      counts[place] += more

  def reject(self, stage, reason, path, offset, text, detail="") -> None:
    self._rejected[stage][reason] += 1
    self._example(f"{stage}/{reason}", path, offset, text, detail)

  def fault(self, fault: Fault) -> None:
    self._faults[fault.reason] += 1
    self._example(f"read/{fault.reason}", fault.path, fault.offset, "", "")

  def _example(self, reason, path, offset, text, detail):
    if len(self._examples[reason]) < self._most:
      shown = text[:_EXAMPLE_CHARS]
      self._examples[reason].append(
        {"path": path, "offset": offset, "text": shown, "detail": detail}
      )

  def summary(self) -> dict[str, Any]:
    """All counts as JSON values."""
    return {
      "passed": self._passed,
      "rejected": {stage: dict(sorted(c.items())) for stage, c in self._rejected.items()},
      "changed": {stage: dict(sorted(c.items())) for stage, c in self._changed.items() if c},
      "faults": dict(sorted(self._faults.items())),
      "examples": dict(self._examples),
    }

"""The second pass: duplicates and leaks go, the rest becomes shards; provenance of everything."""

import collections
import contextlib
import functools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data import array_records, decontaminate, files, refine
from data.corpus_config import CorpusConfig
from data.heldout import is_held_out
from data.units import Input, Unit

PARTS = ("training", "heldout")
DUPLICATES, LEAKS = ("exact_duplicate", "near_duplicate"), "decontamination"
_COLUMNS = (
  *((name, "string") for name in ("id", "text", "source", "path")),
  ("offset", "int64"),
  ("meta", "string"),
)


def write_index(config: CorpusConfig, workdir: Path) -> None:
  """Reads the evaluation sets and keeps their runs of words in the workdir."""
  folder = workdir / "work" / "evaluation"
  index = decontaminate.make_index(config.decontamination)
  files.write_array(folder / "runs.npy", index.runs)
  files.write_array(folder / "items.npy", index.items)
  kept = {"width": index.width, "names": index.names, "short": index.short}
  files.write_json(folder / "names.json", kept)


def evaluation_items(workdir: Path) -> dict[str, Any]:
  """The evaluation items by set, and those of them that are too short to be found."""
  kept = files.read_json(workdir / "work" / "evaluation" / "names.json")
  items = collections.Counter(name.split("/")[0] for name in kept["names"])
  return {"items": dict(sorted(items.items())), "short": kept["short"]}


@functools.lru_cache(maxsize=1)
def _index(workdir: Path) -> decontaminate.Index:
  folder = workdir / "work" / "evaluation"
  kept = files.read_json(folder / "names.json")
  runs, items = np.load(folder / "runs.npy"), np.load(folder / "items.npy")
  return decontaminate.Index(kept["width"], runs, items, tuple(kept["names"]), kept["short"])


def publish(unit: Unit, units: Sequence[Unit], config: CorpusConfig, workdir: Path) -> dict:
  """Writes a unit's shards; returns its statistics, which are written last."""
  marker = workdir / "work" / "shards" / f"{unit.index:06d}.json"
  if marker.exists():
    return files.read_json(marker)
  tally, seconds = refine.Tally(config.examples), dict.fromkeys((LEAKS, "write"), 0.0)
  names = {
    "documents": f"documents/{unit.name}.{'jsonl.zst' if config.format == 'jsonl' else 'parquet'}",
    "training": f"training/{unit.name}{array_records.SUFFIX}",
    "heldout": f"heldout/{unit.name}{array_records.SUFFIX}",
    "provenance": f"provenance/{unit.name}.jsonl.zst",
  }
  index = _index(workdir)
  verdicts = _duplicates(unit, units, workdir)
  counts = dict.fromkeys(PARTS, 0)
  with contextlib.ExitStack() as stack:
    write_provenance = stack.enter_context(files.jsonl_writer(workdir / names["provenance"]))
    open_ = functools.cache(lambda kind: _open(stack, kind, workdir / names[kind], config))
    for row in files.read_jsonl(refine.paths(workdir, unit).documents):
      start = time.process_time()
      text = row.pop("text", None)
      rejection = None
      if text is not None:
        rejection = _judge(row, text, next(verdicts), index, tally)
        now = time.process_time()
        seconds[LEAKS] += now - start
        start = now
      if rejection:
        row["decisions"].append(rejection)
      elif text is not None:
        part = PARTS[is_held_out(text, config.heldout_fraction)]
        open_("documents")(_document(row, text, unit, config))
        open_(part)(text)  # a shard without documents is no file
        row |= {"shard": names[part], "record": counts[part]}
        counts[part] += 1
      write_provenance(row)
      seconds["write"] += time.process_time() - start
  written = [name for name in names.values() if (workdir / name).exists()]
  stats = {
    "source": unit.source,
    "kept": sum(counts.values()),
    "parts": counts,
    **tally.summary(),
    "seconds": seconds,
    "files": [
      {
        "path": name,
        "bytes": (workdir / name).stat().st_size,
        "sha256": files.sha256(workdir / name),
      }
      for name in written
    ],
  }
  files.write_json(marker, stats)
  return stats


def _open(stack, kind, path, config):
  """What writes a document to a file of a kind, once it is open."""
  if kind in PARTS:
    partial = stack.enter_context(files.whole(path))
    return stack.enter_context(array_records.Writer(str(partial))).write
  if config.format == "jsonl":
    return stack.enter_context(files.jsonl_writer(path))
  return stack.enter_context(files.parquet_writer(path, _COLUMNS))


def _document(row: dict, text: str, unit: Unit, config: CorpusConfig) -> dict[str, Any]:
  meta = row["meta"] if config.format == "jsonl" else json.dumps(row["meta"], ensure_ascii=False)
  places = {"path": row["path"], "offset": row["offset"]}
  return {"id": row["hash"], "text": text, "source": unit.source, **places, "meta": meta}


def _judge(row, text, duplicate, index, tally):
  """Why a document goes, as a decision in JSON values, or None; counts what it passes."""
  stage, reason, detail = None, None, ""
  for name in DUPLICATES:
    if duplicate and duplicate[0] == name:
      stage, reason, detail = name, "duplicate", f"of {duplicate[1]}"
      break
    tally.passed(name, row["bytes"], row["tokens"])
  if stage is None:
    leak = decontaminate.find(text, index)
    if leak:
      stage, reason, detail = LEAKS, leak.item.split("/")[0], f"{leak.item}: {leak.words}"
    else:
      tally.passed(LEAKS, row["bytes"], row["tokens"])
  if stage is None:
    return None
  tally.reject(stage, reason, row["path"], row["offset"], text, detail)
  return refine.decision(stage, reason, {}, detail)


def _duplicates(
  unit: Unit, units: Sequence[Unit], workdir: Path
) -> Iterator[tuple[str, str] | None]:
  """For each document that the first pass kept: which kind of duplicate, and of which hash."""
  folder = workdir / "work" / "clusters"
  starts, nodes, exact, labels, places = (
    files.read_array(folder / f"{name}.npy")
    for name in ("starts", "nodes", "exact", "labels", "places")
  )
  for node in nodes[starts[unit.index] : starts[unit.index + 1]].tolist():
    if exact[node] != node:
      yield DUPLICATES[0], _hash(int(exact[node]), starts, places, units, workdir)
    elif labels[node] != node:
      yield DUPLICATES[1], _hash(int(labels[node]), starts, places, units, workdir)
    else:
      yield None


def _hash(node, starts, places, units, workdir) -> str:
  place = int(places[node])
  owner = int(np.searchsorted(starts, place, side="right")) - 1
  high, low = files.read_array(refine.paths(workdir, units[owner]).hashes)[place - starts[owner]]
  return f"{int(high):016x}{int(low):016x}"


def manifest(
  config: CorpusConfig,
  settings: Mapping[str, Any],
  inputs: Sequence[Input],
  units: Sequence[Unit],
  published: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
  """What the corpus is, as JSON values: a function of the recipe and the contents of its files."""
  sources = {}
  for name, source in sorted(config.sources.items()):
    passed = [s["passed"].get(LEAKS, [0, 0, 0]) for s in published if s["source"] == name]
    documents, size, tokens = (sum(column) for column in zip(*passed, strict=True))
    sources[name] = {
      "weight": source.weight,
      "documents": documents,
      "bytes": size,
      "tokens": tokens,
    }
    for part in PARTS:
      sources[name][part] = {
        "path": f"{part}/{name}-*{array_records.SUFFIX}",
        "documents": sum(s["parts"][part] for s in published if s["source"] == name),
      }
  return {
    "recipe": settings,
    "sources": sources,
    "inputs": [{"source": i.source, "path": i.path, "bytes": i.bytes} for i in inputs],
    "files": [file for stats in published for file in stats["files"]],
  }

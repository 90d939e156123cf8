"""What became of the documents, stage by stage: report.json, and the numbers of its page."""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data import corpus_page, duplicates, files, publish
from data.corpus_config import STAGES, CorpusConfig
from data.units import Unit

ORDER = ("read", *STAGES, *publish.DUPLICATES, publish.LEAKS)


def collect(
  config: CorpusConfig,
  units: Sequence[Unit],
  refined: Sequence[Mapping[str, Any]],
  published: Sequence[Mapping[str, Any]],
  workdir: Path,
) -> dict[str, Any]:
  """The report of a run as JSON values.

  Args:
    config: of the run.
    units: all of them.
    refined, published: what the two passes say of each unit.
    workdir: where the clusters and the evaluation items are.
  """
  parts = [*refined, *published]
  sources = {}
  for name, source in sorted(config.sources.items()):
    mine = [part for part in parts if part["source"] == name]
    stages = ["read", *source.stages, *publish.DUPLICATES, publish.LEAKS]
    flow = {}
    for stage in stages:
      counts = [part["passed"][stage] for part in mine if stage in part["passed"]]
      flow[stage] = [sum(column) for column in zip(*counts, strict=True)] or [0, 0, 0]
    sources[name] = {
      "weight": source.weight,
      "units": sum(unit.source == name for unit in units),
      "faults": _summed(part["faults"] for part in mine),
      "passed": {
        stage: dict(zip(("documents", "bytes", "tokens"), counts, strict=True))
        for stage, counts in flow.items()
      },
    }
  return {
    "tokens": "words" if config.tokenizer is None else f"tokens of {config.tokenizer}",
    "sources": sources,
    "reasons": _reasons(parts, config.examples),
    "changes": {
      stage: counts
      for stage in STAGES
      if (counts := _summed(part["changed"].get(stage, {}) for part in parts))
    },
    "clusters": _clusters(workdir / "work" / "clusters"),
    "uncompared": duplicates.uncompared(workdir),
    "throughput": _throughput(sources, parts, duplicates.seconds(workdir)),
    "evaluation": publish.evaluation_items(workdir),
  }


def write(report: Mapping[str, Any], workdir: Path) -> None:
  """Writes report.json and report.html."""
  files.write_json(workdir / "report.json", report)
  with files.whole(workdir / "report.html") as partial:
    partial.write_text(corpus_page.page(report), encoding="utf-8")


def _summed(counts) -> dict[str, int]:
  total = collections.Counter()
  for each in counts:
    total.update(each)
  return dict(total.most_common())


def _reasons(parts, examples) -> list[dict[str, Any]]:
  """Why documents went, by stage and then the most frequent first."""
  counts, shown = collections.Counter(), collections.defaultdict(list)
  for part in parts:
    for stage, reasons in {**part["rejected"], "read": part["faults"]}.items():
      for reason, count in reasons.items():
        counts[stage, reason] += count
        found = part["examples"].get(f"{stage}/{reason}", [])
        shown[stage, reason] += [{"source": part["source"], **example} for example in found]
  ranked = sorted(counts.items(), key=lambda item: (ORDER.index(item[0][0]), -item[1], item[0][1]))
  return [
    {
      "stage": stage,
      "reason": reason,
      "documents": count,
      "examples": shown[stage, reason][:examples],
    }
    for (stage, reason), count in ranked
  ]


def _clusters(folder: Path) -> dict[str, dict[str, int]]:
  """How many clusters there are of each size: of equal texts, and of similar different ones."""
  exact, labels = (files.read_array(folder / f"{name}.npy") for name in ("exact", "labels"))
  nodes = np.arange(len(exact))
  sizes = {}
  for name, groups in (("exact", exact), ("near", labels[exact == nodes])):
    _, members = np.unique(groups, return_counts=True)
    values, counts = np.unique(members[members > 1], return_counts=True)
    sizes[name] = dict(zip(map(str, values.tolist()), counts.tolist(), strict=True))
  return sizes


def _throughput(sources, parts, clustering: float) -> dict[str, dict[str, float]]:
  """Documents and bytes a second of CPU time, of what each stage was given."""
  seconds = _summed(part["seconds"] for part in parts) | {"clusters": clustering}
  given: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
  for source in sources.values():
    stages = list(source["passed"])
    for before, stage in zip(stages[:1] + stages, stages, strict=False):
      for place, what in enumerate(("documents", "bytes")):
        given[stage][place] += source["passed"][before][what]
        if stage == publish.DUPLICATES[0]:
          for name in ("signature", "clusters"):
            given[name][place] += source["passed"][before][what]
        if stage == publish.LEAKS:
          given["write"][place] += source["passed"][stage][what]
  return {
    stage: {
      "seconds": round(seconds[stage], 3),
      "documents_per_second": round(given[stage][0] / max(seconds[stage], 1e-9), 1),
      "bytes_per_second": round(given[stage][1] / max(seconds[stage], 1e-9)),
    }
    for stage in (*ORDER[: len(STAGES) + 1], "signature", "clusters", publish.LEAKS, "write")
    if stage in seconds
  }

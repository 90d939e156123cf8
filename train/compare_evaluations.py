"""Compares two evaluations item by item.

  python -m train.compare_evaluations runs/a-eval runs/b-eval

For every metric that has a value for each item: both means, the difference and its paired standard
error, over the items that both have. Exit codes: 0 done, 2 bad input.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data import scores
from train import results

# Parts of a score that are no score by themselves.
_PARTS = ("tokens", "words", "bytes", "ambiguous", "known", "pro")


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
  """The table of two eval.json, the second less the first.

  Raises:
    ValueError: they have no task, or a task has no item, in common.
  """
  names = [name for name in first["tasks"] if name in second["tasks"]]
  if not names:
    raise ValueError("the two evaluations have no task in common.")
  rows = [("task", "metric", "first", "second", "difference", "items")]
  for name in names:
    sides = []
    for side in (first, second):
      sides.append({item["id"]: item["scores"] for item in side["tasks"][name]["items"]})
    common = sides[0].keys() & sides[1].keys()
    items = [item for item in first["tasks"][name]["items"] if item["id"] in common]
    if not common:
      raise ValueError(f"the two evaluations have no item of {name} in common.")
    label = name
    for metric in [m for m in next(iter(sides[0].values())) if m not in _PARTS]:
      a, b = ({i: side[i][metric] for i in common} for side in sides)
      values = (a, b, {i: b[i] - a[i] for i in common})
      estimates = [_mean(items, x) for x in values]
      shown = [results.shown(metric, {"value": e.value, "stderr": e.stderr}) for e in estimates]
      rows.append((label, metric, *shown, f"{len(common):,}"))
      label = ""
  widths = [max(len(row[i]) for row in rows) for i in range(6)]
  return "\n".join(
    "  ".join(
      f"{text:<{width}}" if i < 2 else f"{text:>{width}}"
      for i, (text, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )


def _mean(items: Sequence[Mapping[str, Any]], values: Mapping[str, float]) -> scores.Estimate:
  """The mean of values by items' ids, with the error that an evaluation of them has."""
  groups = [[{"": values[i["id"]]} for i in group] for group in results.by_subject(items)]
  return scores.summarize_groups("", groups)[""]


def main(argv: Sequence[str]) -> int:
  parser = argparse.ArgumentParser(
    prog="python -m train.compare_evaluations",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("first", metavar="A", type=Path, help="a folder with eval.json")
  parser.add_argument("second", metavar="B", type=Path, help="the other")
  arguments = parser.parse_args(argv)
  try:
    print(compare(results.read(arguments.first), results.read(arguments.second)))
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))

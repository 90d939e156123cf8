"""A run's own measurements beside its plan, line by line: what the model of the step got wrong."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.metrics import read
from train.recorder import METRICS
from train.workdir import CONFIG

GIB = 2**30
SKIPPED = 0.2  # of the steps, the first: they warm up


def recipe_of(run: Path) -> dict[str, Any]:
  """The config that a run was started with. Raises ValueError where the folder is no run."""
  if not (run / CONFIG).exists() or not (run / METRICS).exists():
    raise ValueError(f"--compare {run}: it holds no {CONFIG} and {METRICS}; name a run's folder.")
  return json.loads((run / CONFIG).read_text())


def measured(run: Path) -> dict[str, float | None]:
  """Medians over the steps of a run that were not its first; None where nothing was measured.

  Raises ValueError for a run of too few steps.
  """
  lines = [line for line in read(run / METRICS) if line["kind"] == "train"]
  lines = lines[int(SKIPPED * len(lines)) :]
  if not lines:
    raise ValueError(f"--compare {run}: its metrics hold no training steps yet.")

  def median(name):
    values = [line[name] for line in lines if line.get(name) is not None]
    return statistics.median(values) if values else None

  step, wait = median("step_time"), median("data_wait")
  exposed = median("comm_exposed")
  return {
    "step": step,
    "compute": None if step is None else step - (wait or 0.0) - (exposed or 0.0),
    "collectives on the wire": median("comm_seconds"),
    "collectives exposed": exposed,
    "waiting for data": wait,
    "MFU, causal": median("mfu"),
    "memory peak, GiB": None if (m := median("device_memory_peak")) is None else m / GIB,
  }


def predicted(plan: Mapping[str, Any]) -> dict[str, float | None]:
  """The same lines of a plan."""
  exposed = sum(s for name, s in plan["waterfall"].items() if name.startswith("exposed"))
  peak = plan["memory"]["peak_bytes"]
  return {
    "step": plan["step_seconds"],
    "compute": plan["step_seconds"] - exposed,
    "collectives on the wire": sum(c["seconds"] for c in plan["collectives"]),
    "collectives exposed": exposed,
    "waiting for data": 0.0,
    "MFU, causal": plan["mfu_causal"],
    "memory peak, GiB": None if peak is None else peak / GIB,
  }


def table(run: Path, plan: Mapping[str, Any]) -> str:
  """Measured and predicted, a line each, and the waterfall that the prediction is made of."""
  was, will = measured(run), predicted(plan)
  lines = [f"  {'':<26}{'measured':>12}{'predicted':>12}{'off':>9}"]
  for name, value in was.items():
    guess = will[name]
    cells = ("-" if x is None else f"{x:.4g}" for x in (value, guess))
    off = f"{guess / value - 1:+.0%}" if value and guess is not None else "-"
    lines.append("  {:<26}{:>12}{:>12}{:>9}".format(name, *cells, off))
  lines.append("  of the predicted compute:")
  for name, seconds in plan["waterfall"].items():
    if not name.startswith("exposed"):
      lines.append(f"    {name:<36}{seconds:>12.4g}")
  return "\n".join(lines)

"""report.md of a run on its own responses: how the numbers went, and responses with rewards."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.metrics import read
from train.workdir import write_atomically

_ROWS = (
  "reward", "kl", "kl_k3", "beta", "entropy", "length", "eos_rate", "reference_nll",
  "explained_variance", "policy/clip_fraction", "policy/approx_kl", "policy/grad_norm",
  "critic/loss", "first_ratio_gap", "rollout_gap", "reward_clipped", "dropped",
)  # fmt: skip
_COLUMNS = 6


def write_report(workdir: Path) -> Path:
  """Writes the report of the run in `workdir`; returns its path."""
  lines = read(workdir / "metrics.jsonl")
  train = [line for line in lines if line["kind"] == "train"]
  final = [line for line in lines if line["kind"] == "final"]
  samples = [line for line in read(workdir / "samples.jsonl") if line["kind"] == "sample"]
  path = workdir / "report.md"
  write_atomically(path, report(train, final, samples))
  return path


def report(
  train: Sequence[Mapping[str, Any]],
  final: Sequence[Mapping[str, Any]],
  samples: Sequence[Mapping[str, Any]],
) -> str:
  """The report's text, of training lines, the line after the last update, and samples."""
  last = len(train) - 1
  shown = sorted({round(i * last / (_COLUMNS - 1)) for i in range(_COLUMNS)}) if train else []
  columns = [train[i] for i in shown] + list(final[-1:])
  names = [f"iteration {train[i]['step']}" for i in shown] + ["after"] * len(final[-1:])
  keys = [key for key in _ROWS if any(key in line for line in columns)]
  keys += sorted({k for line in columns for k in line if k.startswith("reward/")})
  text = ["# The run", "", _row(["", *names]), _row(["---"] * (len(names) + 1))]
  text += [_row([key, *(_number(line.get(key)) for line in columns)]) for key in keys]
  stops = [line["step"] for line in train if line.get("kl_stopped")]
  text += ["", f"Iterations that the KL ended early: {len(stops)} of {len(train)}."]
  steps = sorted({line["step"] for line in samples})
  for title, step in (("First responses", steps[:1]), ("Last responses", steps[-1:])):
    text += ["", f"# {title}"]
    for line in (line for line in samples if line["step"] in step):
      marks = ", ".join(f"{name} {_number(x)}" for name, x in line["rewards"].items())
      text += ["", f"**{_number(line['total'])}** ({marks}; {line['tokens']} tokens)", ""]
      text += ["```", f"{line['prompt']}|{line['response']}".replace("```", "'''"), "```"]
  return "\n".join(text) + "\n"


def _row(cells: Sequence[str]) -> str:
  return "| " + " | ".join(cells) + " |"


def _number(value: float | None) -> str:
  return "" if value is None else f"{value:.4g}"

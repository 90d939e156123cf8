"""Stages one after the other, each a run of its own in a folder of its own, as one command."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data import comparisons, embedded
from data.config import parse
from data.heldout import is_held_out
from train.metrics import read
from train.signals import StopRequest
from train.workdir import write_atomically, write_config

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = 0.06  # of the embedded corpus, as the quickstart has it
DONE, STOPPED = 0, 75


@dataclasses.dataclass(frozen=True)
class StageConfig:
  """One stage: a file of configs/, what comes after its colon, and changes as KEY=VALUE."""

  recipe: str
  argument: str
  changes: tuple[str, ...]

  def __post_init__(self):
    if not self.recipe.isidentifier() or not (ROOT / "configs" / f"{self.recipe}.py").is_file():
      raise ValueError(f"there is no recipe configs/{self.recipe}.py; name one of that folder.")


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
  """Every section of a pipeline.

  Attributes:
    order: the names of the stages, first to last.
    embedded: whether comparisons and held-out documents are made first.
    stages: by name.
  """

  stage: str
  order: tuple[str, ...]
  embedded: bool
  stages: dict[str, StageConfig]

  def __post_init__(self):
    if sorted(self.order) != sorted(self.stages):
      raise ValueError(f"order is {self.order}; it must name each of {sorted(self.stages)} once.")


parse_config = functools.partial(parse, PipelineConfig)


def execute(
  config: Mapping[str, Any], parsed: PipelineConfig, workdir: Path, stop: StopRequest
) -> bool:
  """Runs what is left of the stages; returns whether all of them are done.

  Raises:
    ValueError: a stage failed; it has said why.
  """
  write_config(workdir, config)
  places = {name: str(workdir / name) for name in parsed.order}
  if parsed.embedded:
    places["corpus"] = str(write_corpus(workdir / "corpus"))
  for name in parsed.order:
    done = workdir / name / ".done"
    if done.exists():
      continue
    print(f"\n=== {name} ===", flush=True)
    code = run_stage(command(parsed.stages[name], places, workdir / name), workdir, stop)
    if code == STOPPED or stop.wanted():
      return False
    if code != DONE:
      raise ValueError(
        f"the stage {name} ended with exit code {code}, and says why above. Once that is mended, "
        "the same command goes on with it."
      )
    write_atomically(done, "\n")
  rows = table(workdir, parsed.order)
  write_atomically(workdir / "pipeline.json", json.dumps(rows, indent=2) + "\n")
  print(f"\n{shown(rows)}\n\nThe table is in {workdir / 'pipeline.json'} too.")
  return True


def write_corpus(folder: Path) -> Path:
  """Comparisons, and the documents that the quickstart holds out, in a folder; returns it."""
  comparisons.write(folder / "comparisons.jsonl")
  held = [text for _, text in embedded.documents() if is_held_out(text, HELD_OUT)]
  lines = "".join(json.dumps({"text": text}) + "\n" for text in held)
  write_atomically(folder / "heldout.jsonl", lines)
  return folder


def command(stage: StageConfig, places: Mapping[str, str], workdir: Path) -> list[str]:
  """The command line of a stage, as a user would type it."""

  def filled(text: str) -> str:
    for name, place in places.items():
      text = text.replace(f"{{{name}}}", place)
    return text

  recipe = str(ROOT / "configs" / f"{stage.recipe}.py")
  argument = f":{filled(stage.argument)}" if stage.argument else ""
  return [
    *(sys.executable, "-m", "train.main", "--config", recipe + argument),
    *("--workdir", str(workdir)),
    *(f"--config.{filled(change)}" for change in stage.changes),
  ]


def run_stage(arguments: list[str], workdir: Path, stop: StopRequest) -> int:
  """The exit code of a stage in a process of its own, which a wish to stop is handed on to."""
  environment = os.environ | {
    "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    "JAX_COMPILATION_CACHE_DIR": str(workdir.resolve() / "compiled"),
  }
  process = subprocess.Popen(arguments, env=environment, start_new_session=True)
  asked = False
  try:
    while True:
      try:
        return process.wait(timeout=0.2)
      except subprocess.TimeoutExpired:
        if stop.wanted() and not asked:
          process.send_signal(signal.SIGTERM)
          asked = True
  except BaseException:
    process.kill()
    process.wait()
    raise


def table(workdir: Path, order: tuple[str, ...]) -> list[dict[str, Any]]:
  """A row a number: {"stage", "what", "before", "after"}."""
  rows = []

  def row(stage, what, before, after):
    rows.append({"stage": stage, "what": what, "before": before, "after": after})

  if "pretrain" in order:
    train = _lines(workdir / "pretrain", "train")
    row("pretrain", "training loss", train[0]["loss"], train[-1]["loss"])
    last = _lines(workdir / "pretrain", "eval")[-1]
    row("pretrain", "held-out bits per byte", None, last["bits_per_byte"])
  if "sft" in order:
    scores = _lines(workdir / "sft", "eval")
    row("sft", "held-out NLL of answers", scores[0]["loss"], scores[-1]["loss"])
    answers = _lines(workdir / "sft", "sample")
    row("sft", "answers that end", answers[0]["ended"], answers[-1]["ended"])
  if "reward" in order:
    scores = _lines(workdir / "reward", "eval")
    for name, after in scores[-1]["accuracy"].items():
      row("reward", f"accuracy, {name}", scores[0]["accuracy"].get(name), after)
  if "ppo" in order:
    first, last = _lines(workdir / "ppo", "train")[0], _lines(workdir / "ppo", "final")[-1]
    for key in ("reward", "kl", "length", *(k for k in first if k.startswith("reward/"))):
      row("ppo", key, first[key], last[key])
  if "calibrate" in order:
    report = json.loads((workdir / "calibrate" / "calibration.json").read_text())
    for name in ("next_token", "reward_pairs"):
      for key in ("nll", "ece"):
        before, after = (report[name][when][key] for when in ("before", "after"))
        row("calibrate", f"{name.replace('_', ' ')}, {key}", before, after)
  if "evaluate_base" in order:
    base, final = (
      json.loads((workdir / name / "eval.json").read_text())["tasks"]
      for name in ("evaluate_base", "evaluate")
    )
    for task, scores in final.items():
      value, old = _number(scores), _number(base[task])
      if value is not None:
        row("evaluate", f"{task}, {value[0]}", old and old[1], value[1])
  return rows


def _number(scores: Mapping[str, Any]) -> tuple[str, float] | None:
  """The bits per byte of a task, or its first number, by name."""
  found = {}

  def look(prefix, value):
    if isinstance(value, Mapping):
      for key, item in value.items():
        look(key if key not in ("value", "mean") else prefix, item)
    elif isinstance(value, float):
      found.setdefault(prefix, value)

  look("", scores)
  name = "bits_per_byte" if "bits_per_byte" in found else next(iter(found), None)
  return None if name is None else (name, found[name])


def _lines(folder: Path, kind: str) -> list[dict[str, Any]]:
  return [line for line in read(folder / "metrics.jsonl") if line["kind"] == kind]


def shown(rows: list[dict[str, Any]]) -> str:
  """The table for a terminal."""

  def number(value):
    return "" if value is None else f"{value:.4f}"

  lines = [f"{'stage':10} {'':32} {'before':>10} {'after':>10}"]
  for one in rows:
    lines.append(
      f"{one['stage']:10} {one['what'][:32]:32} {number(one['before']):>10} "
      f"{number(one['after']):>10}"
    )
  return "\n".join(lines)

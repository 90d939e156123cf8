"""The card of a released model, in the format of the Hugging Face hub; figures from files alone."""

import dataclasses
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data import prompts
from train import metrics, results
from train.recorder import METRICS
from train.weights import Run

SAFETY = ("refusal_harmful", "refusal_harmless", "crows_pairs", "bbq", "winobias")
BIAS = ("crows_pairs", "bbq", "winobias")
NOT_RECORDED = "not recorded"


@dataclasses.dataclass(frozen=True)
class Facts:
  """What no file of a run says, from whoever releases it; None for not recorded.

  Attributes:
    country: where it was trained.
    watts: of a device with its share of the node, for energy.
    kg_co2_per_kwh: of that country's grid.
    license: of the weights, by its name on the hub.
  """

  country: str | None
  watts: float | None
  kg_co2_per_kwh: float | None
  license: str | None


@dataclasses.dataclass(frozen=True)
class Training:
  """How a run was trained, from its metrics.jsonl; `skipped` is None where a stage counts none."""

  steps: int
  tokens: float
  skipped: int | None
  seconds: float
  devices: int
  device: str
  peak: str
  year: int

  @property
  def device_hours(self) -> float:
    return self.seconds * self.devices / 3600


def read_training(run: Run, step: int) -> Training | None:
  """What metrics.jsonl says up to `step`; None for a model that was imported."""
  path = run.folder / METRICS
  if not path.exists():
    return None
  lines = metrics.read(path)
  steps = [line for line in lines if line["kind"] == "train" and line["step"] <= step]
  if not steps:
    return None
  peaks = [line for line in lines if line["kind"] == "peak_flops"]
  return Training(
    steps=steps[-1]["step"],
    tokens=steps[-1]["tokens"],
    skipped=steps[-1].get("skipped"),
    seconds=math.fsum(line["step_time"] for line in steps),
    devices=int(peaks[-1]["devices"]) if peaks else 1,
    device=str(peaks[-1].get("device", "device")) if peaks else NOT_RECORDED,
    peak=str(peaks[-1]["source"]) if peaks else NOT_RECORDED,
    year=datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).year,
  )


def missing_safety(tasks: Mapping[str, Any]) -> list[str]:
  """What a release lacks: refusals, the answers beside them, and a set on bias."""
  missing = [name for name in ("refusal_harmful", "refusal_harmless") if name not in tasks]
  return missing + ([] if any(name in tasks for name in BIAS) else [f"one of {', '.join(BIAS)}"])


def card(
  name: str,
  run: Run,
  weights: Mapping[str, Any],
  tasks: Mapping[str, Mapping[str, Any]],
  facts: Facts,
  parameters: int,
  unsafe: Sequence[str],
) -> str:
  """MODEL_CARD.md.

  Args:
    name: of the model.
    weights: {"step", "weights"} of what is released.
    tasks: of eval.json.
    parameters: how many the model has.
    unsafe: what of the safety results is missing, where it is released all the same.
  """
  training = read_training(run, weights["step"])
  run = dataclasses.replace(run, recipe=_without_folders(run.recipe))
  energy = _energy(training, facts)
  safety = {task: found for task, found in tasks.items() if task in SAFETY}
  quality = {task: found for task, found in tasks.items() if task not in SAFETY}
  origin = f"{weights['weights']} weights of step {weights['step']:,}, made with Straits"
  if training is None:
    origin = "imported and written again by Straits"
  parts = [
    _header(name, run, tasks, training, facts, energy),
    f"# {name}",
    f"A decoder language model of {parameters / 1e6:,.1f}M parameters, {origin}.",
  ]
  if unsafe:
    parts.append(
      "> **Released without safety results.** What is missing: "
      + ", ".join(unsafe)
      + ". Nothing is known of how this model answers harmful requests, or of its biases."
    )
  parts += ["## Data", _data(run), "## Training", _training(run, training, facts, energy)]
  parts += ["## Evaluation", _table(quality) or "No benchmark was run."]
  if training is not None:
    parts.append(_heldout(run, weights))
  parts += ["## Safety", _table(safety) or "No safety set was run."]
  parts += ["## Limits", _limits(run, tasks, training)]
  parts += ["## Recipe", f"```json\n{json.dumps(run.recipe, indent=2)}\n```"]
  return "\n\n".join(filter(None, parts)) + "\n"


def _without_folders(value: Any) -> Any:
  """A recipe whose absolute paths keep their last part: the rest tells of a machine and user."""
  if isinstance(value, Mapping):
    return {key: _without_folders(part) for key, part in value.items()}
  if isinstance(value, (list, tuple)):
    return [_without_folders(part) for part in value]
  if isinstance(value, str) and Path(value).is_absolute():
    return f".../{Path(value).name}"
  return value


def _energy(training: Training | None, facts: Facts) -> dict[str, float]:
  """kWh and kg of CO2, where what they need is known."""
  if training is None or facts.watts is None:
    return {}
  found = {"kwh": training.device_hours * facts.watts / 1000}
  if facts.kg_co2_per_kwh is not None:
    found["kg_co2"] = found["kwh"] * facts.kg_co2_per_kwh
  return found


def _header(name, run: Run, tasks, training, facts: Facts, energy) -> str:
  """The YAML between dashes, of JSON values, which YAML reads."""
  header: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
  if facts.license is not None:
    header["license"] = facts.license
  header["tags"] = ["straits"]
  if "kg_co2" in energy:
    header["co2_eq_emissions"] = {
      "emissions": round(1000 * energy["kg_co2"], 3),
      "source": "device-hours x watts x grid factor",
      "training_type": "fine-tuning" if _began_as(run) else "pre-training",
      "geographical_location": facts.country or NOT_RECORDED,
      "hardware_used": f"{training.devices} x {training.device}",
    }
  found = [
    {
      "task": {"type": "text-generation"},
      "dataset": {"name": task, "type": _benchmark(task)},
      "metrics": [
        {"type": metric, "value": value["value"], "name": metric}
        for metric, value in result["metrics"].items()
      ],
    }
    for task, result in tasks.items()
  ]
  if found:
    header["model-index"] = [{"name": name, "results": found}]
  lines = (f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in header.items())
  return "\n".join(["---", *lines, "---"])


def _benchmark(task: str) -> str:
  form = prompts.FORMS.get(task)
  return form.benchmark if form else "heldout"


def _began_as(run: Run) -> str | None:
  """The folder whose weights the run began with."""
  return run.recipe.get("train", {}).get("init_from")


def _data(run: Run) -> str:
  data = run.recipe["data"]
  lines = []
  for name, source in data.get("sources", {}).items():
    source = source if isinstance(source, dict) else {"path": source}
    rest = [f"{key} {source[key]}" for key in ("weight", "dimension") if key in source]
    lines.append(f"- {name}: " + ", ".join([f"`{source['path']}`", *rest]))
  if "path" in data:
    lines.append(f"- prompts: `{data['path']}`")
  if not lines:
    imported = run.recipe.get("stage") == "import"
    lines = [f"- {NOT_RECORDED}" + (": the model was imported." if imported else ".")]
  if _began_as(run):
    lines.append(f"- before it: what `{_began_as(run)}`, whose weights it began with, was made of")
  lines.append(f"- tokenizer: {run.model.vocab_size:,} entries in the vocabulary")
  return "\n".join(lines)


def _training(run: Run, training: Training | None, facts: Facts, energy) -> str:
  if training is None:
    return "The model was imported; how it was trained is in no file here."
  skipped = "" if training.skipped is None else f" ({training.skipped:,} skipped as not finite)"
  before = f"; on from the weights of `{_began_as(run)}`, and what follows is this stage's alone"
  rows = {
    "stage": run.recipe["stage"] + (before if _began_as(run) else ""),
    "steps": f"{training.steps:,}{skipped}",
    "tokens": f"{training.tokens:,.0f}",
    "precision": run.recipe["compute"]["dtype"],
    "context": f"{run.max_length:,} tokens",
    "hardware": f"{training.devices} x {training.device}",
    "peak compute": training.peak,
    "device-hours": f"{training.device_hours:,.4g} (sum of the steps' times)",
    "year": str(training.year),
    "country": facts.country or NOT_RECORDED,
    "energy": f"{energy['kwh']:,.4g} kWh" if energy else NOT_RECORDED,
    "CO2": f"{energy['kg_co2']:,.4g} kg" if "kg_co2" in energy else NOT_RECORDED,
  }
  return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])


def _heldout(run: Run, weights: Mapping[str, Any]) -> str:
  """The held-out sets that were scored at the released step."""
  found = [
    line
    for line in metrics.read(run.folder / METRICS)
    if line["kind"] == "eval"
    and line["step"] == weights["step"]
    and line["weights"] == weights["weights"]
    and "bits_per_byte" in line
  ]
  if not found:
    return ""
  rows = [f"| {x['set']} | {x['loss']:.4f} | {x['bits_per_byte']:.4f} |" for x in found]
  return "\n".join(["| held-out set | loss | bits per byte |", "|---|---|---|", *rows])


def _table(tasks: Mapping[str, Mapping[str, Any]]) -> str:
  rows = [
    f"| {task} | {metric} | {results.shown(metric, value)} | {value['n']:,} |"
    for task, found in tasks.items()
    for metric, value in found["metrics"].items()
  ]
  if not rows:
    return ""
  head = ["| task | metric | value ± standard error | items |", "|---|---|---|---|"]
  return "\n".join([*head, *rows])


def _limits(run: Run, tasks: Mapping[str, Mapping[str, Any]], training: Training | None) -> str:
  lines = [
    f"- It reads at most {run.max_length:,} tokens.",
    "- It can say what is false, and repeat biases of its data; the tables say how far that was "
    "measured, on sets in English.",
  ]
  for task, found in tasks.items():
    counts = found["counts"]
    left_out = counts["items"] - counts["scored"]
    if left_out or counts["truncated"]:
      lines.append(
        f"- {task}: {left_out:,} of {counts['items']:,} items could not be scored, and "
        f"{counts['truncated']:,} were cut to the context."
      )
    if "in_the_corpus" not in counts:
      continue
    lines.append(f"- {task}: {counts['in_the_corpus']:,} items are in the training corpus.")
  if tasks and not any("in_the_corpus" in found["counts"] for found in tasks.values()):
    lines.append("- Whether the training data holds evaluation items was not looked for.")
  return "\n".join(lines)


def read_evaluations(
  folders: Sequence[Path], run: Run, weights: Mapping[str, Any]
) -> dict[str, Any]:
  """The tasks of several eval.json together.

  Raises:
    ValueError: one is of another model, or two have the same task.
  """
  tasks: dict[str, Any] = {}
  for folder in folders:
    content = results.read(folder)
    model = content["model"]
    found = (Path(model["run"]).resolve(), model["step"], model["weights"])
    wanted = (run.folder.resolve(), weights["step"], weights["weights"])
    if found != wanted:
      raise ValueError(
        f"{folder} evaluates {found[2]} weights of step {found[1]} of {found[0]}, and this is "
        f"{wanted[2]} of step {wanted[1]} of {wanted[0]}; evaluate what is released."
      )
    twice = tasks.keys() & content["tasks"].keys()
    if twice:
      raise ValueError(f"{folder} has {', '.join(sorted(twice))}, as another evaluation has.")
    tasks |= content["tasks"]
  return tasks

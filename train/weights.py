"""The weights of a run or of an imported model, for commands that train nothing."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from data.config import parse
from model import lora
from model.config import ModelConfig
from model.params import param_specs
from model.sharding import abstract_params
from train.checkpoint import Checkpointer
from train.workdir import CONFIG

MODEL = "model"


@dataclasses.dataclass(frozen=True)
class Run:
  """A run's folder, read.

  Attributes:
    folder: where it is.
    recipe: its config.json.
    model: the architecture.
    tokenizer: the file of its tokenizer.
    eot: the name of its end-of-text token.
    max_length: the tokens of its context.
  """

  folder: Path
  recipe: dict[str, Any]
  model: ModelConfig
  tokenizer: Path
  eot: str
  max_length: int


@dataclasses.dataclass(frozen=True)
class Weights:
  """Weights, and which ones they are: of a step, "raw" or their running "average"."""

  params: dict
  step: int
  which: str


def open_run(folder: Path) -> Run:
  """Reads what a run's folder says of its model and tokenizer.

  Raises:
    ValueError: it is no run's folder, or lacks a tokenizer.
  """
  path = folder / CONFIG
  try:
    recipe = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise ValueError(
      f"{folder} is no run's folder: {path} can't be read ({error}). Name the folder of a run, or "
      "make one by `python -m train.export import`."
    ) from error
  missing = [f"{a}.{b}" for a, b in _NEEDED if b not in recipe.get(a, {})]
  if missing:
    raise ValueError(f"{path} has no {', '.join(missing)}; is it a model with its tokenizer?")
  data = recipe["data"]
  own = (folder / "tokenizer" / f"tokenizer.{kind}" for kind in ("json", "model"))
  tokenizer = next((file for file in own if file.exists()), Path(data["tokenizer"]))
  model = parse(ModelConfig, recipe["model"], f"{path}: model")
  return Run(folder, recipe, model, tokenizer, data["eot"], data["seq_len"])


_NEEDED = (("model", "vocab_size"), ("data", "tokenizer"), ("data", "eot"), ("data", "seq_len"))


def read_weights(
  run: Run, mesh: Mesh, which: str | None = None, step: int | None = None
) -> Weights:
  """A run's weights, sharded over `mesh`.

  Args:
    which: "raw" or "average"; None for the average where the run keeps one.
    step: of the checkpoint; None for the newest.

  Raises:
    ValueError, OSError: there are none, or they are damaged.
  """
  if which is None:
    which = "average" if run.recipe.get("average", {}).get("fraction") else "raw"
  specs = param_specs(run.model)
  if "lora" in run.recipe:
    specs = lora.add(specs, parse(lora.LoraConfig, run.recipe["lora"], "lora"))
  abstract = abstract_params(specs, mesh)
  checkpoints = Checkpointer(run.folder / "checkpoints")
  if step is None:
    steps = checkpoints.steps()
    if not steps:
      raise ValueError(f"{run.folder} holds no checkpoints; name the folder of a run.")
    step = steps[-1]
  params = checkpoints.restore_weights({MODEL: abstract}, step, which)[MODEL]
  return Weights(params, step, which)

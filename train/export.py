"""Hugging Face models in and out.

  python -m train.export import SRC OUT
  python -m train.export export RUN OUT

The first makes a run's folder of a directory of safetensors, or of a GGUF file; the second makes a
directory that transformers loads of a run's folder. What `import` writes can be exported, and
trained on by `configs/continued.py`. An export is read back before it gets its name: its logits
must be the run's to the rounding of fp32, by our own code and, where it is installed, by
transformers.

Exit codes: 0 done, 2 bad input or other logits.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data.config import parse
from model import hf, hf_config, lora, safetensors
from model.config import ModelConfig
from model.params import count, map_specs, param_specs
from train import hf_tokenizer
from train.checkpoint import Checkpointer
from train.export_scorer import write_scorer
from train.gguf import File
from train.spill import on_disk
from train.workdir import CONFIG, write_config

MODEL = "model"
# What rounding in fp32 makes: SmolLM2's largest logit is 40, and transformers' own differ by 6e-5
# from those in fp64.
ABSOLUTE, RELATIVE = 1e-4, 1e-5
SHARD_BYTES = 5_000_000_000


def import_model(source: Path, out: Path) -> None:
  """Writes a run's folder (config.json, checkpoints/0 with weights alone, tokenizer/) of a model.

  Args:
    source: a directory of config.json and safetensors, or a .gguf file.
    out: a folder that does not exist.

  Raises:
    ValueError: the model is not supported, damaged, or not what transformers computes.
  """
  with _new_folder(out) as folder:
    side = folder / "tokenizer"
    side.mkdir()
    if source.suffix == ".gguf":
      stored = File(source)
      described = stored.config
      stored.write_tokenizer(side)
      files = side
    else:
      described = hf_config.read_json(source / "config.json")
      stored = safetensors.open_directory(source)
      hf_tokenizer.copy_beside(source, side)
      files = source  # which a message names
    config = hf_config.to_model(described)
    data = hf_tokenizer.data_section(files, described, config, out)
    params = hf.read_params(stored, config, on_disk(folder))
    if source.is_dir():
      ids = _random_ids(config)
      _compare_with_transformers(source, ids, lambda: _logits(params, ids, config))
    checkpoints = Checkpointer(folder / "checkpoints")
    checkpoints.save_weights(0, {MODEL: hf.as_jax(params)}, {"source": source.name})
    checkpoints.close()
    model = dataclasses.asdict(config)
    write_config(folder, {"stage": "import", "model": model, "data": data})
  print(f"{out}: {config.num_layers} layers, {_millions(config)}M parameters, from {source}")


def export_run(
  run: Path,
  out: Path,
  *,
  which: str | None = None,
  step: int | None = None,
  shard_bytes: int = SHARD_BYTES,
) -> str:
  """Writes a directory that `transformers` loads: config, weights, tokenizer, generation config.

  Returns what was written, in words.

  Args:
    run: a run's folder, or one that `import_model` wrote.
    out: a folder that does not exist.
    which: "raw" or "average" weights; None for the average where the run keeps one.
    step: of the checkpoint; None for the newest.
    shard_bytes: of tensors in a file.

  Raises:
    ValueError: the run is none, no family computes its model, or the logits differ.
    train.catalog.CheckpointError: no checkpoint can be read.
  """
  recipe = _read_recipe(run)
  config = parse(ModelConfig, recipe["model"], "config.model")
  if recipe.get("stage") in ("reward", "reward-model"):
    with _new_folder(out) as folder:
      return write_scorer(run, folder, shard_bytes)
  if which is None:
    which = "average" if recipe.get("average", {}).get("fraction") else "raw"
  data = recipe.get("data", {})
  described = hf_config.from_model(config, data.get("seq_len", 0))
  specs = param_specs(config)
  if "lora" in recipe:
    specs = lora.add(specs, parse(lora.LoraConfig, recipe["lora"], "config.lora"))
  abstract = map_specs(lambda spec: jax.ShapeDtypeStruct(spec.shape, np.float32), specs)
  ids = _random_ids(config)
  with _new_folder(out) as folder:
    empty = on_disk(folder)
    checkpoints = Checkpointer(run / "checkpoints")
    params = checkpoints.restore_weights({MODEL: abstract}, step, which, empty)[MODEL]
    if lora.is_adapted(params):
      params = lora.merge(params)
    expected = _logits(params, ids, config)
    described |= hf_tokenizer.write(run, recipe, config, folder)
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")
    shapes = hf.stored_shapes(config)
    safetensors.write_directory(folder, shapes, hf.stored_tensors(params, config), shard_bytes)
    del params
    written, params = hf.load(folder, empty)
    _require_same("what was written, read back", _logits(params, ids, written), expected)
    difference = _compare_with_transformers(folder, ids, lambda: expected)
  peer = "not installed" if difference is None else f"{difference:.1e}"
  return (
    f"{described['architectures'][0]}, {_millions(config)}M parameters, {which} weights; "
    f"read back with the same logits (transformers: {peer})"
  )


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
  """A folder beside `out` that becomes it once all is well, and goes otherwise."""
  if out.exists():
    raise ValueError(f"{out} exists; name a folder that does not.")
  folder = out.with_name(f".{out.name}.partial")
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  try:
    yield folder
    folder.rename(out)
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _read_recipe(run: Path) -> dict[str, Any]:
  recipe = hf_config.read_json(run / CONFIG)
  if "model" not in recipe:
    raise ValueError(f"{run / CONFIG} has no section `model`; name the folder of a run.")
  return recipe


def _millions(config: ModelConfig) -> str:
  return f"{count(param_specs(config)) / 1e6:.1f}"


# Reading back.


def _random_ids(config: ModelConfig) -> np.ndarray:
  return np.random.default_rng(0).integers(0, config.vocab_size, (2, 32), np.int32)


def _logits(params: dict, ids: np.ndarray, config: ModelConfig) -> np.ndarray:
  return np.stack(list(hf.logits(params, ids, config)))


def _require_same(what: str, logits: np.ndarray, expected: np.ndarray) -> float:
  """The largest difference; raises ValueError where it is more than rounding."""
  difference, largest = float(np.abs(logits - expected).max()), float(np.abs(expected).max())
  if not difference <= max(ABSOLUTE, RELATIVE * largest):
    raise ValueError(
      f"{what} gives other logits, by up to {difference:.3g} where the largest is {largest:.3g}, "
      "so nothing was written: the model computes something that this program does not know of."
    )
  return difference


def _compare_with_transformers(
  directory: Path, ids: np.ndarray, expected: Callable[[], np.ndarray]
) -> float | None:
  """The largest difference to what transformers computes, or None where it is not installed."""
  os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the files are all here
  try:
    import torch
    import transformers
  except ImportError:
    return None
  transformers.logging.disable_progress_bar()
  model = transformers.AutoModelForCausalLM.from_pretrained(directory).float().eval()
  with torch.no_grad():
    logits = model(torch.from_numpy(ids).long()).logits.numpy()
  return _require_same("transformers", logits, expected())


def main(argv: Sequence[str]) -> int:
  parser = argparse.ArgumentParser(
    prog="python -m train.export",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(dest="command", required=True)
  command = commands.add_parser("import", help="a Hugging Face model to a run's folder")
  command.add_argument("source", metavar="SRC", type=Path, help="a directory, or a .gguf file")
  command.add_argument("out", metavar="OUT", type=Path)
  command = commands.add_parser("export", help="a run's folder to a Hugging Face directory")
  command.add_argument("run", metavar="RUN", type=Path)
  command.add_argument("out", metavar="OUT", type=Path)
  command.add_argument(
    "--weights", choices=("raw", "average"), help="default: average if it is kept"
  )
  command.add_argument("--step", type=int, help="of the checkpoint; default: the newest")
  arguments = parser.parse_args(argv)
  jax.config.update("jax_platforms", "cpu")  # fp32 is exact there, and the host has the memory
  try:
    if arguments.command == "import":
      import_model(arguments.source, arguments.out)
    else:
      said = export_run(arguments.run, arguments.out, which=arguments.weights, step=arguments.step)
      print(f"{arguments.out}: {said}")
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))

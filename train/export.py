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
import tokenizers
from tokenizers import processors

from data import tokenizer as tokenizer_files
from data.config import parse
from model import hf, hf_config, safetensors
from model.config import ModelConfig
from model.params import count, map_specs, param_specs
from train.checkpoint import Checkpointer
from train.gguf import File
from train.workdir import CONFIG, write_config

MODEL = "model"
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
# What travels beside the weights, in a run's folder under tokenizer/.
SIDE_FILES = (
  *TOKENIZERS,
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "generation_config.json",
  "chat_template.jinja",
)
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
    else:
      described = hf_config.read_json(source / "config.json")
      stored = safetensors.open_directory(source)
      _copy_side_files(source, side)
    config = hf_config.to_model(described)
    data = _tokenizer_section(side, described, config, out)
    params = hf.read_params(stored, config)
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
) -> None:
  """Writes a directory that `transformers` loads: config, weights, tokenizer, generation config.

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
  if which is None:
    which = "average" if recipe.get("average", {}).get("fraction") else "raw"
  data = recipe.get("data", {})
  described = hf_config.from_model(config, data.get("seq_len", 0))
  specs = param_specs(config)
  cpu = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
  abstract = map_specs(
    lambda spec: jax.ShapeDtypeStruct(spec.shape, np.float32, sharding=cpu), specs
  )
  params = Checkpointer(run / "checkpoints").restore_weights({MODEL: abstract}, step, which)[MODEL]
  ids = _random_ids(config)
  expected = _logits(params, ids, config)
  with _new_folder(out) as folder:
    described |= _write_tokenizer(run, recipe, config, folder)
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")
    shapes = hf.stored_shapes(config)
    safetensors.write_directory(folder, shapes, hf.stored_tensors(params, config), shard_bytes)
    del params
    written, params = hf.load(folder)
    _require_same("what was written, read back", _logits(params, ids, written), expected)
    difference = _compare_with_transformers(folder, ids, lambda: expected)
  peer = "not installed" if difference is None else f"{difference:.1e}"
  print(
    f"{out}: {described['architectures'][0]}, {_millions(config)}M parameters, {which} weights; "
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


# The tokenizer and what else travels beside the weights.


def _copy_side_files(source: Path, folder: Path) -> None:
  for name in SIDE_FILES:
    if (source / name).is_file():
      shutil.copyfile(source / name, folder / name)


def _tokenizer_section(
  side: Path, described: dict[str, Any], config: ModelConfig, out: Path
) -> dict[str, Any]:
  """The recipe's section `data` of an imported model: tokenizer, its end of text, longest row."""
  section: dict[str, Any] = {"seq_len": described.get("max_position_embeddings") or 0}
  file = next((name for name in TOKENIZERS if (side / name).exists()), None)
  if file is None:
    return section
  section["tokenizer"] = str(out / "tokenizer" / file)
  section["eot"] = _end_of_text(side, file, described)
  found = tokenizer_files.load(str(side / file), section["eot"])
  _check_fits(found, config)
  return section


def _end_of_text(side: Path, file: str, described: dict[str, Any]) -> str:
  """The name of the token that ends a text, by the tokenizer's config or else the model's."""
  path = side / "tokenizer_config.json"
  named = hf_config.read_json(path).get("eos_token") if path.exists() else None
  if named is not None:
    return named["content"] if isinstance(named, dict) else named
  index = described.get("eos_token_id")
  index = index[0] if isinstance(index, list) else index
  if file == "tokenizer.json" and index is not None:
    name = tokenizers.Tokenizer.from_file(str(side / file)).id_to_token(index)
    if name is not None:
      return name
  if file == "tokenizer.model":
    return "</s>"
  raise ValueError(
    "neither tokenizer_config.json (eos_token) nor config.json (eos_token_id) names the token that "
    "ends a text; add it to one of them."
  )


def _check_fits(tokenizer: tokenizer_files.Tokenizer, config: ModelConfig) -> None:
  if tokenizer.vocab_size > config.vocab_size:
    raise ValueError(
      f"the tokenizer has {tokenizer.vocab_size} ids and the model's vocabulary "
      f"{config.vocab_size}; the files do not belong together."
    )


def _write_tokenizer(
  run: Path, recipe: dict[str, Any], config: ModelConfig, out: Path
) -> dict[str, Any]:
  """Writes the tokenizer's files and the generation config; returns their part of config.json."""
  data = recipe.get("data", {})
  if "tokenizer" not in data:
    return {}
  path = run / "tokenizer" / "tokenizer.json"
  if not path.exists() and data["tokenizer"] != "train":
    path = Path(data["tokenizer"])
  found = tokenizer_files.load(str(path), data["eot"])
  _check_fits(found, config)
  _copy_side_files(path.parent, out)
  ids = {"bos_token_id": found.eot, "eos_token_id": found.eot}
  if (out / "tokenizer_config.json").exists():
    names = hf_config.read_json(out / "tokenizer_config.json")
    ids = _special_ids(names, out) or ids
  else:
    _describe_own_tokenizer(path, data, found.eot, out)
  if not (out / "generation_config.json").exists():
    sample = recipe.get("sample", {})
    chosen = {key: sample[key] for key in ("temperature", "top_p") if key in sample}
    generation = ids | ({"do_sample": True} | chosen if chosen.get("temperature") else {})
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
  return ids


def _special_ids(names: dict[str, Any], folder: Path) -> dict[str, int]:
  if not (folder / "tokenizer.json").exists():
    return {}
  file = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  ids = {}
  for role in ("bos", "eos", "pad"):
    name = names.get(f"{role}_token")
    index = file.token_to_id(name["content"] if isinstance(name, dict) else name) if name else None
    if index is not None:
      ids[f"{role}_token_id"] = index
  return ids


def _describe_own_tokenizer(path: Path, data: dict[str, Any], eot: int, out: Path) -> None:
  """tokenizer_config.json, and a tokenizer.json that begins a text as every document began."""
  name = data["eot"]
  if path.suffix == ".json":
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    if tokenizer.post_processor is None:
      tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{name} $A", pair=f"{name} $A {name} $B", special_tokens=[(name, eot)]
      )
    tokenizer.save(str(out / "tokenizer.json"))
  described = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": name,
    "eos_token": name,
    "model_max_length": data["seq_len"],
    "clean_up_tokenization_spaces": False,
  }
  (out / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n")


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
      export_run(arguments.run, arguments.out, which=arguments.weights, step=arguments.step)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))

"""Supervised fine-tuning of a run, or of an imported model; of the quickstart's by default.

    python -m train.main --config configs/quickstart.py       (once)
    python -m train.main --config configs/sft.py
    python -m train.main --config configs/sft.py:runs/smollm2 --workdir runs/mine \\
      --config.data.sources.main='conversations/*.jsonl'

The architecture and the tokenizer are those of the folder that is named. Without files of one's own
the conversations are made from the documentation inside CPython (`data/instructions.py`).
"""

import json
import os

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import quickstart


def get_config(folder: str = "runs/quickstart") -> ConfigDict:
  return derived(quickstart.get_config(), folder, read_source(folder))


def derived(config: ConfigDict, folder: str, source: dict) -> ConfigDict:
  """The recipe with the compute and optimizer of `config`, of the run `source` in a folder."""
  config.stage = "sft"
  config.model = source["model"]
  own = os.path.isdir(os.path.join(folder, "checkpoints", "0"))  # an imported model has step 0
  config.data = {
    "sources": {"main": "embedded"},
    "tokenizer": tokenizer_of(folder, source),
    "eot": source["data"]["eot"],
    "chat_template": "model" if own else "plain",
    "seq_len": 256,
    "batch_size": 8,
    "max_segments": 32,
    "epochs": 3.0,
    "heldout_fraction": 0.05,
    "too_long": "drop",
    "dedup_threshold": placeholder(float),
    "leaks": {},
    "buckets": (),
    "refuse": (),
  }
  config.loss.neftune_alpha = 0.0
  config.lora = {"rank": 0, "alpha": 16.0, "targets": ("query", "key", "value", "out")}
  config.optimizer.update(peak_lr=2e-3, final_lr=2e-4, warmup_steps=20, weight_decay=0.0)
  config.train.steps = placeholder(int)
  config.train.init_from = folder
  config.average.fraction = 0.0
  config.checkpoint.every = 100
  config.eval = {"every": 100, "batch_size": 8}
  config.sample = {
    "every": 100,
    "prompts": 64,
    "max_tokens": 96,
    "temperature": 1.0,
    "top_p": 0.9,
  }
  return config


def read_source(folder: str) -> dict:
  """The config.json of a run's folder."""
  try:
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
      return json.load(file)
  except OSError as error:
    raise ValueError(
      f"there is no run in {folder!r} to begin with ({error}). Name one as :FOLDER, or "
      "make that one: python -m train.main --config configs/quickstart.py"
    ) from None


def source_or(folder: str, recipe: ConfigDict) -> dict:
  """The config.json of a run's folder; of a run that is yet to be made, for a plan, its recipe."""
  there = os.path.exists(os.path.join(folder, "config.json"))
  return read_source(folder) if there else recipe.to_dict()


def tokenizer_of(folder: str, source: dict) -> str:
  if source["data"]["tokenizer"] != "train":
    return source["data"]["tokenizer"]
  return os.path.join(folder, "tokenizer", "tokenizer.json")

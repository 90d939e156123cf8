"""A reward model as Hugging Face's sequence classification; `train.export` calls it."""

import dataclasses
import itertools
import json
from pathlib import Path

import jax
import numpy as np

from model import heads, hf, hf_config, safetensors
from model.config import ModelConfig
from model.sharding import MeshConfig, make_mesh
from train import hf_tokenizer, reward_model

ABSOLUTE, RELATIVE = 1e-4, 1e-5
SCORE = "score.weight"


def write_scorer(run: Path, folder: Path, shard_bytes: int) -> str:
  """Writes config, weights and tokenizer into an empty folder; returns what to say of it.

  The logits are the raw scores without their biases; see `model.hf_config.from_scorer`.

  Raises:
    ValueError: no family computes the model, or what was written has other scores.
  """
  found = reward_model.load(run, make_mesh(MeshConfig(1, 1, 1, 1), jax.devices("cpu")[:1]))
  scale, bias = found.params["normalization"], found.params["heads"]["bias_S"]
  stored = {name.removesuffix("_S"): np.asarray(x).tolist() for name, x in scale.items()}
  stored["mean"] = np.asarray(scale["mean_S"] - bias).tolist()
  described = hf_config.from_scorer(
    found.model, found.data["seq_len"], found.dimensions, stored
  ) | hf_tokenizer.write(run, {"data": dict(found.data)}, found.model, folder)
  described["pad_token_id"] = _pad(described)
  (folder / hf_config.CONFIG).write_text(json.dumps(described, indent=2) + "\n")
  # Tied, the trunk has no output projection of its own, and a scorer has none at all.
  trunk = dataclasses.replace(found.model, tie_embeddings=True)
  weight = np.asarray(found.params["heads"]["weight_SD"])
  safetensors.write_directory(
    folder,
    {SCORE: weight.shape} | hf.stored_shapes(trunk),
    itertools.chain([(SCORE, weight)], hf.stored_tensors(found.params, trunk)),
    shard_bytes,
  )
  ids = np.random.default_rng(0).integers(0, found.model.vocab_size, (2, 32), np.int32)
  expected = _scores(found.params, ids, found.model) - np.asarray(bias)
  tensors = dict(safetensors.open_directory(folder))
  read = {"heads": {"weight_SD": tensors.pop(SCORE), "bias_S": np.zeros_like(bias)}}
  read |= hf.read_params(tensors, trunk)
  _require_same("what was written, read back,", _scores(read, ids, found.model), expected)
  theirs = _transformers_scores(folder, ids)
  if theirs is None:
    return f"{described['architectures'][0]} of {', '.join(found.dimensions)}"
  difference = _require_same("transformers", theirs, expected)
  return (
    f"{described['architectures'][0]} of {', '.join(found.dimensions)}; the same scores by "
    f"transformers, to {difference:.1e}"
  )


def _pad(described: dict) -> int | None:
  """A pad token that no text ends with, or none: Hugging Face scores the last that is no pad."""
  candidates = [described.get(f"{role}_token_id") for role in ("pad", "bos")]
  return next((i for i in candidates if i not in (None, described.get("eos_token_id"))), None)


def _scores(params: dict, ids: np.ndarray, config: ModelConfig) -> np.ndarray:
  with jax.default_matmul_precision("highest"):
    score = jax.jit(
      lambda p, t: heads.text_scores(p, t, np.ones(ids.shape, np.int32), config, hf.FP32)
    )
    return np.asarray(score(params, ids))


def _transformers_scores(folder: Path, ids: np.ndarray) -> np.ndarray | None:
  try:
    import torch
    import transformers
  except ImportError:
    return None
  transformers.logging.disable_progress_bar()
  model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).float().eval()
  model.config.pad_token_id = None  # the random ids may be it; one row at a time needs none
  with torch.no_grad():
    rows = [model(torch.from_numpy(row[None]).long()).logits[0].numpy() for row in ids]
  return np.stack(rows)


def _require_same(what: str, scores: np.ndarray, expected: np.ndarray) -> float:
  difference, largest = float(np.abs(scores - expected).max()), float(np.abs(expected).max())
  if not difference <= max(ABSOLUTE, RELATIVE * largest):
    raise ValueError(f"{what} has other scores, by up to {difference:.3g}; nothing was written.")
  return difference

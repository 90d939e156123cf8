"""A reward model that is done: its weights with the scale of its scores frozen beside them.

In a run of `train.reward` it is the folder `scorer`, which is laid out like an imported model:
config.json, and checkpoints/0 with the trunk, the heads and, for every dimension S,

  normalization/mean_S, std_S       of the raw scores of the reference policy's answers
  normalization/weight_S            of the dimension in the combined reward
  normalization/temperature_S       by which differences of normalised scores become probabilities
"""

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from data.config import parse
from model import heads
from model.config import ComputeConfig, ModelConfig
from model.hf_config import read_json
from model.params import ParamSpec, map_specs
from model.sharding import abstract_params
from train.checkpoint import Checkpointer
from train.workdir import CONFIG, write_config

SCORER = "scorer"
MODEL = "model"


@dataclasses.dataclass(frozen=True)
class RewardModel:
  """Attributes:
  params: trunk, heads and normalization, fp32.
  model: the architecture.
  dimensions: what the scores are of, in their order.
  data: {"tokenizer", "eot", "chat_template", "seq_len"} that it was trained by.
  """

  params: dict
  model: ModelConfig
  dimensions: tuple[str, ...]
  data: Mapping[str, Any]


def specs(model: ModelConfig, dimensions: int) -> dict:
  """The specs of what `save` writes; none of it is to be trained."""
  scale = {
    "mean_S": ParamSpec((dimensions,), ("scores",)),
    "std_S": ParamSpec((dimensions,), ("scores",), mean=1.0),
    "weight_S": ParamSpec((dimensions,), ("scores",), mean=1.0),
    "temperature_S": ParamSpec((dimensions,), ("scores",), mean=1.0),
  }
  tree = heads.scorer_specs(model, dimensions) | {"normalization": scale}
  return map_specs(lambda spec: dataclasses.replace(spec, trained=False), tree)


def normalized(params: dict, scores: jax.Array) -> jax.Array:
  """(scores - mean) / std, [..., S]."""
  scale, shape = params["normalization"], (1,) * (scores.ndim - 1) + (-1,)
  return (scores - scale["mean_S"].reshape(shape)) / scale["std_S"].reshape(shape)


def combined(params: dict, scores: jax.Array) -> jax.Array:
  """The reward [...]: the weighted sum of normalised scores [..., S]."""
  return jnp.einsum("...S,S->...", normalized(params, scores), params["normalization"]["weight_S"])


def rewards(
  members: Sequence[dict],
  tokens_BL: jax.Array,
  mask_BL: jax.Array,
  config: ModelConfig,
  compute: ComputeConfig,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Of one reward model or an ensemble: rewards [B], scores [B,S], and their disagreement [B].

  Rewards and normalised scores are means over the members' parameters; the disagreement is the
  standard deviation of the members' rewards, 0 for one. Rows are padded at either side; see
  `model.heads.text_scores`.
  """
  each = [heads.text_scores(params, tokens_BL, mask_BL, config, compute) for params in members]
  scores_EBS = jnp.stack([normalized(p, s) for p, s in zip(members, each, strict=True)])
  rewards_EB = jnp.stack([combined(p, s) for p, s in zip(members, each, strict=True)])
  return jnp.mean(rewards_EB, 0), jnp.mean(scores_EBS, 0), jnp.std(rewards_EB, 0)


def save(
  folder: Path,
  params: dict,
  model: ModelConfig,
  dimensions: Sequence[str],
  data: Mapping[str, Any],
) -> None:
  """Writes `folder`, in place of what it held."""
  partial = folder.with_name(f".{folder.name}.{os.getpid()}")
  shutil.rmtree(partial, ignore_errors=True)
  checkpoints = Checkpointer(partial / "checkpoints")
  checkpoints.save_weights(0, {MODEL: params}, {"dimensions": list(dimensions)})
  checkpoints.close()
  recipe = {"stage": "reward-model", "model": dataclasses.asdict(model), "data": dict(data)}
  write_config(partial, recipe | {"score": {"dimensions": list(dimensions)}})
  shutil.rmtree(folder, ignore_errors=True)
  partial.rename(folder)


def load(folder: Path, mesh: Mesh) -> RewardModel:
  """The reward model of a run of `train.reward`, or of its folder `scorer`, on the mesh.

  Raises:
    ValueError: the folder holds none.
    train.catalog.CheckpointError: its checkpoint is damaged.
  """
  folder = folder / SCORER if (folder / SCORER).is_dir() else folder
  recipe = read_json(folder / CONFIG)
  if recipe.get("stage") != "reward-model":
    raise ValueError(
      f"{folder} holds no reward model that is done; name the folder of a run of "
      "configs/reward.py that came to its end."
    )
  model = parse(ModelConfig, recipe["model"], "config.model")
  dimensions = tuple(recipe["score"]["dimensions"])
  tree = specs(model, len(dimensions))
  abstract = {MODEL: abstract_params(tree, mesh)}
  params = Checkpointer(folder / "checkpoints").restore_weights(abstract)[MODEL]
  return RewardModel(params, model, dimensions, recipe["data"])

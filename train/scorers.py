"""Scores of responses: by the recipe's function, or by reward models."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from data import tokenizer
from data.questions import Prompts
from model import heads
from model.config import ModelConfig
from train import reward_model
from train.experience import Responses, on_host
from train.placement import from_whole
from train.ppo_config import PPOConfig
from train.reward_model import RewardModel
from train.rewards import Scores, by_function, weighted

Scorer = Callable[[Responses, dict[str, np.ndarray]], Scores]


def make_scorer(
  config: PPOConfig, prompts: Prompts, members: list[RewardModel], mesh: Mesh
) -> Scorer:
  """(responses, their `train.experience.sequences`) to scores.

  Raises:
    ValueError: reward models and policy are of different tokenizers.
  """
  if config.reward.function is not None:
    return _function_scorer(config, prompts)
  for folder, member in zip(config.reward.models, members, strict=True):
    theirs = tokenizer.load(member.data["tokenizer"], member.data["eot"]).fingerprint
    if theirs != prompts.tokenizer.fingerprint or member.dimensions != members[0].dimensions:
      raise ValueError(
        f"the reward model {folder} is of another tokenizer than the policy, or of other "
        f"dimensions than {config.reward.models[0]}; their ids must mean the same."
      )
  return _model_scorer(config, prompts, members, mesh)


def load_members(config: PPOConfig, mesh: Mesh) -> list[RewardModel]:
  """The reward models that the recipe names."""
  return [reward_model.load(Path(folder), mesh) for folder in config.reward.models]


def _function_scorer(config: PPOConfig, prompts: Prompts) -> Scorer:
  function, drop = config.reward.function, config.reward.bad_rows == "drop"

  def score(responses: Responses, batch: dict[str, np.ndarray]) -> Scores:
    del batch
    columns = by_function(
      function,
      [prompts.texts[row] for row in responses.prompts],
      responses.texts,
      [prompts.places[row] for row in responses.prompts],
      drop,
    )
    return Scores(columns, columns, weighted(columns, config.reward.weights))

  return score


def _model_scorer(
  config: PPOConfig, prompts: Prompts, members: list[RewardModel], mesh: Mesh
) -> Scorer:
  compiled = make_model_scores(config, [member.model for member in members])
  params = [member.params for member in members]

  def score(responses: Responses, batch: dict[str, np.ndarray]) -> Scores:
    ended = with_stop(batch["tokens"], batch["mask"], responses.stopped_B, prompts.stop_ids[-1])
    placed = from_whole(ended, mesh)
    raw_BS, scores_BS, total_B = on_host(compiled(params, placed["tokens"], placed["mask"]))
    names = members[0].dimensions
    columns = {name: scores_BS[:, s] for s, name in enumerate(names)}
    raw = {name: raw_BS[:, s] for s, name in enumerate(names)}
    if config.reward.weights:
      total_B = weighted(columns, config.reward.weights)
    return Scores(columns, raw, np.asarray(total_B, np.float64))

  return score


def make_model_scores(config: PPOConfig, models: list[ModelConfig]) -> Callable[..., tuple]:
  """Makes `scores(params of each model, tokens, mask)`: raw and normalised [B,S], rewards [B]."""
  least = config.reward.ensemble == "min"

  def compute(params, tokens, mask):
    raw_EBS = [
      heads.text_scores(one, tokens, mask, model, config.compute)
      for one, model in zip(params, models, strict=True)
    ]
    pairs = list(zip(params, raw_EBS, strict=True))
    total_EB = jnp.stack([reward_model.combined(one, raw_BS) for one, raw_BS in pairs])
    scores_EBS = jnp.stack([reward_model.normalized(one, raw_BS) for one, raw_BS in pairs])
    total_B = jnp.min(total_EB, axis=0) if least else jnp.mean(total_EB, axis=0)
    return jnp.mean(jnp.stack(raw_EBS), axis=0), jnp.mean(scores_EBS, axis=0), total_B

  return jax.jit(compute)


def with_stop(
  tokens_BL: np.ndarray, mask_BL: np.ndarray, stopped_B: np.ndarray, stop_id: int
) -> dict[str, np.ndarray]:
  """Rows one longer, in which a response that was cut off ends by the stop token as well.

  A reward model has seen no text without one.
  """
  tokens_BL = np.pad(tokens_BL, ((0, 0), (0, 1)))
  mask_BL = np.pad(mask_BL, ((0, 0), (0, 1)))
  length = mask_BL.shape[1]
  for row in np.flatnonzero(~stopped_B):
    end = length - np.argmax(mask_BL[row, ::-1] > 0)
    tokens_BL[row, end], mask_BL[row, end] = stop_id, 1
  return {"tokens": tokens_BL, "mask": mask_BL}


def critic_params(member: RewardModel, specs: dict) -> dict:
  """A reward model's trunk with one head: its combined reward at every token.

  Parameters of `specs` that it has none of (adapters) are None.
  """
  scale, given = member.params["normalization"], member.params["heads"]
  factor_S = scale["weight_S"] / scale["std_S"]
  weight_D = jnp.einsum("S,SD->D", factor_S, given["weight_SD"])
  bias = jnp.sum(factor_S * (given["bias_S"] - scale["mean_S"]))
  params = {name: tree for name, tree in member.params.items() if name != "normalization"}
  params = jax.tree.map(jnp.copy, params)  # the updates take over the critic's memory
  params["heads"] = {"weight_SD": weight_D[None], "bias_S": bias[None]}
  flat = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
  return jax.tree_util.tree_map_with_path(
    lambda path, _: flat.get(jax.tree_util.keystr(path)), specs
  )

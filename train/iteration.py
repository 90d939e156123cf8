"""One iteration of reinforcement learning: responses and their rewards, then updates."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data.questions import Prompts, chosen
from model import lora
from model.heads import scorer_specs
from model.params import param_specs
from model.sharding import batch_shards, row_sharding
from train import loop, xla
from train.experience import (
  Responses,
  make_gather,
  make_measure,
  make_prepare,
  respond,
  sequences,
)
from train.initial import given_params
from train.optimizer import learning_rate, make_optimizer
from train.placement import from_whole
from train.policy_losses import policy_loss, value_loss
from train.ppo_config import PPOConfig
from train.reward_model import RewardModel
from train.rewards import RewardError, Rewards, rewards
from train.scorers import Scorer, critic_params
from train.state import TrainState, init_state
from train.step import make_train_step

POLICY, CRITIC = "model", "critic"


class Models:
  """The trained models: their specs, optimizers and abstract states; a critic only for GAE."""

  def __init__(self, config: PPOConfig, mesh: Mesh):
    self.specs = {POLICY: lora.add(param_specs(config.model), config.lora)}
    self._configs = {POLICY: config.optimizer}
    if config.advantage.method == "gae":
      self.specs[CRITIC] = lora.add(scorer_specs(config.model, 1), config.lora)
      self._configs[CRITIC] = config.critic.optimizer
    self.optimizers = {
      name: make_optimizer(self._configs[name], config.updates, specs)
      for name, specs in self.specs.items()
    }
    self.schedules = {
      name: learning_rate(self._configs[name], config.updates) for name in self.specs
    }
    self.abstract = {
      name: loop.abstract_train_state(specs, config, self.optimizers[name], mesh)
      for name, specs in self.specs.items()
    }

  def begin(self, config: PPOConfig, members: list[RewardModel]) -> dict[str, TrainState]:
    """The states before the first update; a critic begins as a reward model where there is one."""
    states = {}
    for name, specs in self.specs.items():
      abstract = self.abstract[name]
      make = functools.partial(
        init_state, specs, self.optimizers[name], config.loss_scale, config.seed, False
      )
      shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
      state = jax.jit(make, out_shardings=shardings)()
      folder = config.train.init_from
      if name == CRITIC:
        folder = config.critic.init_from or folder
      given = None
      if name == CRITIC and members and config.critic.init_from is None:
        given = critic_params(members[0], abstract.params)
      elif folder is not None:
        given = given_params(folder, abstract.params)
      if given is not None:
        params = jax.tree.map(
          lambda g, p: p if g is None else g, given, state.params, is_leaf=lambda x: x is None
        )
        state = state.replace(params=params)
      states[name] = state
    return states


def make_update(config: PPOConfig, models: Models, mesh: Mesh) -> Callable[..., tuple]:
  """Makes `update(states, learned, rows) -> (states, metrics)`: one minibatch, `rows` of the batch.

  It takes over the memory of the states. Metrics are {"policy/...", "critic/..."}.
  """
  losses = {
    POLICY: functools.partial(
      policy_loss,
      config=config.model,
      compute=config.compute,
      temperature=config.rollout.temperature,
      clip=config.clip,
      penalty=config.kl,
    ),
    CRITIC: functools.partial(
      value_loss, config=config.model, compute=config.compute, clip=config.clip
    ),
  }
  steps = {
    name: make_train_step(
      losses[name],
      models.optimizers[name],
      models.schedules[name],
      specs,
      scale=config.loss_scale,
      average=config.average,
      total_steps=config.updates,
      microbatches=config.train.microbatches,
      row_shards=batch_shards(mesh),
    )
    for name, specs in models.specs.items()
  }
  rows_sharding = row_sharding(mesh)

  def update(states, learned, rows):
    batch = jax.tree.map(
      lambda x: jax.lax.with_sharding_constraint(jnp.take(x, rows, axis=0), rows_sharding), learned
    )
    out, metrics = {}, {}
    for name, step in steps.items():
      prefix = "policy" if name == POLICY else name
      with jax.named_scope(prefix):
        out[name], numbers = step(states[name], batch)
      metrics |= {f"{prefix}/{key}": value for key, value in numbers.items()}
    return out, metrics

  shardings = {
    name: jax.tree.map(lambda leaf: leaf.sharding, abstract)
    for name, abstract in models.abstract.items()
  }
  replicated = NamedSharding(mesh, PartitionSpec())
  return jax.jit(
    update,
    out_shardings=(shardings, replicated),
    donate_argnums=0,
    compiler_options=xla.jit_options(config.train.xla_profile, config.train.xla_options),
  )


def rollout_key(seed: int, step: int) -> jax.Array:
  """Another key every iteration, and the same one when it is replayed."""
  return jax.random.fold_in(jax.random.key(seed), step)


class Iteration:
  """What the iterations of a run have in common, compiled once.

  Args:
    score: of `train.scorers.make_scorer`.
    reference: weights, or None where the policy has adapters.
  """

  def __init__(
    self,
    config: PPOConfig,
    prompts: Prompts,
    models: Models,
    score: Scorer,
    reference: dict | None,
    mesh: Mesh,
  ):
    self._config, self._prompts, self._score = config, prompts, score
    self._reference, self._mesh = reference, mesh
    self._gather = make_gather(config, models.specs[POLICY], mesh)
    self._measure = make_measure(config, mesh)
    self._prepare = make_prepare(config)
    self._update = make_update(config, models, mesh)

  def respond(
    self, states: dict[str, TrainState], step: int, beta: float
  ) -> tuple[dict, dict[str, Any], list[dict]]:
    """Responses of the policy after `step` iterations, and what to learn from them.

    Returns:
      the batch to learn from, the numbers to log, and samples to show.
    """
    config, prompts = self._config, self._prompts
    rows = chosen(len(prompts.ids), step, config.data.batch_size, config.seed)
    rows = np.repeat(rows, config.rollout.samples)
    key = rollout_key(config.seed, step)
    policy = states[POLICY].params
    responses = respond(self._gather(policy), prompts, rows, key, config, self._mesh)
    batch = sequences(responses, prompts, config)
    scores = self._score(responses, batch)
    reward = rewards(scores, responses.stopped_B, config.reward)
    batch |= {
      "total": reward.total_B,
      "kept": _whole_groups(reward.kept_B, config).astype(np.float32),
      "rollout": responses.log_probs_BT,
    }
    placed = from_whole(batch, self._mesh)
    critic = states[CRITIC].params if CRITIC in states else None
    measured = self._measure(policy, self._reference, critic, placed)
    learned, numbers = self._prepare(placed, measured, jnp.float32(beta))
    line = {name: float(value) for name, value in jax.device_get(numbers).items()}
    line |= summary(responses, reward)
    return learned, line, self._shown(responses, reward)

  def learn(
    self, states: dict[str, TrainState], learned: dict, step: int
  ) -> tuple[dict[str, TrainState], dict[str, Any]]:
    """The states after the iteration's updates, and their mean numbers."""
    config, taken, stopped = self._config, [], False
    size = config.responses // config.reuse.minibatches
    for epoch in range(config.reuse.epochs):
      order = np.random.default_rng([config.seed, step, epoch]).permutation(config.responses)
      for first in range(0, config.responses, size):
        rows = jnp.asarray(order[first : first + size], jnp.int32)
        states, metrics = self._update(states, learned, rows)
        taken.append(metrics)
        limit = config.reuse.kl_stop
        stopped = limit is not None and float(metrics["policy/approx_kl"]) > 1.5 * limit
        if stopped:
          break
      if stopped:
        break
    taken = jax.device_get(taken)
    line = {name: float(np.mean([m[name] for m in taken])) for name in taken[0]}
    for name in ("policy/lr", "policy/loss_scale", "policy/updates"):
      line[name] = float(taken[-1][name])
    line["policy/max_ratio_gap"] = float(max(m["policy/max_ratio_gap"] for m in taken))
    first = taken[0]
    return states, line | {
      "updates": len(taken),
      "skipped_updates": sum(int(m["policy/skipped"]) for m in taken),
      "kl_stopped": stopped,
      "first_ratio": float(first["policy/ratio"]),
      "first_ratio_gap": float(first["policy/max_ratio_gap"]),
      "first_clip_fraction": float(first["policy/clip_fraction"]),
      "first_approx_kl": float(first["policy/approx_kl"]),
    }

  def _shown(self, responses: Responses, reward: Rewards) -> list[dict[str, Any]]:
    """The first responses, with their rewards by dimension."""
    return [
      {
        "prompt": self._prompts.texts[responses.prompts[row]],
        "response": responses.texts[row],
        "rewards": {n: _finite(x[row]) for n, x in reward.scores.dimensions.items()},
        "total": float(reward.total_B[row]),
        "kept": bool(reward.kept_B[row]),
        "stopped": bool(responses.stopped_B[row]),
        "tokens": int(responses.counts_B[row]),
      }
      for row in range(min(self._config.sample.kept, len(responses.texts)))
    ]


def _finite(value: float) -> float | None:
  return float(value) if np.isfinite(value) else None


def _whole_groups(kept_B: np.ndarray, config: PPOConfig) -> np.ndarray:
  """A dropped response takes those to the same prompt with it where they are compared."""
  if config.advantage.method == "gae":
    return kept_B
  groups = kept_B.reshape(-1, config.rollout.samples)
  return np.repeat(groups.all(axis=1), config.rollout.samples)


def summary(responses: Responses, reward: Rewards) -> dict[str, Any]:
  """What is logged of responses and rewards; a dropped response is in `dropped` alone.

  Raises:
    RewardError: no response is left.
  """
  kept = reward.kept_B
  if not kept.any():
    raise RewardError("no response of the iteration has a reward.")
  line = {
    "reward": float(np.mean(reward.total_B[kept])),
    "reward_std": float(np.std(reward.total_B[kept])),
    "reward_clipped": reward.clipped,
    "dropped": int(np.sum(~kept)),
    "length": float(np.mean(responses.counts_B)),
    "response_tokens": int(np.sum(responses.counts_B)),
    "eos_rate": float(np.mean(responses.stopped_B)),
  }
  for name, column in reward.scores.dimensions.items():
    line[f"reward/{name}"] = float(np.mean(column[kept]))
    line[f"raw/{name}"] = float(np.mean(reward.scores.raw[name][kept]))
  return line

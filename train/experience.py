"""What an iteration learns from: responses, their log-probabilities, values and advantages."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from data.questions import Prompts, joined, padded_right
from model import lora
from model.decode import AXES, prepare
from model.generate import request_keys, rollout
from model.sampling import SamplingConfig, pad_ids, settings
from model.sharding import abstract_params, batch_shards, partition_spec
from train import advantages as adv
from train import kl, xla
from train.placement import from_whole
from train.policy_losses import response_log_probs, response_values
from train.ppo_config import PPOConfig
from train.step import split_rows


@dataclasses.dataclass(frozen=True)
class Responses:
  """Responses of an iteration, on the host; every process has all of them.

  Attributes:
    prompts: the index of each row's prompt.
    tokens_BT: int32, the stop token included; anything after `counts_B`.
    counts_B: how many tokens each has.
    stopped_B: whether a stop token ended it.
    log_probs_BT: of the tokens, as the rollout computed them.
    texts: decoded, without the stop token.
  """

  prompts: np.ndarray
  tokens_BT: np.ndarray
  counts_B: np.ndarray
  stopped_B: np.ndarray
  log_probs_BT: np.ndarray
  texts: list[str]


def make_gather(config: PPOConfig, specs: dict, mesh: Mesh) -> Callable[[dict], dict]:
  """Weights from the layout of training to that of the rollout.

  "gathered" is without the axis fsdp, so that no token of a response waits for weights. They are
  gathered in the dtype of computing, as `model.decode.prepare` makes them.
  """
  if config.rollout.layout == "training":
    return lambda params: params
  make = functools.partial(prepare, config=config.model, compute=config.compute)

  def gathered(path, leaf) -> NamedSharding:
    axes = AXES.get(path[-1].key, (None,) * leaf.ndim)
    return NamedSharding(mesh, partition_spec(tuple(a if a != "embed" else None for a in axes)))

  with jax.set_mesh(mesh):
    made = jax.eval_shape(make, abstract_params(specs, mesh))
  return jax.jit(make, out_shardings=jax.tree_util.tree_map_with_path(gathered, made))


def respond(
  params: dict,
  prompts: Prompts,
  rows: Sequence[int],
  key: jax.Array,
  config: PPOConfig,
  mesh: Mesh,
) -> Responses:
  """A response to each of `rows`, indices of prompts, drawn at the rollout's temperature.

  The whole distribution is drawn from: no top-p, top-k, penalty or least length.
  """
  tokens, lengths = padded_right([prompts.ids[row] for row in rows], config.data.prompt_tokens)
  vocab = config.model.vocab_size
  requests = {
    "prompts": tokens,
    "lengths": lengths,
    "stop": pad_ids([prompts.stop_ids] * len(rows), vocab),
  }
  placed = from_whole(requests, mesh)
  out = rollout(
    params,
    placed["prompts"],
    placed["lengths"],
    request_keys(key, jnp.arange(len(rows))),
    settings([SamplingConfig(config.rollout.temperature, 1.0)] * len(rows), vocab),
    placed["stop"],
    max_tokens=config.data.response_tokens,
    config=config.model,
    compute=config.compute,
  )
  out = on_host(out)
  texts = [
    prompts.decode(row[:count]) for row, count in zip(out.tokens_BT, out.counts_B, strict=True)
  ]
  return Responses(
    np.asarray(rows), out.tokens_BT, out.counts_B, out.stopped_B, out.log_probs_BT, texts
  )


def on_host(tree):
  """The whole arrays of a tree, as numpy, on every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def sequences(responses: Responses, prompts: Prompts, config: PPOConfig) -> dict[str, np.ndarray]:
  """The arrays "tokens" and "mask" [B,L], "counts" [B]: prompts on the left, then responses."""
  ids = [prompts.ids[row] for row in responses.prompts]
  tokens, mask = joined(ids, config.data.prompt_tokens, responses.tokens_BT, responses.counts_B)
  return {"tokens": tokens, "mask": mask, "counts": responses.counts_B.astype(np.int32)}


def make_measure(config: PPOConfig, mesh: Mesh) -> Callable[..., dict[str, jax.Array]]:
  """Makes `measure(policy, reference, critic, batch)`: what the models say of responses.

  `reference` is None where the policy has adapters: it is the policy without them. `critic` is
  None without one. The result has "log_probs", "reference", "entropy" and "values" [B,T], the last
  one 0 without a critic. The rows are taken as a training step takes them, some at a time.
  """
  shards, length = batch_shards(mesh), config.data.response_tokens
  parts = config.reuse.minibatches * config.train.microbatches

  def one(policy, reference, critic, batch):
    def log_probs(params):
      return response_log_probs(
        params,
        batch["tokens"],
        batch["mask"],
        length,
        config.rollout.temperature,
        config.model,
        config.compute,
      )

    with jax.named_scope("policy"):
      own_BT, entropy_BT = log_probs(policy)
    with jax.named_scope("reference"):
      reference_BT, _ = log_probs(lora.without(policy) if reference is None else reference)
    values_BT = jnp.zeros_like(own_BT)
    if critic is not None:
      with jax.named_scope("critic"):
        values_BT = response_values(
          critic, batch["tokens"], batch["mask"], length, config.model, config.compute
        )
    return {
      "log_probs": own_BT,
      "entropy": entropy_BT,
      "reference": reference_BT,
      "values": values_BT,
    }

  def measure(policy, reference, critic, batch):
    split = split_rows({k: batch[k] for k in ("tokens", "mask")}, parts, shards)
    out = jax.lax.map(lambda part: one(policy, reference, critic, part), split)

    def together(x):  # as split_rows took them apart
      x = x.reshape(parts, shards, -1, length)
      return jnp.swapaxes(x, 0, 1).reshape(-1, length)

    return jax.tree.map(together, out)

  options = xla.jit_options(config.train.xla_profile, config.train.xla_options)
  return jax.jit(measure, compiler_options=options)


def make_prepare(config: PPOConfig) -> Callable[..., tuple[dict, dict]]:
  """Makes `prepare(batch, measured, beta)`: the batch to learn from, and numbers to log.

  Args of what it makes:
    batch: of `sequences`, with "total" and "kept" [B], the rewards, and "rollout" [B,T].
    measured: of `make_measure`.
    beta: fp32 scalar.
  """
  convention, length = config.advantage.convention, config.data.response_tokens
  in_reward = config.kl.where == "reward"

  def prepare(batch, measured, beta):
    counts_B, kept_B = batch["counts"], batch["kept"][:, None]
    response_BT = adv.response_mask(counts_B, length) * kept_B
    valued_BT = adv.value_mask(counts_B, length, convention) * kept_B
    log_ratio_BT = jnp.where(response_BT > 0, measured["log_probs"] - measured["reference"], 0.0)
    penalty = beta if in_reward else jnp.zeros_like(beta)
    rewards_BT = adv.token_rewards(log_ratio_BT, batch["total"], counts_B, penalty, convention)
    if config.advantage.method == "gae":
      advantages_BT, returns_BT = adv.generalized_advantages(
        rewards_BT, measured["values"], valued_BT, config.advantage.gamma, config.advantage.lam
      )
    else:
      totals_B = jnp.sum(rewards_BT, axis=1)
      advantages_B = adv.group_advantages(totals_B, config.rollout.samples, config.advantage.method)
      advantages_BT = advantages_B[:, None] * response_BT
      returns_BT = jnp.zeros_like(advantages_BT)
    if config.advantage.whiten:
      advantages_BT = adv.whiten(advantages_BT, response_BT, convention == "trl")
    learned = {
      "tokens": batch["tokens"],
      "mask": batch["mask"],
      "log_probs": measured["log_probs"],
      "reference": measured["reference"],
      "advantages": advantages_BT,
      "response": response_BT,
      "beta": jnp.full(counts_B.shape, beta),
      "values": measured["values"],
      "returns": returns_BT,
      "valued": valued_BT,
    }
    return learned, _numbers(batch, measured, response_BT, log_ratio_BT, learned, beta)

  return jax.jit(prepare)


def _numbers(batch, measured, mask_BT, log_ratio_BT, learned, beta) -> dict[str, jax.Array]:
  """What is logged of an iteration's responses; no padding is in any of it."""
  kept = jnp.maximum(jnp.sum(batch["kept"]), 1.0)

  def a_token(x_BT):
    return adv.masked_mean(x_BT, mask_BT)

  def a_response(x_BT):
    return jnp.sum(jnp.where(mask_BT > 0, x_BT, 0.0)) / kept

  k3_BT = kl.estimate(log_ratio_BT, "k3")
  gap_BT = jnp.where(mask_BT > 0, jnp.abs(batch["rollout"] - measured["log_probs"]), 0.0)
  return {
    "kl": a_response(log_ratio_BT),
    "kl_token": a_token(log_ratio_BT),
    "kl_k3": a_response(k3_BT),
    "kl_k3_token": a_token(k3_BT),
    "entropy": a_token(measured["entropy"]),
    "non_score_reward": -beta * a_response(log_ratio_BT),
    "reference_nll": a_token(-measured["reference"]),
    "rollout_gap": a_token(gap_BT),
    "max_rollout_gap": jnp.max(gap_BT),
    "value": adv.masked_mean(measured["values"], learned["valued"]),
    "return": adv.masked_mean(learned["returns"], learned["valued"]),
    "explained_variance": adv.explained_variance(
      measured["values"], learned["returns"], learned["valued"]
    ),
  }

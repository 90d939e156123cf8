"""PPO's losses over the tokens of responses, as sums and weights; see `train.losses`."""

import dataclasses

import jax
import jax.numpy as jnp

from model import transformer
from model.config import ComputeConfig, ModelConfig
from model.heads import token_values
from train import kl

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class ClipConfig:
  """How far an iteration may move: the ratio from 1, a value from the one of the rollout.

  Attributes:
    ratio: https://arxiv.org/abs/1707.06347's epsilon.
    value: the same of values, absolute.
    value_coefficient: of the critic's loss.
  """

  ratio: float
  value: float
  value_coefficient: float

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if not value > 0:
        raise ValueError(f"clip.{name} is {value}; it must be positive.")


def positions_of(mask_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(segment ids, positions) of rows that are padded on any side."""
  segment_ids_BL = (mask_BL > 0).astype(jnp.int32)
  return segment_ids_BL, jnp.maximum(jnp.cumsum(segment_ids_BL, axis=1) - 1, 0)


def before(tokens_BL: jax.Array, length: int) -> tuple[int, int]:
  """The tokens whose hidden states predict the last `length` ones, each the one before it."""
  end = tokens_BL.shape[1] - 1
  return end - length, end


def response_log_probs(
  params: dict,
  tokens_BL: jax.Array,
  mask_BL: jax.Array,
  length: int,
  temperature: float,
  config: ModelConfig,
  compute: ComputeConfig,
) -> tuple[jax.Array, jax.Array]:
  """Log-probabilities of the last `length` tokens of each row and entropies, fp32 [B,T] each.

  Both are of softmax(logits / temperature) over the whole vocabulary, which is what was sampled
  from. What padding holds means nothing.

  Args:
    tokens_BL: prompts, padded on the left, then responses, padded on the right.
    mask_BL: 1 at real tokens.
    length: tokens of a response; `compute.loss_chunks` divides it.
  """
  batch, chunks = tokens_BL.shape[0], compute.loss_chunks
  segment_ids_BL, positions_BL = positions_of(mask_BL)
  hidden_BTD = transformer.hidden_states(
    params, tokens_BL, segment_ids_BL, positions_BL, config, compute, before(tokens_BL, length)
  )
  targets_BT = tokens_BL[:, -length:]

  def chunk(inputs):
    hidden_BCD, targets_BC = inputs
    logits_BCV = transformer.logits(params, hidden_BCD, config, compute) / temperature
    log_z_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
    target_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
    fixed_BCV = jax.lax.stop_gradient(logits_BCV)  # the entropy is only reported
    probs_BCV = jnp.exp(fixed_BCV - jax.lax.stop_gradient(log_z_BC)[..., None])
    expected_BC = jnp.sum(probs_BCV * fixed_BCV, axis=-1)
    return target_BC - log_z_BC, jax.lax.stop_gradient(log_z_BC) - expected_BC

  if chunks == 1:
    return chunk((hidden_BTD, targets_BT))

  def split(x):
    return jnp.moveaxis(x.reshape(batch, length // chunks, chunks, *x.shape[2:]), 2, 0)

  outs = jax.lax.map(
    jax.checkpoint(chunk, prevent_cse=False), (split(hidden_BTD), split(targets_BT))
  )
  return tuple(jnp.moveaxis(x, 0, 2).reshape(batch, length) for x in outs)


def response_values(
  params: dict,
  tokens_BL: jax.Array,
  mask_BL: jax.Array,
  length: int,
  config: ModelConfig,
  compute: ComputeConfig,
) -> jax.Array:
  """fp32 values [B,T]: that of a token from the hidden state that predicts it."""
  wanted = before(tokens_BL, length)
  return token_values(params, tokens_BL, mask_BL, config, compute, wanted)[..., 0]


def clipped_policy_loss(
  log_probs: jax.Array,
  old_log_probs: jax.Array,
  advantages: jax.Array,
  mask: jax.Array,
  clip: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Sum over the mask of max(-A rho, -A clip(rho, 1 +- clip)), and sums to report.

  https://arxiv.org/abs/1707.06347, equation 7. Divide by sums["weight"], the tokens, once all of
  them are added up.
  """
  log_ratio = jnp.where(mask > 0, log_probs - old_log_probs, 0.0)
  advantages = jnp.where(mask > 0, advantages, 0.0)
  ratio = jnp.exp(log_ratio)
  plain, clipped = -advantages * ratio, -advantages * jnp.clip(ratio, 1 - clip, 1 + clip)
  loss = jnp.sum(jnp.maximum(plain, clipped) * mask)
  return loss, {
    "weight": jnp.sum(mask),
    "loss": loss,
    "clip_fraction": jnp.sum(jnp.where(clipped > plain, mask, 0.0)),
    "approx_kl": jnp.sum(kl.estimate(log_ratio, "k2") * mask),
    "ratio": jnp.sum(ratio * mask),
    "max_ratio_gap": jnp.max(jnp.abs(ratio - 1.0) * mask),
  }


def clipped_value_loss(
  values: jax.Array,
  old_values: jax.Array,
  returns: jax.Array,
  mask: jax.Array,
  clip: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Sum over the mask of half the larger squared error, of the value or of it clipped; and sums."""
  # Masked before anything is computed of them, so that no gradient is 0 times infinity.
  values, old_values, returns = (jnp.where(mask > 0, x, 0.0) for x in (values, old_values, returns))
  near = jnp.clip(values, old_values - clip, old_values + clip)
  plain, clipped = jnp.square(values - returns), jnp.square(near - returns)
  loss = 0.5 * jnp.sum(jnp.maximum(plain, clipped))
  return loss, {
    "weight": jnp.sum(mask),
    "loss": loss,
    "clip_fraction": jnp.sum(jnp.where(clipped > plain, mask, 0.0)),
  }


def policy_loss(
  params: dict,
  batch: Batch,
  key: jax.Array,
  *,
  config: ModelConfig,
  compute: ComputeConfig,
  temperature: float,
  clip: ClipConfig,
  penalty: kl.KLConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The policy's objective for `train.step`.

  Args:
    batch: "tokens" and "mask" [B,L]; "log_probs", "reference", "advantages", "response" [B,T],
      the last one 1 at the tokens that count; "beta" [B], the same number in each row.
  """
  del key
  mask_BT = batch["response"]
  log_probs_BT, entropy_BT = response_log_probs(
    params, batch["tokens"], batch["mask"], mask_BT.shape[1], temperature, config, compute
  )
  objective, sums = clipped_policy_loss(
    log_probs_BT, batch["log_probs"], batch["advantages"], mask_BT, clip.ratio
  )
  if penalty.where == "loss":
    log_ratio_BT = jnp.where(mask_BT > 0, log_probs_BT - batch["reference"], 0.0)
    estimate_BT = kl.estimate(log_ratio_BT, penalty.estimator)
    objective += jnp.sum(batch["beta"][:, None] * estimate_BT * mask_BT)
  return objective, sums | {"entropy": jnp.sum(entropy_BT * mask_BT)}


def value_loss(
  params: dict,
  batch: Batch,
  key: jax.Array,
  *,
  config: ModelConfig,
  compute: ComputeConfig,
  clip: ClipConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The critic's objective for `train.step`: "values", "returns" and "valued" [B,T] in the batch,
  the last one 1 where values count, and the rest as of `policy_loss`."""
  del key
  mask_BT = batch["valued"]
  values_BT = response_values(
    params, batch["tokens"], batch["mask"], mask_BT.shape[1], config, compute
  )
  loss, sums = clipped_value_loss(values_BT, batch["values"], batch["returns"], mask_BT, clip.value)
  return clip.value_coefficient * loss, sums

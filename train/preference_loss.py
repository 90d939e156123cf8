"""The loss of direct preference optimization (https://arxiv.org/abs/2305.18290, equation 7)."""

import dataclasses

import jax
import jax.numpy as jnp

from model import transformer
from model.config import ComputeConfig, ModelConfig
from train.losses import cross_entropy

SMOOTHINGS = ("conservative", "robust")


@dataclasses.dataclass(frozen=True)
class PreferenceLossConfig:
  """softplus(-beta d), d the difference of log-ratios to the reference, chosen minus rejected.

  Attributes:
    beta: how much leaving the reference costs: the reward is beta times a log-ratio.
    label_smoothing: the share e of labels that are taken to be wrong, in [0, 0.5).
    smoothing: "conservative" is (1 - e) softplus(-beta d) + e softplus(beta d), which stops where
      the model is as sure as the labels are; "robust" is the unbiased estimate
      ((1 - e) softplus(-beta d) - e softplus(beta d)) / (1 - 2 e) of https://arxiv.org/abs/2403.00409.
  """

  beta: float
  label_smoothing: float
  smoothing: str

  def __post_init__(self):
    if not self.beta > 0:
      raise ValueError(f"loss.beta is {self.beta}; it must be positive.")
    if not 0 <= self.label_smoothing < 0.5:
      raise ValueError(f"loss.label_smoothing is {self.label_smoothing}; it must be in [0, 0.5).")
    if self.smoothing not in SMOOTHINGS:
      raise ValueError(
        f"loss.smoothing is {self.smoothing!r}; it must be one of {', '.join(SMOOTHINGS)}."
      )


def answer_log_probs(
  params: dict, batch: dict, model: ModelConfig, compute: ComputeConfig
) -> jax.Array:
  """Log-probabilities [B,P,2] in nats of the chosen and rejected answers, summed over tokens, fp32.

  `batch` is that of `data.preferences`; where there is no pair they are 0.
  """
  hidden_BLD = transformer.hidden_states(
    params, batch["tokens"], batch["segment_ids"], batch["positions"], model, compute
  )
  nll_BL, _ = cross_entropy(params, hidden_BLD, batch["targets"], model, compute)
  said_BL = jnp.where(batch["loss_weights"] > 0, -nll_BL, 0.0)
  batch_size, pairs = batch["real"].shape
  segments_S = jnp.arange(1, 2 * pairs + 1)
  own_BLS = batch["segment_ids"][:, :, None] == segments_S[None, None, :]
  sums_BS = jnp.sum(jnp.where(own_BLS, said_BL[:, :, None], 0.0), axis=1)
  return sums_BS.reshape(batch_size, pairs, 2)


def pair_losses(margin: jax.Array, config: PreferenceLossConfig) -> jax.Array:
  """The loss of each pair; `margin` is beta times the difference of log-ratios."""
  right, wrong = jax.nn.softplus(-margin), jax.nn.softplus(margin)
  e = config.label_smoothing
  if config.smoothing == "robust":
    return ((1 - e) * right - e * wrong) / (1 - 2 * e)
  return (1 - e) * right + e * wrong


def preference_loss(
  params: dict,
  batch: dict,
  key: jax.Array,
  model: ModelConfig,
  compute: ComputeConfig,
  config: PreferenceLossConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The sum over pairs; sums to report are of rewards, beta times log-ratios, and their margin."""
  del key
  ratios_BP2 = answer_log_probs(params, batch, model, compute) - batch["reference"]
  chosen_BP, rejected_BP = (config.beta * ratios_BP2[..., side] for side in (0, 1))
  margin_BP, real_BP = chosen_BP - rejected_BP, batch["real"]
  total = jnp.sum(pair_losses(margin_BP, config) * real_BP)
  return total, {
    "weight": jnp.sum(real_BP),
    "loss": total,
    "accuracy": jnp.sum(jnp.where(margin_BP > 0, real_BP, 0.0)),
    "margin": jnp.sum(margin_BP * real_BP),
    "chosen_reward": jnp.sum(chosen_BP * real_BP),
    "rejected_reward": jnp.sum(rejected_BP * real_BP),
  }

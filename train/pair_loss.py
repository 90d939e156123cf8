"""The Bradley-Terry loss of several scores, with margins, ties and missing dimensions."""

import dataclasses

import jax
import jax.numpy as jnp

from model import heads, transformer
from model.config import ComputeConfig, ModelConfig

TIES = ("mask", "soft")


@dataclasses.dataclass(frozen=True)
class PairLossConfig:
  """softplus(-(better - worse - margin * strength)), plus center * (chosen + rejected)^2.

  Attributes:
    margin: k of the margin k * strength (https://arxiv.org/abs/2307.09288, section 3.2.2).
    center: the coefficient of https://arxiv.org/abs/2312.09244, which keeps scores around 0.
    ties: "mask" leaves a tie out, "soft" takes either to be better with probability 1/2, without a
      margin.
  """

  margin: float
  center: float
  ties: str

  def __post_init__(self):
    if not self.margin >= 0 or not self.center >= 0:
      raise ValueError(f"loss has margin={self.margin}, center={self.center}; they must be >= 0.")
    if self.ties not in TIES:
      raise ValueError(f"loss.ties is {self.ties!r}; it must be one of {', '.join(TIES)}.")


def pair_scores(
  params: dict, batch: dict, config: ModelConfig, compute: ComputeConfig
) -> tuple[jax.Array, jax.Array]:
  """fp32 scores [B,P,S] of the chosen and of the rejected answers, at their last tokens."""
  hidden_BLD = transformer.hidden_states(
    params, batch["tokens"], batch["segment_ids"], batch["positions"], config, compute
  )
  chosen_BPS = heads.scores_at(params, hidden_BLD, batch["chosen_at"])
  return chosen_BPS, heads.scores_at(params, hidden_BLD, batch["rejected_at"])


def comparison_loss(
  chosen: jax.Array,
  rejected: jax.Array,
  sign: jax.Array,
  strength: jax.Array,
  rated: jax.Array,
  config: PairLossConfig,
) -> tuple[jax.Array, jax.Array]:
  """The loss of each comparison, 0 where it does not count, and its weight, 0 or 1; like `sign`."""
  difference = chosen - rejected
  tie = sign == 0
  decided = jax.nn.softplus(-(sign * difference - config.margin * strength))
  undecided = 0.5 * (jax.nn.softplus(-difference) + jax.nn.softplus(difference))
  weight = rated * jnp.where(tie, float(config.ties == "soft"), 1.0)
  loss = jnp.where(tie, undecided, decided) + config.center * jnp.square(chosen + rejected)
  return weight * loss, weight


def reward_loss(
  params: dict,
  batch: dict,
  key: jax.Array,
  model: ModelConfig,
  compute: ComputeConfig,
  config: PairLossConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The sum over comparisons; "accuracy" is of those that are no tie."""
  del key
  chosen_BPS, rejected_BPS = pair_scores(params, batch, model, compute)
  loss_BPS, weight_BPS = comparison_loss(
    chosen_BPS, rejected_BPS, batch["sign"], batch["strength"], batch["rated"], config
  )
  total = jnp.sum(loss_BPS)
  right_BPS = (batch["sign"] * (chosen_BPS - rejected_BPS) > 0) & (weight_BPS > 0)
  decided = jnp.sum(jnp.where(batch["sign"] != 0, weight_BPS, 0.0))
  weight = jnp.sum(weight_BPS)
  accuracy = jnp.sum(right_BPS, dtype=jnp.float32) / jnp.maximum(decided, 1.0)
  return total, {"weight": weight, "loss": total, "accuracy": accuracy * weight}

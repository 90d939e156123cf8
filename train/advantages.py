"""From rewards to advantages: of every token by a critic, or of a response by its group.

Arrays are [B,T] with T tokens of a response, padded on the right; a mask is 1 through the stop
token inclusive. What padding holds changes nothing.
"""

import dataclasses

import jax
import jax.numpy as jnp

CONVENTIONS = ("straits", "trl")
METHODS = ("gae", "rloo", "grpo")


@dataclasses.dataclass(frozen=True)
class AdvantageConfig:
  """How much better than expected a token was.

  Attributes:
    method: "gae" by a critic; "rloo" or "grpo" by other responses to the same prompt.
    gamma, lam: of generalized advantage estimation (https://arxiv.org/abs/1506.02438).
    whiten: whether advantages get mean 0 and variance 1 over the tokens of the iteration.
    convention: "trl" computes as TRL's PPO trainer: the score one past the stop token, a value
      there too, and the unbiased variance.
  """

  method: str
  gamma: float
  lam: float
  whiten: bool
  convention: str

  def __post_init__(self):
    for name, allowed in (("method", METHODS), ("convention", CONVENTIONS)):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f"advantage.{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}."
        )
    if not (0 <= self.gamma <= 1 and 0 <= self.lam <= 1):
      raise ValueError(
        f"advantage has gamma={self.gamma}, lam={self.lam}; both must lie in [0, 1]."
      )


def response_mask(counts_B: jax.Array, length: int) -> jax.Array:
  """fp32 [B,T]: 1 at each row's first `counts` tokens."""
  return (jnp.arange(length)[None, :] < counts_B[:, None]).astype(jnp.float32)


def value_mask(counts_B: jax.Array, length: int, convention: str) -> jax.Array:
  """fp32 [B,T]: where values count; in TRL's convention one token longer."""
  return response_mask(counts_B + int(convention == "trl"), length)


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
  """The mean where the mask is 1, whatever is elsewhere; 0 for an empty mask."""
  return jnp.sum(jnp.where(mask > 0, x, 0.0)) / jnp.maximum(jnp.sum(mask), 1.0)


def masked_variance(x: jax.Array, mask: jax.Array, unbiased: bool = False) -> jax.Array:
  """The variance where the mask is 1; by n - 1 if unbiased."""
  variance = masked_mean(jnp.square(x - masked_mean(x, mask)), mask)
  count = jnp.sum(mask)
  return variance * count / jnp.maximum(count - 1, 1) if unbiased else variance


def whiten(x: jax.Array, mask: jax.Array, unbiased: bool = False) -> jax.Array:
  """Mean 0 and variance 1 over all that the mask has, in the whole array; 0 elsewhere."""
  scale = jax.lax.rsqrt(masked_variance(x, mask, unbiased) + 1e-8)
  return jnp.where(mask > 0, (x - masked_mean(x, mask)) * scale, 0.0)


def token_rewards(
  log_ratio_BT: jax.Array,
  scores_B: jax.Array,
  counts_B: jax.Array,
  beta: jax.Array,
  convention: str,
) -> jax.Array:
  """-beta times the log-ratio to the reference at each token, and the score on the last one.

  Args:
    log_ratio_BT: log pi - log pi_ref of the sampled tokens.
    scores_B: of the whole responses.
    counts_B: tokens of each response, its stop token included; at least 1.
  """
  length = log_ratio_BT.shape[1]
  penalty_BT = jnp.where(response_mask(counts_B, length) > 0, -beta * log_ratio_BT, 0.0)
  last_B = counts_B - 1
  if convention == "trl":
    last_B = jnp.minimum(counts_B, length - 1)
  here_BT = jnp.arange(length)[None, :] == last_B[:, None]
  return penalty_BT + jnp.where(here_BT, scores_B[:, None], 0.0)


def generalized_advantages(
  rewards_BT: jax.Array, values_BT: jax.Array, mask_BT: jax.Array, gamma: float, lam: float
) -> tuple[jax.Array, jax.Array]:
  """Advantages and returns [B,T] by https://arxiv.org/abs/1506.02438, not whitened.

  Past the last token of the mask the value is 0: the response has ended there.
  """
  values_BT = jnp.where(mask_BT > 0, values_BT, 0.0)
  rewards_BT = jnp.where(mask_BT > 0, rewards_BT, 0.0)
  next_BT = jnp.pad(values_BT[:, 1:], ((0, 0), (0, 1)))
  delta_BT = rewards_BT + gamma * next_BT - values_BT

  def back(advantage_B, delta_B):
    advantage_B = delta_B + gamma * lam * advantage_B
    return advantage_B, advantage_B

  start_B = jnp.zeros(delta_BT.shape[0], delta_BT.dtype)
  _, advantages_TB = jax.lax.scan(back, start_B, delta_BT.T, reverse=True)
  advantages_BT = jnp.where(mask_BT > 0, advantages_TB.T, 0.0)
  return advantages_BT, advantages_BT + values_BT


def group_advantages(totals_B: jax.Array, group: int, method: str) -> jax.Array:
  """Advantages [B] of responses among the `group` in a row that answer the same prompt.

  "rloo" takes off the mean of the others (https://arxiv.org/abs/2402.14740); "grpo" takes off the
  mean of all and divides by their deviation, that of n - 1, plus 1e-4, as in
  https://arxiv.org/abs/2402.03300's code and TRL's.
  """
  totals_NG = totals_B.reshape(-1, group)
  centered_NG = totals_NG - jnp.mean(totals_NG, axis=1, keepdims=True)
  if method == "rloo":
    return (centered_NG * group / (group - 1)).reshape(-1)
  assert method == "grpo", method
  deviation_N1 = jnp.sqrt(jnp.sum(jnp.square(centered_NG), axis=1, keepdims=True) / (group - 1))
  return (centered_NG / (deviation_N1 + 1e-4)).reshape(-1)


def explained_variance(values: jax.Array, returns: jax.Array, mask: jax.Array) -> jax.Array:
  """1 - Var(returns - values) / Var(returns) where the mask is 1."""
  total = masked_variance(returns, mask)
  return 1.0 - masked_variance(returns - values, mask) / jnp.maximum(total, 1e-12)

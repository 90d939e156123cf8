"""How far a policy is from its reference: estimators over samples, and the penalty's controller.

Of `log_ratio` = log pi(token) - log pi_ref(token) at tokens that pi sampled, as in
http://joschu.net/blog/kl-approx.html: k1 has the right mean, k3 too with less variance; as a loss
only k2 has the gradient of the KL.
"""

import dataclasses

import jax
import jax.numpy as jnp

ESTIMATORS = ("k1", "k2", "k3")


@dataclasses.dataclass(frozen=True)
class KLConfig:
  """The penalty on the KL to the reference.

  Attributes:
    beta: its coefficient, at the start where it adapts.
    target: the KL of a response, summed over its tokens, that beta adapts to; None keeps beta.
    horizon: episodes over which beta follows.
    where: "reward", as a reward a token, or "loss", as a term of the loss.
    estimator: "k1" for the reward, "k2" or "k3" for the loss.
  """

  beta: float
  target: float | None
  horizon: int
  where: str
  estimator: str

  def __post_init__(self):
    if not self.beta >= 0 or self.horizon < 1 or not (self.target is None or self.target > 0):
      raise ValueError(
        f"kl has beta={self.beta}, target={self.target}, horizon={self.horizon}; they must be "
        ">= 0, positive or null, and at least 1."
      )
    allowed = {"reward": ("k1",), "loss": ("k2", "k3")}
    if self.where not in allowed:
      raise ValueError(f"kl.where is {self.where!r}; it must be 'reward' or 'loss'.")
    if self.estimator not in allowed[self.where]:
      raise ValueError(
        f"kl.estimator is {self.estimator!r}; in the {self.where} it must be "
        f"{' or '.join(allowed[self.where])}."
      )


def estimate(log_ratio: jax.Array, estimator: str) -> jax.Array:
  """The estimator at each token, nats."""
  if estimator == "k1":
    return log_ratio
  if estimator == "k2":
    return jnp.square(log_ratio) / 2
  assert estimator == "k3", estimator
  return jnp.expm1(-log_ratio) + log_ratio


def adapted_beta(beta: float, kl: float, episodes: int, config: KLConfig) -> float:
  """Beta for the next iteration, by lm-human-preferences' proportional controller.

  Args:
    beta: of this iteration.
    kl: its mean KL of a whole response, summed over the tokens; never a mean a token.
    episodes: how many responses it had.
  """
  if config.target is None:
    return beta
  error = min(max(kl / config.target - 1.0, -0.2), 0.2)
  return beta * (1.0 + error * episodes / config.horizon)

"""Advantages and losses of TRL's PPO trainer, in the convention "trl"; `make_trl_ppo.py`."""

import jax.numpy as jnp
import numpy as np

from tests.fixtures import make_trl_ppo as made
from train import advantages as adv
from train.policy_losses import clipped_policy_loss, clipped_value_loss


def test_advantages_and_losses_of_trl():
  want = dict(np.load(made.FILE))
  counts = jnp.asarray(want["counts"])
  assert set(want["counts"]) - {made.RESPONSE}  # some stopped early
  mask = adv.response_mask(counts, made.RESPONSE)
  valued = adv.value_mask(counts, made.RESPONSE, "trl")
  np.testing.assert_array_equal(mask, want["policy_mask"])
  np.testing.assert_array_equal(valued, want["value_mask"])
  log_ratio = want["log_probs"] - want["reference"]
  rewards = adv.token_rewards(
    jnp.asarray(log_ratio), jnp.asarray(want["scores"]), counts, jnp.float32(made.KL_COEF), "trl"
  )
  values = jnp.asarray(want["values"])
  advantages, returns = adv.generalized_advantages(rewards, values, valued, 1.0, 0.95)
  np.testing.assert_allclose(
    np.where(mask, advantages, 0), np.where(mask, want["advantages"], 0), rtol=1e-4, atol=1e-4
  )
  whitened = adv.whiten(advantages, mask, unbiased=True)
  np.testing.assert_allclose(whitened, np.where(mask, want["whitened"], 0), rtol=1e-4, atol=1e-4)
  loss, sums = clipped_policy_loss(
    jnp.asarray(want["new_log_probs"]), jnp.asarray(want["log_probs"]), whitened, mask, made.CLIP
  )
  np.testing.assert_allclose(loss / sums["weight"], want["policy_loss"], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(
    sums["clip_fraction"] / sums["weight"], want["policy_clipped"], rtol=1e-4
  )
  loss, sums = clipped_value_loss(
    jnp.asarray(want["new_values"]), values, returns, valued, made.CLIP_VALUE
  )
  np.testing.assert_allclose(2 * loss / sums["weight"], want["value_loss"], rtol=1e-4)
  np.testing.assert_allclose(
    sums["clip_fraction"] / sums["weight"], want["value_clipped"], rtol=1e-4
  )
  # The definition's own convention is another: the score lies on the stop token.
  ours = adv.token_rewards(
    jnp.asarray(log_ratio), jnp.asarray(want["scores"]), counts, jnp.float32(made.KL_COEF),
    "straits",
  )  # fmt: skip
  early = want["counts"] < made.RESPONSE
  assert np.all(np.abs(ours - rewards).max(axis=1)[early] > 0)

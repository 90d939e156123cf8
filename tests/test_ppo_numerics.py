"""Advantages, KL estimators, controller and losses of PPO against plain numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.params import param_specs
from model.transformer import forward
from tests.build import compute_config, model_config, numpy_params
from train import advantages, kl, policy_losses

COUNTS = np.array([5, 1, 7, 3])
ROWS, LENGTH = 4, 7
MASK = (np.arange(LENGTH) < COUNTS[:, None]).astype(np.float64)


def draws(seed: int, *names: str) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  return {name: rng.standard_normal((ROWS, LENGTH)) for name in names}


def f32(x):
  return jnp.asarray(x, jnp.float32)


def junk(x, mask, value):
  """x with `value` where the mask is 0."""
  return np.where(mask > 0, x, value)


def slow_gae(rewards, values, gamma, lam):
  out = np.zeros_like(rewards)
  for row, count in enumerate(COUNTS):
    for t in range(count):
      for later in range(t, count):
        after = values[row, later + 1] if later + 1 < count else 0.0
        delta = rewards[row, later] + gamma * after - values[row, later]
        out[row, t] += (gamma * lam) ** (later - t) * delta
  return out


@pytest.mark.parametrize("gamma,lam", [(1.0, 0.95), (0.9, 0.7)])
@pytest.mark.parametrize("value", [0.0, 1e3, np.nan])
def test_advantages_are_those_of_the_definition_whatever_padding_holds(gamma, lam, value):
  x = draws(0, "rewards", "values")
  want = slow_gae(x["rewards"], x["values"], gamma, lam)
  got, returns = advantages.generalized_advantages(
    f32(junk(x["rewards"], MASK, value)), f32(junk(x["values"], MASK, value)), f32(MASK), gamma, lam
  )
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(returns, (want + x["values"]) * MASK, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1e3, np.nan])
def test_whitening_is_over_all_tokens_and_no_padding(value):
  x = 3 + 2 * draws(1, "x")["x"]
  real = x[MASK > 0]
  got = np.asarray(advantages.whiten(f32(junk(x, MASK, value)), f32(MASK)))
  np.testing.assert_allclose(got[MASK > 0], (real - real.mean()) / real.std(), rtol=1e-5, atol=1e-5)
  assert not got[MASK == 0].any()


@pytest.mark.parametrize("value", [0.0, 1e3, np.nan])
def test_the_score_is_on_the_stop_token_and_the_penalty_on_every_token(value):
  x = draws(2, "ratio")["ratio"]
  scores = np.array([0.7, -1.0, 2.0, 0.25])
  want = -0.3 * x * MASK
  want[np.arange(ROWS), COUNTS - 1] += scores
  got = advantages.token_rewards(
    f32(junk(x, MASK, value)), f32(scores), jnp.asarray(COUNTS), 0.3, "straits"
  )
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(
    np.asarray(got).sum(), scores.sum() - 0.3 * (x * MASK).sum(), rtol=1e-5
  )


def test_estimators_of_the_kl():
  x = np.linspace(-3, 3, 13)
  for name, want in (("k1", x), ("k2", x**2 / 2), ("k3", np.exp(-x) - 1 + x)):
    np.testing.assert_allclose(kl.estimate(f32(x), name), want, rtol=1e-5, atol=1e-6)
  rng = np.random.default_rng(0)
  p, q = (rng.dirichlet(np.ones(9)) for _ in range(2))
  exact = (p * np.log(p / q)).sum()
  for name in ("k1", "k3"):  # their means under p are the KL
    mean = (p * np.asarray(kl.estimate(f32(np.log(p / q)), name))).sum()
    np.testing.assert_allclose(mean, exact, rtol=1e-5)


def test_only_k2_has_the_gradient_of_the_kl():
  rng = np.random.default_rng(1)
  logits, reference = (f32(rng.standard_normal(9)) for _ in range(2))
  probs = jax.nn.softmax(logits)

  def exact(x):
    return jnp.sum(jax.nn.softmax(x) * (jax.nn.log_softmax(x) - jax.nn.log_softmax(reference)))

  def expected(x, name):
    ratio = jax.nn.log_softmax(x) - jax.nn.log_softmax(reference)
    return jnp.sum(probs * kl.estimate(ratio, name))

  want = jax.grad(exact)(logits)
  got = {name: jax.grad(expected)(logits, name) for name in kl.ESTIMATORS}
  np.testing.assert_allclose(got["k2"], want, rtol=1e-4, atol=1e-6)
  assert np.abs(got["k1"]).max() < 1e-6
  assert np.abs(got["k3"] - want).max() > 0.01


def test_beta_follows_the_kl_of_whole_responses():
  config = kl.KLConfig(beta=0.15, target=6.0, horizon=10_000, where="reward", estimator="k1")
  beta = 0.15
  for value, error in ((6.0, 0.0), (6.6, 0.1), (60.0, 0.2), (0.0, -0.2)):
    assert kl.adapted_beta(beta, value, 64, config) == pytest.approx(beta * (1 + error * 64 / 1e4))
  fixed = kl.KLConfig(beta=0.15, target=None, horizon=1, where="reward", estimator="k1")
  assert kl.adapted_beta(0.15, 60.0, 64, fixed) == 0.15


@pytest.mark.parametrize("value", [0.0, 1e3, np.nan])
def test_clipped_losses(value):
  x = draws(3, "new", "old", "advantages", "v", "v_old", "returns")
  new, old, adv, v, v_old, returns = (f32(junk(a, MASK, value)) for a in x.values())
  loss, sums = policy_losses.clipped_policy_loss(new, old, adv, f32(MASK), 0.2)
  rho = np.exp(x["new"] - x["old"])
  a, b = -x["advantages"] * rho, -x["advantages"] * np.clip(rho, 0.8, 1.2)
  np.testing.assert_allclose(loss, (np.maximum(a, b) * MASK).sum(), rtol=1e-5)
  for name, want in (
    ("weight", MASK.sum()),
    ("clip_fraction", ((b > a) * MASK).sum()),
    ("approx_kl", ((x["new"] - x["old"]) ** 2 / 2 * MASK).sum()),
    ("ratio", (rho * MASK).sum()),
    ("max_ratio_gap", (np.abs(rho - 1) * MASK).max()),
  ):
    np.testing.assert_allclose(sums[name], want, rtol=1e-5, err_msg=name)
  loss, sums = policy_losses.clipped_value_loss(v, v_old, returns, f32(MASK), 0.2)
  near = np.clip(x["v"], x["v_old"] - 0.2, x["v_old"] + 0.2)
  c, d = (x["v"] - x["returns"]) ** 2, (near - x["returns"]) ** 2
  np.testing.assert_allclose(loss, (np.maximum(c, d) * MASK).sum() / 2, rtol=1e-5)
  np.testing.assert_allclose(sums["clip_fraction"], ((d > c) * MASK).sum(), rtol=1e-5)


def test_gradients_of_the_losses_ignore_padding_that_is_not_finite():
  x = draws(4, "new", "old", "advantages")
  new, old, adv = (f32(junk(a, MASK, np.nan)) for a in x.values())
  grad = jax.grad(lambda n: policy_losses.clipped_policy_loss(n, old, adv, f32(MASK), 0.2)[0])(new)
  assert np.isfinite(grad).all() and not np.asarray(grad)[MASK == 0].any()
  grad = jax.grad(lambda n: policy_losses.clipped_value_loss(n, old, adv, f32(MASK), 0.2)[0])(new)
  assert np.isfinite(grad).all() and not np.asarray(grad)[MASK == 0].any()


def test_group_advantages():
  x = np.random.default_rng(5).standard_normal(12)
  groups = x.reshape(-1, 4)
  others = (groups.sum(1, keepdims=True) - groups) / 3
  got = advantages.group_advantages(f32(x), 4, "rloo")
  np.testing.assert_allclose(got, (groups - others).reshape(-1), rtol=1e-5, atol=1e-6)
  want = (groups - groups.mean(1, keepdims=True)) / (groups.std(1, ddof=1, keepdims=True) + 1e-4)
  got = advantages.group_advantages(f32(x), 4, "grpo")
  np.testing.assert_allclose(got, want.reshape(-1), rtol=1e-5, atol=1e-6)
  assert not np.asarray(advantages.group_advantages(f32(np.ones(8)), 4, "grpo")).any()


def test_explained_variance():
  x = draws(6, "returns", "noise")
  values = x["returns"] + 0.5 * x["noise"]
  real = MASK > 0
  want = 1 - np.var((x["returns"] - values)[real]) / np.var(x["returns"][real])
  got = advantages.explained_variance(f32(values), f32(x["returns"]), f32(MASK))
  np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("chunks", [1, 2])
def test_log_probs_of_responses_at_the_temperature_and_junk_in_padding(chunks):
  model, compute = model_config(), compute_config(loss_chunks=chunks)
  params = numpy_params(param_specs(model), 0)
  rng = np.random.default_rng(0)
  prompts, counts, width, length = (3, 5, 1), (4, 2, 1), 5, 4
  tokens = rng.integers(1, 48, (3, width + length))
  mask = np.zeros((3, width + length), np.int32)
  for row, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
    mask[row, width - prompt : width + count] = 1

  def run(tokens):
    return policy_losses.response_log_probs(
      params, jnp.asarray(tokens), jnp.asarray(mask), length, 0.7, model, compute
    )

  got, entropy = run(tokens)
  other, other_entropy = run(np.where(mask > 0, tokens, rng.integers(1, 48, tokens.shape)))
  for row, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
    text = tokens[row, width - prompt : width + count]
    ones = np.ones((1, len(text)), np.int32)
    logits = forward(params, text[None], ones, np.arange(len(text))[None], model, compute)[0]
    logits = np.asarray(logits, np.float64) / 0.7
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for t in range(count):
      at = prompt + t
      np.testing.assert_allclose(got[row, t], log_probs[at - 1, text[at]], rtol=1e-4, atol=1e-5)
      want = -(np.exp(log_probs[at - 1]) * log_probs[at - 1]).sum()
      np.testing.assert_allclose(entropy[row, t], want, rtol=1e-4, atol=1e-5)
      assert other[row, t] == got[row, t] and other_entropy[row, t] == entropy[row, t]

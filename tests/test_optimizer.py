"""The optimizer: schedule, clipping and decay, against AdamW written out in float64."""

import jax
import numpy as np
import optax
import pytest

from model.params import ParamSpec
from tests.build import optimizer_config
from train.optimizer import applied_updates, learning_rate, make_optimizer

SPECS = {
  "matrix_DF": ParamSpec((4, 3), ("embed", "mlp"), std=1.0),
  "bias_NK": ParamSpec((2, 3), ("heads", "head_dim")),
  "norm_D": ParamSpec((2, 4), ("layers", "norm"), mean=1.0),
}


def test_schedule():
  config = optimizer_config(peak_lr=1.0, final_lr=0.1, warmup_steps=4)
  lr = learning_rate(config, total_steps=20)
  got = [float(lr(step)) for step in range(25)]
  warmup = [step / 4 for step in range(4)]
  cosine = [0.1 + 0.9 * (1 + np.cos(np.pi * step / 16)) / 2 for step in range(17)]
  np.testing.assert_allclose(got, [*warmup, *cosine, *[0.1] * 4], atol=1e-6)


def test_reference_schedule_warms_up_over_4000_updates():
  config = optimizer_config(peak_lr=1.5e-4, final_lr=1.5e-5, warmup_steps=4_000)
  lr = learning_rate(config, total_steps=214_577)
  for step, expected in [(0, 0.0), (2_000, 7.5e-5), (4_000, 1.5e-4), (214_577, 1.5e-5)]:
    assert float(lr(step)) == pytest.approx(expected, rel=1e-5)


def test_a_warmup_as_long_as_the_run_is_refused():
  with pytest.raises(ValueError, match=r"warmup_steps=20 leaves nothing of train\.steps=20"):
    learning_rate(optimizer_config(warmup_steps=20), total_steps=20)


@pytest.mark.parametrize("clip", [0.5, 1e9], ids=["clipped", "unclipped"])
def test_matches_adamw_in_float64(clip):
  config = optimizer_config(clip_norm=clip, warmup_steps=1, weight_decay=0.3, eps=1e-3)
  lr = learning_rate(config, 8)
  tx = make_optimizer(config, 8, SPECS)
  rng = np.random.default_rng(0)
  params = {k: rng.standard_normal(s.shape).astype(np.float32) for k, s in SPECS.items()}
  exact = {k: v.astype(np.float64) for k, v in params.items()}
  m, v = ({k: 0.0 for k in SPECS} for _ in range(2))
  state = tx.init(params)
  for t in range(1, 6):
    grads = {k: rng.standard_normal(s.shape).astype(np.float32) for k, s in SPECS.items()}
    norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in grads.values()))
    with jax.numpy_dtype_promotion("standard"):
      updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    for k, spec in SPECS.items():
      g = grads[k] * min(1.0, clip / norm)
      m[k], v[k] = 0.9 * m[k] + 0.1 * g, 0.95 * v[k] + 0.05 * g**2
      step = (m[k] / (1 - 0.9**t)) / (np.sqrt(v[k] / (1 - 0.95**t)) + 1e-3)
      if spec.decay:
        step = step + 0.3 * exact[k]
      exact[k] = exact[k] - float(lr(t - 1)) * step
    assert int(applied_updates(state)) == t
  for k in SPECS:
    np.testing.assert_allclose(params[k], exact[k], rtol=1e-4, atol=1e-5, err_msg=k)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"final_lr": 1.0}, r"optimizer\.final_lr is 1\.0; .*peak_lr=0\.01"),
    ({"b2": 1.0}, r"optimizer\.b2 is 1\.0"),
    ({"eps": 0.0}, r"optimizer\.eps is 0\.0"),
    ({"clip_norm": -1.0}, r"optimizer\.clip_norm is -1\.0"),
    ({"weight_decay": -0.1}, r"optimizer\.weight_decay is -0\.1"),
  ],
)
def test_bad_values_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    optimizer_config(**changes)

"""The dynamic loss scale, step by step against Megatron's rule written out."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.build import scale_config
from train import loss_scale


def scales_after(finite, config, state=None):
  """The scale after each of the steps that `finite` tells of, and the last state."""
  state = loss_scale.init(config) if state is None else state
  update = jax.jit(lambda state, good: loss_scale.update(state, good, config))
  scales = []
  for good in finite:
    state = update(state, np.bool_(good))
    scales.append(float(state.scale))
  return scales, state


def test_doubles_after_a_period_of_good_steps_in_a_row():
  config = scale_config(initial=8.0, period=3)
  scales, state = scales_after([1] * 7, config)
  assert scales == [8, 8, 16, 16, 16, 32, 32]
  assert int(state.good_steps) == 1


def test_halves_at_once_and_starts_counting_again():
  config = scale_config(initial=8.0, period=3)
  assert scales_after([1, 1, 0, 1, 1, 1, 0, 0], config)[0] == [8, 8, 4, 4, 4, 8, 4, 2]
  assert scales_after([1, 0, 1, 1, 1], config)[0] == [8, 4, 4, 4, 8]


def test_hysteresis_forgives_until_it_is_used_up_and_returns_with_growth():
  config = scale_config(initial=64.0, period=2, hysteresis=3)
  # Two are forgiven in all, good steps between them or not; then each halves.
  assert scales_after([0, 1, 0, 1, 0, 0], config)[0] == [64, 64, 64, 64, 32, 16]
  scales, state = scales_after([0, 0, 0, 1, 1], config)
  assert scales == [64, 64, 32, 32, 64] and int(state.overflows_left) == 3
  assert scales_after([0, 0, 0], config, state)[0] == [64, 64, 32]


def test_floor_and_ceiling():
  config = scale_config(initial=2.0, period=1)
  assert scales_after([0] * 4, config)[0] == [1, 1, 1, 1]
  state = dataclasses.replace(loss_scale.init(config), scale=np.float32(2.0**63))
  scales, _ = scales_after([1] * 3, config, state)
  assert scales == [2.0**64] * 3


def test_a_static_scale_never_moves():
  config = scale_config(dynamic=False, initial=4.0, period=1)
  assert scales_after([1, 0, 0, 1], config)[0] == [4] * 4


def test_random_histories_follow_megatron():
  config = scale_config(initial=2.0**10, period=4, hysteresis=2)
  finite = np.random.default_rng(0).random(200) < 0.7
  scale, good, left, expected = 2.0**10, 0, 2, []
  for ok in finite:  # megatron/core/optimizer/grad_scaler.py, DynamicGradScaler.update
    if not ok:
      good, left = 0, left - 1
      if left <= 0:
        scale = max(scale / 2, 1.0)
    else:
      good += 1
      if good == 4:
        good, left, scale = 0, 2, scale * 2
    expected.append(scale)
  assert scales_after(finite, config)[0] == expected


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"initial": 3.0}, r"initial is 3\.0; it must be a power of two"),
    ({"initial": 0.5}, "a power of two"),
    ({"initial": 2.0**65}, "a power of two"),
    ({"period": 0}, "period=0"),
    ({"hysteresis": 0}, "hysteresis=0"),
  ],
)
def test_bad_values_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    scale_config(**changes)

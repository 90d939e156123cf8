"""Rewards are floats, one a response, and what is none is named by its row."""

import re

import numpy as np
import pytest

from train.rewards import (
  ResponseRewardConfig,
  RewardError,
  Scores,
  by_function,
  rewards,
  weighted,
)

NAMES = ("p.jsonl:1", "p.jsonl:2", "p.jsonl:3")
TEXTS = ("one", "two words", "")


def config(**changes) -> ResponseRewardConfig:
  return ResponseRewardConfig(
    **{
      "function": len,
      "models": (),
      "ensemble": "mean",
      "weights": {},
      "clip": 10.0,
      "no_stop": "keep",
      "no_stop_value": -1.0,
      "bad_rows": "stop",
    }
    | changes
  )


def final(raw, stopped=(True, True, True), **changes):
  scores = Scores(raw, raw, weighted(raw, changes.get("weights", {})))
  return rewards(scores, np.array(stopped), config(**changes))


def call(function, drop=False):
  return by_function(function, TEXTS, TEXTS, NAMES, drop)


def test_rewards_stay_floats_and_dimensions_are_kept_apart():
  got = call(lambda prompts, responses: [0.7, np.float32(-0.25), np.array(3)])
  np.testing.assert_allclose(got["reward"], [0.7, -0.25, 3.0])
  total = final(got).total_B
  np.testing.assert_allclose(total, [0.7, -0.25, 3.0])
  assert total.dtype == np.float32
  got = call(lambda prompts, responses: {"a": [1, 2, 3], "b": (0.5, 0.5, 0.5)})
  both = final(got, weights={"a": 2.0, "b": -1.0})
  np.testing.assert_allclose(both.total_B, [1.5, 3.5, 5.5])


def raises_on_the_second(prompts, responses):
  if any(" " in response for response in responses):
    raise KeyError("no such word")
  return [1.0] * len(responses)


@pytest.mark.parametrize(
  "function,message",
  [
    (raises_on_the_second, "raised KeyError: 'no such word', for p.jsonl:2"),
    (lambda p, r: [1.0, float("nan"), 1.0], "gave nan for p.jsonl:2"),
    (lambda p, r: [1.0, 2.0, float("inf")], "gave inf for p.jsonl:3"),
    (lambda p, r: [None, 2.0, 1.0], "gave None for p.jsonl:1"),
    (lambda p, r: ["1", 2.0, 1.0], "gave '1' for p.jsonl:1"),
    (lambda p, r: {"a": [1, 2, 3], "b": [1, 2, np.nan]}, "in the dimension 'b' for p.jsonl:3"),
    (lambda p, r: [1.0, 2.0], "gave 2 numbers for 3 responses"),
    (lambda p, r: 1.0, "gave a float"),
    (lambda p, r: None, "gave a NoneType"),
    (lambda p, r: {}, "gave no dimension"),
  ],
)
def test_a_reward_that_is_none_is_named(function, message):
  with pytest.raises(RewardError, match=re.escape(message)):
    call(function)


def test_bad_rows_can_be_dropped_and_get_no_reward():
  got = call(raises_on_the_second, drop=True)
  np.testing.assert_array_equal(got["reward"], [1.0, np.nan, 1.0])
  out = final(got, (False,) * 3, no_stop="penalty")
  np.testing.assert_array_equal(out.kept_B, [True, False, True])
  np.testing.assert_array_equal(out.total_B, [2.0, 0.0, 2.0])
  got = call(lambda p, r: [np.nan, 5.0, np.inf], drop=True)
  np.testing.assert_array_equal(final(got).kept_B, [0, 1, 0])
  with pytest.raises(RewardError, match="for every response"):
    call(lambda p, r: 1 / 0, drop=True)


def test_clipping_and_a_missing_stop_token():
  raw = {"reward": np.array([0.7, 30.0, -30.0, 2.0])}
  stopped = np.array([True, True, False, False])
  for rule, want in (
    ("keep", [0.7, 10.0, -10.0, 2.0]),
    ("score", [0.7, 10.0, -1.0, -1.0]),
    ("penalty", [0.7, 10.0, -9.0, 3.0]),
  ):
    out = final(raw, stopped, no_stop=rule)
    np.testing.assert_allclose(out.total_B, want)
    assert out.clipped == 0.5


def test_weights_name_the_dimensions():
  with pytest.raises(RewardError, match="'kind'"):
    weighted({"a": np.ones(3)}, {"kind": 1.0})
  with pytest.raises(ValueError, match="either a Python function"):
    config(function=None)
  with pytest.raises(ValueError, match="either a Python function"):
    config(models=("runs/reward",))

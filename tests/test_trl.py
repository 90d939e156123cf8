"""Losses of TRL's SFT, reward and DPO trainers on the same weights and batches, from a file.

`tests/fixtures/make_trl.py` makes the file; the test marked `peers` makes it again.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.examples import Example, to_batch
from model import hf
from tests.build import compute_config, model_config
from tests.fixtures import make_trl
from train.losses import SftLossConfig, answer_loss
from train.pair_loss import PairLossConfig, pair_scores, reward_loss
from train.preference_loss import PreferenceLossConfig, answer_log_probs, preference_loss

MODEL = model_config(vocab_size=64, d_model=32, d_ff=40, head_dim=8, qk_norm=False)
COMPUTE = compute_config(loss_chunks=1)


def load():
  with np.load(make_trl.FILE) as file:
    return dict(file)


def trunk(arrays):
  stored = {n.removeprefix("weights/"): x for n, x in arrays.items() if n.startswith("weights/")}
  score = stored.pop("score.weight")
  return jax.tree.map(jnp.asarray, hf.read_params(stored, MODEL)), jnp.asarray(score)


def sides(arrays, name):
  ids, mask = arrays[f"{name}/ids"], arrays[f"{name}/mask"]
  return [row[real] for row, real in zip(ids, mask, strict=True)]


def check_sft(arrays):
  params, _ = trunk(arrays)
  talks = [
    Example(ids, answer[: len(ids)])
    for ids, answer in zip(sides(arrays, "chosen"), arrays["answers"], strict=True)
  ]
  batch = to_batch([[talks[0], talks[1]], [talks[2]]], 18)  # packed, where TRL pads

  @jax.jit
  def run(params):
    def loss(params):
      total, sums = answer_loss(
        params, batch, jax.random.key(0), MODEL, COMPUTE, SftLossConfig(0.0, 0.0)
      )
      return total / sums["weight"]

    return jax.value_and_grad(loss)(params)

  loss, gradient = run(params)
  np.testing.assert_allclose(loss, arrays["sft/loss"], rtol=1e-4)
  ours = gradient["layers"]["mlp"]["up_DF"][0].T
  np.testing.assert_allclose(ours, arrays["sft/gradient"], rtol=1e-3, atol=1e-5)


def check_reward(arrays):
  params, score = trunk(arrays)
  del params["unembedding_DV"]
  params["heads"] = {"weight_SD": score, "bias_S": jnp.zeros(1)}
  chosen, rejected = sides(arrays, "chosen"), sides(arrays, "rejected")
  rows = [[(chosen[0], rejected[0]), (chosen[1], rejected[1])], [(chosen[2], rejected[2])]]
  segments = [
    [Example(np.append(ids, 0), np.zeros(len(ids) + 1, bool)) for pair in row for ids in pair]
    for row in rows
  ]
  batch = to_batch(segments, 40)
  shape = (2, 2)
  at = {"chosen_at": np.zeros(shape, np.int32), "rejected_at": np.zeros(shape, np.int32)}
  sign, strength, rated = (np.zeros((*shape, 1), np.float32) for _ in range(3))
  margins = iter(make_trl.MARGINS)
  for r, row in enumerate(rows):
    end = 0
    for p, (one, two) in enumerate(row):
      at["chosen_at"][r, p] = end + len(one) - 1
      end += len(one) + len(two)
      at["rejected_at"][r, p] = end - 1
      sign[r, p], rated[r, p], strength[r, p] = 1, 1, next(margins) / 0.5
  batch |= at | {"sign": sign, "strength": strength, "rated": rated}
  config = PairLossConfig(margin=0.5, center=make_trl.CENTER, ties="mask")

  @jax.jit
  def run(params):
    def loss(params):
      total, sums = reward_loss(params, batch, jax.random.key(0), MODEL, COMPUTE, config)
      return total / sums["weight"]

    return *jax.value_and_grad(loss)(params), pair_scores(params, batch, MODEL, COMPUTE)

  loss, gradient, scores = run(params)
  found = [np.asarray(x)[rated > 0] for x in scores]
  np.testing.assert_allclose(
    np.concatenate(found), arrays["reward/scores"][:, 0], rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(loss, arrays["reward/loss"], rtol=1e-4)
  np.testing.assert_allclose(
    gradient["heads"]["weight_SD"], arrays["reward/gradient"], rtol=1e-3, atol=1e-5
  )


def check_preference(arrays, kind):
  params, _ = trunk(arrays)
  both = [
    [
      Example(np.append(ids, 0).astype(np.int32), np.append(answer[: len(ids)], False))
      for ids, answer in zip(sides(arrays, side), arrays[name], strict=True)
    ]
    for side, name in (("chosen", "answers"), ("rejected", "rejected/answers"))
  ]
  pairs = list(zip(*both, strict=True))
  rows = [[*pairs[0], *pairs[1]], list(pairs[2])]  # packed, where TRL pads
  real = np.array([[1, 1], [1, 0]], np.float32)
  batch = to_batch(rows, 40) | {"real": real}
  scaled = jax.tree.map(lambda x: make_trl.REFERENCE * x, params)
  smoothing = make_trl.SMOOTHING if kind == "robust" else 0.0
  config = PreferenceLossConfig(make_trl.BETA, smoothing, "robust")

  @jax.jit
  def run(params, scaled):
    reference = answer_log_probs(scaled, batch, MODEL, COMPUTE)

    def loss(params):
      total, sums = preference_loss(
        params, batch | {"reference": reference}, jax.random.key(0), MODEL, COMPUTE, config
      )
      return total / sums["weight"]

    return *jax.value_and_grad(loss)(params), reference

  loss, gradient, reference = run(params, scaled)
  known = np.asarray(reference)[real > 0].T
  np.testing.assert_allclose(known, arrays["dpo/reference"], rtol=1e-4)
  np.testing.assert_allclose(loss, arrays[f"dpo/{kind}/loss"], rtol=1e-4)
  ours = gradient["layers"]["mlp"]["up_DF"][0].T
  np.testing.assert_allclose(ours, arrays[f"dpo/{kind}/gradient"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["sigmoid", "robust"])
def test_the_loss_of_preferences_is_trls(kind):
  check_preference(load(), kind)


def test_the_loss_on_answers_is_trls():
  check_sft(load())


def test_the_loss_of_pairs_with_margins_and_centering_is_trls():
  check_reward(load())


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_live_trl_agrees_with_its_file_and_with_us():
  pytest.importorskip("trl")
  arrays = make_trl.compute()
  for name, value in load().items():
    np.testing.assert_allclose(arrays[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
  check_sft(arrays)
  check_reward(arrays)
  check_preference(arrays, "sigmoid")
  check_preference(arrays, "robust")

"""The training step: exact accumulation, skipped batches that leave no trace, fp16, the average."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.params import param_specs
from tests.build import (
  Trainer,
  compute_config,
  make_loss,
  model_config,
  numpy_params,
  packed_rows,
  random_rows,
)
from train.step import AverageConfig, accumulate, split_rows

MODEL = model_config(num_layers=1)
POISON = 47  # a target token that makes the loss overflow


def assert_same_bits(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def poisoned_loss(params, batch, key):
  """The usual loss, infinite for a batch that holds the poison, in value and in gradient."""
  objective, sums = make_loss(MODEL, compute_config())(params, batch, key)
  factor = jnp.where(jnp.any(batch["targets"] == POISON), jnp.inf, 1.0)
  return objective * factor, sums


def poison(batch):
  batch = {name: array.copy() for name, array in batch.items()}
  batch["targets"][0, 0] = POISON
  return batch


@functools.cache
def poisoned_trainer(**options):
  return Trainer(
    MODEL, compute_config(), loss_fn=poisoned_loss, average=AverageConfig(0.5, 2), **options
  )


def clean_batches(count):
  return [random_rows(4, 16, POISON, seed) for seed in range(count)]


def test_any_number_of_microbatches_gives_the_gradient_of_the_full_batch():
  lengths = [[16], [1], [2, 3, 1], [], [5, 5, 5], [1, 1], [14, 2], [3]]
  batch = packed_rows(lengths, 16, 48)
  batch["loss_weights"] *= np.geomspace(1e-3, 8, 8, dtype=np.float32)[:, None]
  params, specs = numpy_params(param_specs(MODEL), 0), param_specs(MODEL)
  loss = make_loss(MODEL, compute_config())

  @functools.partial(jax.jit, static_argnames="count")
  def gradient(params, count):
    parts = split_rows(batch, count, row_shards=2)
    return accumulate(loss, params, parts, jax.random.key(0), jnp.float32(1.0), specs)

  sums, full = gradient(params, 1)
  assert float(sums["weight"]) == pytest.approx(float(batch["loss_weights"].sum()), rel=1e-6)
  for count in (2, 4):
    part_sums, parts = gradient(params, count)
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(full), strict=True):
      assert a.dtype == jnp.float32
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(np.abs(b).max()))
    for name, value in sums.items():
      np.testing.assert_allclose(part_sums[name], value, rtol=1e-5)


def test_microbatches_take_their_share_of_every_device():
  batch = {"tokens": np.arange(8, dtype=np.int32)[:, None] * np.ones((1, 3), np.int32)}
  parts = split_rows(batch, 2, row_shards=2)["tokens"][..., 0]
  np.testing.assert_array_equal(parts, [[0, 1, 4, 5], [2, 3, 6, 7]])


def test_metrics_are_means_by_the_exact_weight():
  trainer = poisoned_trainer()
  batch = clean_batches(1)[0]
  (_, (metrics,)) = trainer.run(trainer.state, [batch])
  _, sums = make_loss(MODEL, compute_config())(trainer.state.params, batch, None)
  assert metrics["weight"] == batch["loss_weights"].sum()
  assert metrics["loss"] == pytest.approx(float(sums["loss"] / sums["weight"]), rel=1e-5)
  assert metrics["loss"] == pytest.approx(np.log(48), rel=0.5)
  assert metrics["lr"] == 0 and metrics["updates"] == 1 and not metrics["skipped"]


@pytest.mark.parametrize("at", [(0,), (2, 3), (1, 4, 6)], ids=str)
def test_an_overflow_leaves_the_trajectory_without_its_batch(at):
  trainer, batches = poisoned_trainer(), clean_batches(5)
  with_overflow = list(batches)
  for index in at:
    with_overflow.insert(index, poison(batches[0]))
  expected, expected_metrics = trainer.run(trainer.state, batches)
  state, metrics = trainer.run(trainer.state, with_overflow)
  assert_same_bits(state.params, expected.params)
  assert_same_bits(state.opt_state, expected.opt_state)
  assert [m["skipped"] for m in metrics] == [i in at for i in range(len(with_overflow))]
  kept = [m for m in metrics if not m["skipped"]]
  for name in ("loss", "grad_norm", "lr", "updates", "weight"):
    assert [m[name] for m in kept] == [m[name] for m in expected_metrics], name
  assert int(state.step) == len(with_overflow) and int(expected.step) == 5
  assert int(metrics[-1]["updates"]) == 5
  # It halves once for each, and doubles after 3 good steps in a row.
  scale, good = 2.0**16, 0
  for m in metrics:
    assert m["loss_scale"] == scale
    good = 0 if m["skipped"] else good + 1
    scale = scale / 2 if m["skipped"] else scale * 2 if good == 3 else scale
    good %= 3


def test_a_step_that_is_not_finite_changes_only_the_count_and_the_scale():
  trainer = poisoned_trainer()
  before, _ = trainer.run(trainer.state, clean_batches(8))
  assert int(before.average_count) == 1
  after, (metrics,) = trainer.run(before, [poison(clean_batches(1)[0])])
  same = {"params", "opt_state", "average", "average_count", "key"}
  for name in same:
    assert_same_bits(getattr(after, name), getattr(before, name))
  assert int(after.step) == int(before.step) + 1
  assert float(after.loss_scale.scale) == float(before.loss_scale.scale) / 2
  assert metrics["skipped"] and not np.isfinite(metrics["loss"] * metrics["grad_norm"])


def test_the_average_is_the_mean_of_its_snapshots():
  trainer = poisoned_trainer()  # 12 steps, the window is (6, 12], snapshots at 8, 10, 12
  state, snapshots = trainer.state, []
  for step, batch in enumerate(clean_batches(12), start=1):
    batch = poison(batch) if step == 10 else batch
    state, _ = trainer.run(state, [batch])
    if step in (8, 12):
      snapshots.append(jax.device_get(state.params))
  assert int(state.average_count) == 2  # none of the skipped step 10
  mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0, dtype=np.float64), *snapshots)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), state.average, mean
  )
  assert not np.array_equal(state.average["embedding_VD"], state.params["embedding_VD"])


def test_a_power_of_two_scale_changes_no_bit():
  trainer, batches = poisoned_trainer(), clean_batches(3)
  expected, _ = trainer.run(trainer.state, batches)
  for exponent in (0, 5, 40):
    scale = trainer.state.loss_scale.replace(scale=jnp.float32(2.0**exponent))
    state, _ = trainer.run(trainer.state.replace(loss_scale=scale), batches)
    assert_same_bits(state.params, expected.params)
    assert_same_bits(state.opt_state, expected.opt_state)


def test_gradients_survive_the_highest_scale():
  trainer, (batch,) = poisoned_trainer(), clean_batches(1)
  batch = batch | {"loss_weights": batch["loss_weights"] * np.float32(2.0**20)}
  norms = []
  for exponent in (0, 64):
    scale = trainer.state.loss_scale.replace(scale=jnp.float32(2.0**exponent))
    norms.append(trainer.run(trainer.state.replace(loss_scale=scale), [batch])[1][0]["grad_norm"])
  assert norms[0] == norms[1] > 0


def test_a_batch_without_weight_is_no_nan():
  trainer, (batch,) = poisoned_trainer(), clean_batches(1)
  empty = batch | {"loss_weights": 0 * batch["loss_weights"]}
  state, (metrics,) = trainer.run(trainer.state, [empty])
  assert metrics["loss"] == metrics["grad_norm"] == metrics["weight"] == 0
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.params))


def test_fp16_at_the_first_scale_is_finite_over_8192_tokens():
  model = model_config(num_layers=1, vocab_size=32, qk_norm=False)
  batch = packed_rows([[1024] * 8], 8_192, 32)
  batch["targets"][:] = 1  # all alike, so that the sum of the gradients does not cancel
  compute = compute_config(dtype="float16", attention="chunked", loss_chunks=8)
  trainer = Trainer(model, compute)
  _, (metrics,) = trainer.run(trainer.state, [batch])
  assert metrics["loss_scale"] == 2.0**16 and not metrics["skipped"]
  assert np.isfinite(metrics["grad_norm"])


@pytest.mark.parametrize(
  ("dtype", "tolerance"),
  [("float16", 2e-3), pytest.param("bfloat16", 2e-2, marks=pytest.mark.slow)],
)
def test_half_precision_trains_like_fp32(dtype, tolerance):
  batches = clean_batches(8)
  exact = poisoned_trainer()
  half = Trainer(MODEL, compute_config(dtype=dtype))
  _, expected = exact.run(exact.state, batches)
  _, metrics = half.run(half.state, batches)
  assert not any(m["skipped"] for m in metrics)
  np.testing.assert_allclose(
    [m["loss"] for m in metrics], [m["loss"] for m in expected], rtol=tolerance
  )


def test_the_key_of_a_step_is_its_own_and_each_microbatch_has_another():
  def noise(params, batch, key):
    draw = jax.random.uniform(key)
    weight = jnp.sum(batch["loss_weights"])
    return jnp.sum(params["final_norm_D"]) * 0.0, {
      "weight": weight,
      "draw": draw,
      "square": draw**2,
    }

  trainer = Trainer(MODEL, compute_config(), loss_fn=noise, microbatches=2)
  batches = [packed_rows([[16]] * 2, 16, 48)] * 3
  _, metrics = trainer.run(trainer.state, batches)
  draws = [float(m["draw"]) for m in metrics]
  assert len(set(draws)) == 3
  for m in metrics:  # of two equal draws a, 2 (a^2 + a^2) = (a + a)^2
    total, squares = m["draw"] * 32, m["square"] * 32
    assert abs(2 * squares - total**2) > 1e-6


@pytest.mark.parametrize(("fraction", "every"), [(1.5, 1), (-0.1, 1), (0.1, 0)])
def test_bad_average_is_refused(fraction, every):
  with pytest.raises(ValueError, match="fraction must be in"):
    AverageConfig(fraction, every)

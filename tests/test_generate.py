"""Sampling: the cache changes nothing, rows do not see each other, and the nucleus is exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.generate import generate, nucleus, sample
from model.params import param_specs
from model.sharding import MeshConfig, make_mesh
from model.transformer import forward
from tests.build import compute_config, model_config, numpy_params

CONFIG = model_config(sliding_window=6, attention_softcap=5.0)
PARAMS = numpy_params(param_specs(CONFIG), 3)
COMPUTE = compute_config()
PROMPTS = np.array([[5, 9, 11, 2, 7], [8, 3, 0, 0, 0], [1, 4, 6, 0, 0]], np.int32)
LENGTHS = np.array([5, 2, 3], np.int32)
STEPS, NEVER = 8, -1


def run(prompts=PROMPTS, lengths=LENGTHS, *, temperature=0.0, top_p=1.0, stop_id=NEVER, seed=0):
  tokens, counts = generate(
    PARAMS,
    prompts,
    lengths,
    jax.random.key(seed),
    max_tokens=STEPS,
    temperature=temperature,
    top_p=top_p,
    stop_id=stop_id,
    config=CONFIG,
    compute=COMPUTE,
  )
  return np.asarray(tokens), np.asarray(counts)


@functools.cache
def greedy():
  return run()


def test_greedy_with_the_cache_equals_recomputing_every_prefix():
  tokens, counts = greedy()
  total = PROMPTS.shape[1] + STEPS
  logits = jax.jit(functools.partial(forward, config=CONFIG, compute=COMPUTE))
  for row, length in enumerate(LENGTHS):
    ids = np.zeros((1, total), np.int32)
    ids[0, :length] = PROMPTS[row, :length]
    for step in range(STEPS):
      at = length + step  # what lies behind is not seen: attention is causal
      out = logits(PARAMS, ids, np.ones_like(ids), np.arange(total, dtype=np.int32)[None])
      ids[0, at] = int(np.argmax(out[0, at - 1]))
    np.testing.assert_array_equal(tokens[row], ids[0, length : length + STEPS])
  np.testing.assert_array_equal(counts, STEPS)
  assert len(np.unique(tokens)) > 3


def test_a_row_does_not_depend_on_the_others_or_on_padding():
  tokens, _ = run(temperature=1.0, top_p=0.9)
  others = np.roll(PROMPTS, 1, axis=0)
  others[1] = PROMPTS[1]
  mixed, _ = run(others, np.array([3, 2, 2], np.int32), temperature=1.0, top_p=0.9)
  np.testing.assert_array_equal(mixed[1], tokens[1])
  padded = np.where(np.arange(5) < LENGTHS[:, None], PROMPTS, 40)
  np.testing.assert_array_equal(run(padded, temperature=1.0, top_p=0.9)[0], tokens)


def test_rows_with_one_prompt_and_seeds_draw_different_numbers():
  same = np.tile(PROMPTS[:1], (3, 1))
  lengths = np.full(3, 5, np.int32)
  tokens, _ = run(same, lengths, temperature=1.0, top_p=0.9)
  assert not np.array_equal(tokens[0], tokens[1])
  again, _ = run(same, lengths, temperature=1.0, top_p=0.9)
  np.testing.assert_array_equal(again, tokens)
  other, _ = run(same, lengths, temperature=1.0, top_p=0.9, seed=1)
  assert not np.array_equal(other, tokens)


def test_a_row_stops_after_its_stop_token():
  tokens, _ = greedy()
  stop_id = int(tokens[1, 2])
  stopped, counts = run(stop_id=stop_id)
  for row in range(3):
    hits = np.flatnonzero(tokens[row] == stop_id)
    count = hits[0] + 1 if len(hits) else STEPS
    assert counts[row] == count
    np.testing.assert_array_equal(stopped[row, :count], tokens[row, :count])
    np.testing.assert_array_equal(stopped[row, count:], stop_id)


def test_sharded_generation_equals_one_device():
  with jax.set_mesh(make_mesh(MeshConfig(1, 4, 1, 2))):  # three prompts on four row shards
    tokens, counts = run()
  np.testing.assert_array_equal(tokens, greedy()[0])
  np.testing.assert_array_equal(counts, greedy()[1])


@pytest.mark.parametrize(
  ("top_p", "kept"),
  [
    (0.05, [False, True, False, False]),
    (0.5, [False, True, False, False]),
    (0.51, [True, True, False, False]),  # the one that crosses is in
    (0.76, [True, True, False, True]),
    (1.0, [True] * 4),
  ],
)
def test_the_nucleus_holds_the_token_that_crosses(top_p, kept):
  probabilities = np.array([[0.25, 0.5, 0.125, 0.125 + 1e-3]], np.float32)
  masked = nucleus(jnp.log(probabilities / probabilities.sum()), top_p)
  if top_p == 0.5:  # exactly at the boundary, by powers of two
    masked = nucleus(jnp.log(jnp.array([[0.25, 0.5, 0.125, 0.125]])), top_p)
  np.testing.assert_array_equal(np.isfinite(masked[0]), kept)


def test_sampled_frequencies_are_the_softmax_at_the_temperature():
  logits = jnp.log(jnp.array([0.6, 0.3, 0.1]))
  draws = 20_000
  keys = jax.random.split(jax.random.key(0), draws)
  for temperature, top_p in [(1.0, 1.0), (2.0, 1.0), (1.0, 0.7)]:
    tokens = sample(jnp.tile(logits[None], (draws, 1)), keys, temperature, top_p)
    expected = np.array([0.6, 0.3, 0.1]) ** (1 / temperature)
    expected = expected * [1, 1, 0] if top_p < 1 else expected
    frequencies = np.bincount(tokens, minlength=3) / draws
    np.testing.assert_allclose(frequencies, expected / expected.sum(), atol=0.015)


def test_temperature_zero_is_argmax():
  logits = jax.random.normal(jax.random.key(0), (5, 20))
  keys = jax.random.split(jax.random.key(1), 5)
  np.testing.assert_array_equal(sample(logits, keys, 0.0, 0.1), np.argmax(logits, -1))

"""Sampling: the cache changes nothing, rows do not see each other, and the nucleus is exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import decode
from model.decode import prepare
from model.generate import generate, request_keys, rollout
from model.params import param_specs
from model.sampling import SamplingConfig, draw, process, settings
from model.sharding import MeshConfig, make_mesh
from model.transformer import forward
from tests.build import compute_config, model_config, numpy_params

CONFIG = model_config(sliding_window=6, attention_softcap=5.0)
PARAMS = numpy_params(param_specs(CONFIG), 3)
COMPUTE = compute_config()
PROMPTS = np.array([[5, 9, 11, 2, 7], [8, 3, 0, 0, 0], [1, 4, 6, 0, 0]], np.int32)
LENGTHS = np.array([5, 2, 3], np.int32)
STEPS, NEVER = 8, -1
FORWARD = jax.jit(functools.partial(forward, config=CONFIG, compute=COMPUTE))


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


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_cache_equals_recomputing_every_prefix(temperature):
  tokens, counts = run(temperature=temperature, top_p=0.9)
  total = PROMPTS.shape[1] + STEPS
  rows = settings([SamplingConfig(temperature, 0.9)], CONFIG.vocab_size)

  @jax.jit
  def next_token(params, ids, at, key):  # what lies behind is not seen: attention is causal
    positions = jnp.arange(total, dtype=jnp.int32)[None]
    logits = FORWARD(params, ids, jnp.ones_like(ids), positions)[:, at - 1]
    return draw(process(logits, rows, None, None, jnp.zeros(1)), key[None], rows)[0]

  for row, length in enumerate(LENGTHS):
    key = jax.random.fold_in(jax.random.key(0), row)
    ids = np.zeros((1, total), np.int32)
    ids[0, :length] = PROMPTS[row, :length]
    for step in range(STEPS):
      ids[0, length + step] = next_token(PARAMS, ids, length + step, jax.random.fold_in(key, step))
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


@pytest.mark.parametrize("one_row", [False, True])
@pytest.mark.parametrize("tokens", [(1, 1), (3, 2), (5, 40)])
def test_a_token_is_multiplied_by_its_matrix_in_either_order(tokens, one_row):
  weights = prepare(PARAMS, CONFIG, COMPUTE, one_row=one_row)
  x_BLD = np.random.default_rng(0).normal(size=(*tokens, CONFIG.d_model)).astype(np.float32)
  gate_up_BLCF = jax.jit(decode._product, static_argnums=2)(
    x_BLD, weights["layers"][1], "gate_up_CFD"
  )
  mlp = PARAMS["layers"]["mlp"]
  for i, name in enumerate(("gate_DF", "up_DF")):
    expected = np.einsum("bld,df->blf", x_BLD, np.asarray(mlp[name][1], np.float64))
    np.testing.assert_allclose(gate_up_BLCF[:, :, i], expected, rtol=1e-5, atol=1e-6)


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


def test_log_probs_are_those_of_the_model_before_any_filter():
  rows = [SamplingConfig(0.7, 0.5, top_k=3, repetition_penalty=1.5), SamplingConfig(0.0, 1.0)]
  out = rollout(
    PARAMS,
    PROMPTS[:2],
    LENGTHS[:2],
    request_keys(jax.random.key(0), np.arange(2)),
    settings(rows, CONFIG.vocab_size),
    np.array([[int(greedy()[0][1, 2])], [int(greedy()[0][1, 2])]], np.int32),
    max_tokens=STEPS,
    config=CONFIG,
    compute=COMPUTE,
  )
  assert int(out.counts_B[1]) == 3 and bool(out.stopped_B[1])
  for row, temperature in enumerate((0.7, 1.0)):
    length, count = LENGTHS[row], int(out.counts_B[row])
    ids = np.concatenate([PROMPTS[row, :length], out.tokens_BT[row]])[None].astype(np.int32)
    positions = np.arange(ids.size)[None]
    logits = FORWARD(PARAMS, ids, np.ones_like(ids), positions)
    logits = np.asarray(logits, np.float64)[0, length - 1 : length - 1 + count]
    for scores, divisor in ((out.log_probs_BT, temperature), (out.raw_log_probs_BT, 1.0)):
      scaled = logits / divisor
      expected = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
      expected = expected[np.arange(count), np.asarray(out.tokens_BT[row, :count])]
      np.testing.assert_allclose(scores[row, :count], expected, atol=1e-5)
      np.testing.assert_array_equal(scores[row, count:], 0)

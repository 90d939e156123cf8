"""The processors against float64 and sorting, and what is drawn from them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.sampling import (
  History,
  SamplingConfig,
  apply_min_p,
  apply_top_k,
  apply_top_p,
  draw,
  likeliest,
  penalize,
  process,
  settings,
  start_history,
)

VOCAB = 300
OFF = SamplingConfig(1.0, 1.0)


def config(**changes) -> SamplingConfig:
  return dataclasses.replace(OFF, **changes)


def softmax(logits):
  mass = np.exp(logits - logits.max())
  return mass / mass.sum()


def reference(logits, row: SamplingConfig, prompt, output, stops, step):
  """The definitions in float64, one row, by sorting."""
  logits = logits.astype(np.float64).copy()
  logits[list(row.forbidden)] = -np.inf
  if step < row.min_tokens:
    logits[list(stops)] = -np.inf
  for token in {*prompt, *output}:
    negative = logits[token] < 0
    logits[token] *= row.repetition_penalty if negative else 1 / row.repetition_penalty
  for token in set(output):
    times = list(output).count(token)
    logits[token] -= row.frequency_penalty * times + row.presence_penalty
  logits /= row.temperature or 1
  if row.temperature == 0:
    return logits
  probs = softmax(logits)
  logits[probs < row.min_p * probs.max()] = -np.inf
  if row.top_k is not None:
    logits[logits < np.sort(logits)[::-1][row.top_k - 1]] = -np.inf
  probs = softmax(logits)
  order = np.argsort(-probs, kind="stable")
  before = np.cumsum(probs[order]) - probs[order]
  if row.top_p < 1:
    logits[order[before >= row.top_p]] = -np.inf
  return logits


ROWS = [
  OFF,
  config(temperature=0.0, forbidden=(3, 5)),
  config(temperature=0.7, top_p=0.9),
  config(temperature=1.3, top_k=17),
  config(temperature=1.1, min_p=0.05),
  config(temperature=0.9, top_p=0.6, top_k=40, min_p=0.01),
  config(repetition_penalty=1.4, frequency_penalty=0.3, presence_penalty=0.6, top_p=0.8),
  config(repetition_penalty=0.7, frequency_penalty=-0.4, forbidden=(7,), min_tokens=9),
  config(temperature=1e-2, top_p=0.5),
  config(temperature=30.0, top_p=0.99, min_tokens=2),
]


@pytest.mark.parametrize("seed", range(2))
def test_all_processors_are_those_of_float64(seed):
  rng = np.random.default_rng(seed)
  batch, longest, step = len(ROWS), 12, 6
  logits = (4 * rng.standard_normal((batch, VOCAB))).astype(np.float32)
  prompts = rng.integers(0, VOCAB, (batch, longest), np.int32)
  lengths = rng.integers(1, longest + 1, batch)
  outputs = rng.integers(0, 40, (batch, step))  # with repetitions
  stops = np.array([[11, 12]] * batch, np.int32)
  history = start_history(prompts, lengths, VOCAB)
  for column in outputs.T:
    history = history.replace(output_BV=history.output_BV.at[np.arange(batch), column].add(1))
  rows = settings(ROWS, VOCAB)
  got = np.asarray(process(jnp.asarray(logits), rows, history, stops, np.full(batch, step)))
  for i, row in enumerate(ROWS):
    prompt = prompts[i, : lengths[i]]
    expected = reference(logits[i], row, prompt, outputs[i], stops[i], step)
    np.testing.assert_array_equal(np.isfinite(got[i]), np.isfinite(expected), err_msg=f"{row}")
    kept = np.isfinite(expected)
    np.testing.assert_allclose(got[i, kept], expected[kept], rtol=2e-6, atol=2e-6)


def test_a_row_is_processed_alike_whatever_is_on_in_others():
  logits = jax.random.normal(jax.random.key(0), (1, VOCAB)) * 3
  history = start_history(np.array([[4, 5]]), np.array([2]), VOCAB)
  for row in (ROWS[2], ROWS[5], ROWS[6]):
    alone = process(logits, settings([row], VOCAB), history, np.array([[1]]), np.array([1]))
    among = settings([row, *ROWS], VOCAB)
    tile = len(ROWS) + 1
    many = History(*(jnp.tile(x, (tile, 1)) for x in (history.prompt_BV, history.output_BV)))
    beside = process(
      jnp.tile(logits, (tile, 1)), among, many, np.ones((tile, 1), np.int32), np.ones(tile)
    )
    np.testing.assert_array_equal(beside[0], alone[0], err_msg=f"{row}")


@pytest.mark.parametrize(
  ("top_p", "kept"),
  [
    (0.05, [False, True, False, False]),
    (0.5, [False, True, False, False]),  # exactly at the boundary, by powers of two
    (0.51, [True, True, False, False]),  # the one that crosses is in
    (0.76, [True, True, True, False]),  # of two that tie, the first
    (0.88, [True] * 4),
    (1.0, [True] * 4),
  ],
)
def test_the_nucleus_holds_the_token_that_crosses(top_p, kept):
  logits = jnp.log(jnp.array([[0.25, 0.5, 0.125, 0.125]]))
  masked = apply_top_p(logits, jnp.array([top_p]))
  np.testing.assert_array_equal(np.isfinite(masked[0]), kept)


def test_top_k_keeps_what_ties_with_the_last_and_orders_negative_numbers():
  logits = jnp.array([[-1.0, 2.0, -3.0, -1.0, 0.0, -0.0]])
  for k, kept in [(1, [1]), (2, [1, 4, 5]), (4, [0, 1, 3, 4, 5]), (6, [0, 1, 2, 3, 4, 5])]:
    masked = apply_top_k(logits, jnp.array([k]))
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(masked[0])), kept)


def test_min_p_is_relative_to_the_largest():
  logits = jnp.log(jnp.array([[0.5, 0.25, 0.125, 0.125]]))
  for min_p, kept in [(0.0, 4), (0.25, 4), (0.26, 2), (0.51, 1), (1.0, 1)]:
    assert np.isfinite(apply_min_p(logits, jnp.array([min_p]))).sum() == kept


def test_the_repetition_penalty_counts_the_prompt_and_the_others_do_not():
  history = start_history(np.array([[0, 1, 2]]), np.array([2]), 4)
  logits = jnp.array([[2.0, -2.0, 2.0, 2.0]])
  rows = settings([config(repetition_penalty=2.0)], 4)
  np.testing.assert_array_equal(penalize(logits, rows, history)[0], [1, -4, 2, 2])
  rows = settings([config(frequency_penalty=1.0, presence_penalty=1.0)], 4)
  np.testing.assert_array_equal(penalize(logits, rows, history), logits)


@pytest.mark.parametrize("vocab", [3, 300])
def test_sampled_frequencies_are_the_processed_softmax(vocab):
  draws, kinds = 10_000, [config(temperature=1.0), config(temperature=2.0), config(top_p=0.7)]
  logits = jnp.asarray(np.random.default_rng(vocab).standard_normal(vocab), jnp.float32) * 2
  rows = settings(kinds, vocab)
  masked = process(jnp.tile(logits[None], (3, 1)), rows, None, None, np.zeros(3))
  keys = jax.random.split(jax.random.key(0), (draws, 3))
  drawn = jax.jit(jax.vmap(draw, (None, 0, None)))
  tokens = drawn(masked, keys, rows)
  for column, logits in zip(tokens.T, np.asarray(masked, np.float64), strict=True):
    expected = softmax(logits)
    found = np.bincount(column, minlength=vocab)
    assert not found[expected == 0].any()
    deviation = (found - draws * expected) / np.sqrt(np.maximum(draws * expected, 1))
    assert np.abs(deviation).max() < 5


def test_a_token_of_no_probability_is_never_drawn():
  """Rounding makes a cumulative sum go up, or down, where nothing is added."""
  rng = np.random.default_rng(0)
  logits = np.where(rng.random((64, VOCAB)) < 0.5, -np.inf, rng.standard_normal((64, VOCAB)))
  for seed in range(5):
    keys = jax.random.split(jax.random.key(seed), 64)
    tokens = np.asarray(draw(jnp.asarray(logits, jnp.float32), keys, settings([OFF], VOCAB)))
    assert np.isfinite(logits[np.arange(64), tokens]).all()


def test_temperature_zero_is_argmax():
  logits = jax.random.normal(jax.random.key(0), (5, 20))
  keys = jax.random.split(jax.random.key(1), 5)
  for rows in ([config(temperature=0.0, top_p=0.1)] * 5, [config(temperature=0.0)] * 4 + [OFF]):
    tokens = draw(logits, keys, settings(rows, 20))
    np.testing.assert_array_equal(tokens[:4], np.argmax(logits, -1)[:4])


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"temperature": -1.0}, "sample.temperature is -1.0; it must be finite and not negative"),
    ({"temperature": float("nan")}, "sample.temperature"),
    ({"top_p": 0.0}, r"sample.top_p is 0.0; it must be in \(0, 1\]"),
    ({"top_k": 0}, "sample.top_k is 0"),
    ({"min_p": 1.5}, "sample.min_p is 1.5"),
    ({"repetition_penalty": 0.0}, "sample.repetition_penalty is 0.0"),
    ({"frequency_penalty": float("inf")}, "sample.frequency_penalty is inf"),
    ({"min_tokens": -1}, "sample.min_tokens is -1"),
  ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    config(**changes)


def test_what_is_forbidden_is_of_the_vocabulary_and_not_all_of_it():
  with pytest.raises(ValueError, match=r"sample.forbidden has 9 of a vocabulary of 4"):
    settings([config(forbidden=(1, 9))], 4)
  with pytest.raises(ValueError, match=r"sample.forbidden has all of a vocabulary of 2"):
    settings([config(forbidden=(0, 1))], 2)


def test_the_likeliest_is_the_first_of_the_largest():
  logits = np.random.default_rng(0).integers(-3, 3, (50, VOCAB)).astype(np.float32)
  logits[0] = -np.inf
  logits[1, :-1] = -np.inf
  found = jax.jit(likeliest)(logits)
  assert found.dtype == np.int32
  np.testing.assert_array_equal(found, logits.argmax(-1))

"""Scalar heads: initialization, the last real token, and padding that changes nothing."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from model import heads
from model.params import count, init_params, param_specs
from tests.build import compute_config, model_config, numpy_params

MODEL, COMPUTE = model_config(), compute_config()


def test_heads_are_more_parameters_in_the_tree_and_the_vocabulary_is_none():
  specs = heads.scorer_specs(MODEL, 3)
  trunk = param_specs(MODEL)
  assert specs.keys() == (trunk.keys() | {"heads"}) - {"unembedding_DV"}
  assert count(specs["heads"]) == 3 * (MODEL.d_model + 1)
  wide = heads.head_specs(model_config(d_model=4_096, num_heads=4), 8)
  drawn = init_params(wide, 0)
  np.testing.assert_allclose(np.std(drawn["weight_SD"]), 1 / math.sqrt(4_097), rtol=0.02)
  assert not drawn["bias_S"].any()


def test_the_last_real_token_is_the_masks_last():
  mask = np.array([[1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
  np.testing.assert_array_equal(heads.last_real(mask), [2, 3, 2, 3, 0])


def test_scores_are_of_the_last_real_token_wherever_the_padding_is():
  params = jax.tree.map(jnp.asarray, numpy_params(heads.scorer_specs(MODEL, 2), 0))
  params["heads"]["bias_S"] = jnp.array([0.5, -2.0])
  tokens = np.random.default_rng(0).integers(1, 48, (1, 6)).astype(np.int32)
  score = jax.jit(lambda t, m: heads.text_scores(params, t, m, MODEL, COMPUTE))
  values = heads.token_values(params, tokens, np.ones_like(tokens), MODEL, COMPUTE)
  expected = np.asarray(values)[0, -1]
  for before, after, junk in ((0, 4, 7), (4, 0, 9), (2, 2, 0)):
    padded = np.pad(tokens, ((0, 0), (before, after)), constant_values=junk)
    mask = np.pad(np.ones_like(tokens), ((0, 0), (before, after)))
    np.testing.assert_allclose(score(padded, mask)[0], expected, rtol=1e-5, atol=1e-5)
  shorter = np.asarray(
    score(np.pad(tokens, ((0, 0), (0, 4))), np.pad(np.ones((1, 5)), ((0, 0), (0, 5))))
  )
  np.testing.assert_allclose(shorter[0], np.asarray(values)[0, -2], rtol=1e-5, atol=1e-5)

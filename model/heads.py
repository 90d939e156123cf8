"""Scalar heads on the decoder's trunk: scores of whole texts, and values at every token.

They are the subtree "heads" of the same parameters: `weight_SD` and `bias_S`, with S for the
scores. The output projection to the vocabulary is no part of a trunk with heads.
"""

import math

import jax
import jax.numpy as jnp

from model.config import ComputeConfig, ModelConfig
from model.params import ParamSpec, param_specs
from model.transformer import hidden_states


def scorer_specs(config: ModelConfig, scores: int) -> dict:
  """The specs of a trunk with `scores` heads: a reward model's, or with one a critic's."""
  specs = {name: spec for name, spec in param_specs(config).items() if name != "unembedding_DV"}
  return specs | {"heads": head_specs(config, scores)}


def head_specs(config: ModelConfig, scores: int) -> dict:
  """N(0, 1 / sqrt(d + 1)) as in https://arxiv.org/abs/1909.08593's code, and bias 0."""
  d = config.d_model
  return {
    "weight_SD": ParamSpec((scores, d), ("scores", "embed"), std=1 / math.sqrt(d + 1)),
    "bias_S": ParamSpec((scores,), ("scores",)),
  }


def apply(params: dict, hidden: jax.Array) -> jax.Array:
  """fp32 [..., S] of hidden states [..., D]."""
  heads = params["heads"]
  out = jnp.einsum("...D,SD->...S", hidden.astype(jnp.float32), heads["weight_SD"])
  return out + heads["bias_S"].reshape((1,) * (out.ndim - 1) + (-1,))


def scores_at(params: dict, hidden_BLD: jax.Array, at_BP: jax.Array) -> jax.Array:
  """fp32 scores [B,P,S] at the indices `at_BP` of each row."""
  return apply(params, jnp.take_along_axis(hidden_BLD, at_BP[..., None], axis=1))


def last_real(mask_BL: jax.Array) -> jax.Array:
  """The index [B] of each row's last token that the mask has; 0 for a row without one.

  From the mask, never from the first pad: a pad token may be a text's own end.
  """
  length = mask_BL.shape[1]
  from_end_B = jnp.argmax(mask_BL[:, ::-1] > 0, axis=1)
  return jnp.where(jnp.any(mask_BL > 0, axis=1), length - 1 - from_end_B, 0)


def token_values(
  params: dict,
  tokens_BL: jax.Array,
  mask_BL: jax.Array,
  config: ModelConfig,
  compute: ComputeConfig,
  wanted: tuple[int, int] | None = None,
) -> jax.Array:
  """fp32 values [B,L,S] at every token of rows that are padded left, right or both.

  Args:
    params: of `scorer_specs`.
    tokens_BL: int32 ids.
    mask_BL: 1 at real tokens, 0 at padding, where what comes out means nothing.
    wanted: the part of each row whose values are wanted; see `hidden_states`.
  """
  segment_ids_BL = (mask_BL > 0).astype(jnp.int32)
  positions_BL = jnp.maximum(jnp.cumsum(segment_ids_BL, axis=1) - 1, 0)
  hidden_BLD = hidden_states(
    params, tokens_BL, segment_ids_BL, positions_BL, config, compute, wanted
  )
  return apply(params, hidden_BLD)


def text_scores(
  params: dict,
  tokens_BL: jax.Array,
  mask_BL: jax.Array,
  config: ModelConfig,
  compute: ComputeConfig,
) -> jax.Array:
  """fp32 scores [B,S] of rows, at the last real token of each; see `token_values`."""
  values_BLS = token_values(params, tokens_BL, mask_BL, config, compute)
  return jnp.take_along_axis(values_BLS, last_real(mask_BL)[:, None, None], axis=1)[:, 0]

"""Sampling with a key-value cache: temperature and nucleus, each request with its own keys."""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from model.attention import masked_attention
from model.config import ComputeConfig, ModelConfig
from model.layers import attention_output, qkv, rms_norm, swiglu_block
from model.transformer import embed, logits, run_layers


@flax.struct.dataclass
class Cache:
  """Keys and values of every layer, [layers, B, M, G, K] each, in the compute dtype."""

  key: jax.Array
  value: jax.Array


def empty_cache(batch: int, length: int, config: ModelConfig, compute: ComputeConfig) -> Cache:
  shape = (config.num_layers, batch, length, config.num_kv_heads, config.head_dim)
  return Cache(key=jnp.zeros(shape, compute.dtype), value=jnp.zeros(shape, compute.dtype))


def extend(
  params: dict,
  cache: Cache,
  tokens_BL: jax.Array,
  positions_BL: jax.Array,
  config: ModelConfig,
  compute: ComputeConfig,
) -> tuple[jax.Array, Cache]:
  """Runs tokens at consecutive positions of each row: their hidden states [B,L,D], the new cache.

  A token sees the cache up to and including its own position, so whatever lies behind (padding of
  a shorter prompt, say) is never seen before it is overwritten.
  """
  length = cache.key.shape[2]
  distance_BLM = positions_BL[:, :, None] - jnp.arange(length)[None, None, :]
  mask_BLM = distance_BLM >= 0
  if config.sliding_window is not None:
    mask_BLM &= distance_BLM < config.sliding_window

  def write(cached_BMGK, new_BLGK):
    put = jax.vmap(lambda c, n, p: jax.lax.dynamic_update_slice(c, n, (p, 0, 0)))
    return put(cached_BMGK, new_BLGK, positions_BL[:, 0])

  def layer(x_BLD, inputs):
    layer_params, key_BMGK, value_BMGK = inputs
    block = layer_params["attention"]
    normed_BLD = rms_norm(x_BLD, block["norm_D"], config.norm_eps)
    query_BLNK, key_BLGK, value_BLGK = qkv(block, normed_BLD, positions_BL, config, compute)
    key_BMGK, value_BMGK = write(key_BMGK, key_BLGK), write(value_BMGK, value_BLGK)
    out_BLNK = masked_attention(
      query_BLNK, key_BMGK, value_BMGK, mask_BLM, logit_softcap=config.attention_softcap
    )
    x_BLD += attention_output(block, out_BLNK, compute)
    x_BLD += swiglu_block(layer_params["mlp"], x_BLD, config, compute)
    return x_BLD, Cache(key=key_BMGK, value=value_BMGK)

  x_BLD, cache = run_layers(
    layer,
    embed(params, tokens_BL, compute),
    (params["layers"], cache.key, cache.value),
    compute.scan_layers,
  )
  return rms_norm(x_BLD, params["final_norm_D"], config.norm_eps), cache


def nucleus(logits_BV: jax.Array, top_p: float) -> jax.Array:
  """Masks with -inf what lies outside the nucleus (https://arxiv.org/abs/1904.09751).

  By descending probability a token stays iff the mass before it is below `top_p`: the one that
  crosses is in, and at least one is.
  """
  order_BV = jnp.argsort(-logits_BV, axis=-1)
  sorted_BV = jax.nn.softmax(jnp.take_along_axis(logits_BV, order_BV, axis=-1), axis=-1)
  before_BV = jnp.cumsum(sorted_BV, axis=-1) - sorted_BV
  keep_BV = jnp.put_along_axis(
    jnp.zeros(logits_BV.shape, bool), order_BV, before_BV < top_p, axis=-1, inplace=False
  )
  return jnp.where(keep_BV, logits_BV, -jnp.inf)


def sample(logits_BV: jax.Array, keys_B: jax.Array, temperature: float, top_p: float) -> jax.Array:
  """One token a row from fp32 logits; temperature 0 is argmax."""
  if temperature == 0:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  scaled_BV = nucleus(logits_BV / temperature, top_p)
  return jax.vmap(jax.random.categorical)(keys_B, scaled_BV).astype(jnp.int32)


@functools.partial(
  jax.jit, static_argnames=("max_tokens", "temperature", "top_p", "stop_id", "config", "compute")
)
def generate(
  params: dict,
  prompts_BL: jax.Array,
  lengths_B: jax.Array,
  key: jax.Array,
  *,
  max_tokens: int,
  temperature: float,
  top_p: float,
  stop_id: int,
  config: ModelConfig,
  compute: ComputeConfig,
) -> tuple[jax.Array, jax.Array]:
  """Continues prompts that are padded on the right.

  Random numbers are keyed by (key, row, step), so that a continuation does not depend on the
  other rows.

  Returns:
    tokens int32 [B, max_tokens], with `stop_id` after a row has stopped, and how many of them
    were generated, the stop token included, int32 [B].
  """
  batch, prompt_length = prompts_BL.shape
  keys_B = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(batch))
  cache = empty_cache(batch, prompt_length + max_tokens, config, compute)
  positions_BL = jnp.broadcast_to(jnp.arange(prompt_length)[None], prompts_BL.shape)
  hidden_BLD, cache = extend(params, cache, prompts_BL, positions_BL, config, compute)
  last_B1D = jnp.take_along_axis(hidden_BLD, (lengths_B - 1)[:, None, None], axis=1)

  def step(carry, index):
    hidden_B1D, cache, stopped_B = carry
    logits_BV = logits(params, hidden_B1D, config, compute)[:, 0]
    step_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, index)
    tokens_B = sample(logits_BV, step_keys_B, temperature, top_p)
    tokens_B = jnp.where(stopped_B, stop_id, tokens_B)
    hidden_B1D, cache = extend(
      params, cache, tokens_B[:, None], (lengths_B + index)[:, None], config, compute
    )
    return (hidden_B1D, cache, stopped_B | (tokens_B == stop_id)), (tokens_B, ~stopped_B)

  carry = (last_B1D, cache, jnp.zeros((batch,), bool))
  _, (tokens_TB, live_TB) = jax.lax.scan(step, carry, jnp.arange(max_tokens))
  return tokens_TB.T, jnp.sum(live_TB, axis=0, dtype=jnp.int32)

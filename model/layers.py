"""The parts of a decoder layer: norm, rotary positions, projections, attention, SwiGLU."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from model.attention import attention
from model.config import ComputeConfig, ModelConfig, RopeScaling
from model.sharding import constrain


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
  """RMSNorm (https://arxiv.org/abs/1910.07467) over the last axis, computed in fp32."""
  x32 = x.astype(jnp.float32)
  inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
  return (x32 * inverse * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def project(
  subscripts: str, x: jax.Array, weight: jax.Array, reduce_in_fp32: bool, out_dtype=None
) -> jax.Array:
  """`einsum(subscripts, x, weight)` in the dtype of x, with the gradient of `weight` in fp32.

  The weight is the fp32 master copy and is cast here. Plain autodiff would round the gradient's
  partial sums to the compute dtype before the sum over devices; with `reduce_in_fp32` the product
  leaves the matrix unit in fp32, so that sum is in fp32 too, at twice the bytes on the wire.
  `out_dtype` (default: that of x) is what the product itself leaves the matrix unit in.
  """
  return _project_forward(subscripts, x, weight, reduce_in_fp32, out_dtype)[0]


def _project_forward(subscripts, x, weight, reduce_in_fp32, out_dtype):
  # The cast weight is kept, not cast again: in a recomputed layer its devices' parts are then
  # gathered once for the product and its gradient.
  weight = weight.astype(x.dtype)
  return jnp.einsum(subscripts, x, weight, preferred_element_type=out_dtype), (x, weight)


def _project_backward(subscripts, reduce_in_fp32, out_dtype, residuals, grad):
  del out_dtype
  x, weight = residuals
  grad = grad.astype(x.dtype)
  inputs, out = subscripts.split("->")
  x_axes, w_axes = inputs.split(",")
  grad_x = jnp.einsum(f"{out},{w_axes}->{x_axes}", grad, weight)
  dtype = jnp.float32 if reduce_in_fp32 else x.dtype
  grad_w = jnp.einsum(f"{x_axes},{out}->{w_axes}", x, grad, preferred_element_type=dtype)
  return grad_x, grad_w.astype(jnp.float32)


project.defvjp(_project_forward, _project_backward)


def linear(
  params: dict, name: str, subscripts: str, x: jax.Array, reduce_in_fp32: bool
) -> jax.Array:
  """`project` by the weight `name` of a block, plus its low-rank adapter where it has one.

  The adapter (`model.lora`) adds scale * (x in) out, in the dtype of x.
  """
  out = project(subscripts, x, params[name], reduce_in_fp32)
  adapter = params.get("lora", {}).get(name)
  if adapter is None:
    return out
  inputs, outputs = subscripts.split("->")
  x_axes, w_axes = inputs.split(",")
  contracted = "".join(axis for axis in w_axes if axis in x_axes)
  kept = "".join(axis for axis in w_axes if axis not in x_axes)
  low_BLR = project(f"{x_axes},{contracted}R->BLR", x, adapter["in"], reduce_in_fp32)
  update = project(f"BLR,R{kept}->{outputs}", low_BLR, adapter["out"], reduce_in_fp32)
  return out + update * adapter["scale"].astype(x.dtype)


def add_bias(x_BLNK: jax.Array, bias_NK: jax.Array) -> jax.Array:
  """Adds in fp32, so that the bias's gradient, a sum over all tokens, is in fp32 as well."""
  return (x_BLNK.astype(jnp.float32) + bias_NK[None, None]).astype(x_BLNK.dtype)


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> jax.Array:
  """Angular frequencies [head_dim / 2] of RoPE (https://arxiv.org/abs/2104.09864), fp32.

  With `scaling`, Llama 3's: wavelengths beyond the original context over `low_freq_factor` are
  stretched by `factor`, those under it over `high_freq_factor` are kept, those between blended.
  """
  freqs = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  if scaling is None:
    return freqs
  turns = scaling.original_max_positions * freqs / (2 * math.pi)
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  keep = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
  return keep * freqs + (1 - keep) * freqs / scaling.factor


def rope_turns(positions: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
  """The cosine and sine of RoPE's angles at positions of any shape, fp32 [..., head_dim / 2]."""
  freqs = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
  angles = positions[..., None].astype(jnp.float32) * freqs.reshape((1,) * positions.ndim + (-1,))
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BLNK: jax.Array, turns_BLF: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Applies RoPE in fp32; pairs are (i, i + K/2), as in Hugging Face's Llama."""
  cos, sin = (turn_BLF[:, :, None] for turn_BLF in turns_BLF)
  first, second = jnp.split(x_BLNK.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return rotated.astype(x_BLNK.dtype)


def qkv(params, x_BLD, positions_BL, config: ModelConfig, compute: ComputeConfig):
  """Query [B,L,N,K], key and value [B,L,G,K] of a layer, rotated (and normed) for attention."""
  fp32 = compute.reduce_gradients_in_fp32
  # Named as they leave the matrix unit: the backward pass of the norm needs what went into it.
  query_BLNK = linear(params, "query_DNK", "BLD,DNK->BLNK", x_BLD, fp32)
  query_BLNK = checkpoint_name(constrain(query_BLNK, "batch", "length", "heads", None), "query")
  key_BLGK = linear(params, "key_DGK", "BLD,DGK->BLGK", x_BLD, fp32)
  key_BLGK = checkpoint_name(constrain(key_BLGK, "batch", "length", "kv_heads", None), "key")
  value_BLGK = linear(params, "value_DGK", "BLD,DGK->BLGK", x_BLD, fp32)
  value_BLGK = checkpoint_name(constrain(value_BLGK, "batch", "length", "kv_heads", None), "value")
  turns_BLF = rope_turns(positions_BL, config)
  return finish_qkv(params, query_BLNK, key_BLGK, value_BLGK, turns_BLF, config)


def finish_qkv(params, query_BLNK, key_BLGK, value_BLGK, turns_BLF, config: ModelConfig):
  """Biases, norms and rotation, by `rope_turns`, of what the projections give."""
  if config.qkv_bias:
    query_BLNK = add_bias(query_BLNK, params["query_bias_NK"])
    key_BLGK = add_bias(key_BLGK, params["key_bias_GK"])
    value_BLGK = add_bias(value_BLGK, params["value_bias_GK"])
  if config.qk_norm:
    query_BLNK = rms_norm(query_BLNK, params["query_norm_K"], config.norm_eps)
    key_BLGK = rms_norm(key_BLGK, params["key_norm_K"], config.norm_eps)
  return rotate(query_BLNK, turns_BLF), rotate(key_BLGK, turns_BLF), value_BLGK


def attention_block(
  params, x_BLD, segment_ids_BL, positions_BL, config: ModelConfig, compute: ComputeConfig
):
  """Pre-norm grouped-query self-attention, without the residual: [B,L,D] -> [B,L,D]."""
  x_BLD = checkpoint_name(rms_norm(x_BLD, params["norm_D"], config.norm_eps), "attention_norm")
  query_BLNK, key_BLGK, value_BLGK = qkv(params, x_BLD, positions_BL, config, compute)
  out_BLNK = attention(
    query_BLNK,
    key_BLGK,
    value_BLGK,
    segment_ids_BL,
    implementation=compute.attention,
    sliding_window=config.sliding_window,
    logit_softcap=config.attention_softcap,
    max_segments=compute.max_segments,
  )
  return attention_output(params, out_BLNK, compute)


def attention_output(params, out_BLNK, compute: ComputeConfig):
  """Projects the heads' outputs back to the residual stream."""
  fp32 = compute.reduce_gradients_in_fp32
  out_BLD = linear(params, "out_NKD", "BLNK,NKD->BLD", out_BLNK, fp32)
  return checkpoint_name(constrain(out_BLD, "batch", "length", None), "attention_proj")


def swiglu_block(params, x_BLD, config: ModelConfig, compute: ComputeConfig):
  """Pre-norm SwiGLU (https://arxiv.org/abs/2002.05202), without the residual."""
  fp32 = compute.reduce_gradients_in_fp32
  x_BLD = checkpoint_name(rms_norm(x_BLD, params["norm_D"], config.norm_eps), "mlp_norm")
  gate_BLF = checkpoint_name(linear(params, "gate_DF", "BLD,DF->BLF", x_BLD, fp32), "mlp_gate")
  up_BLF = checkpoint_name(linear(params, "up_DF", "BLD,DF->BLF", x_BLD, fp32), "mlp_up")
  hidden_BLF = jax.nn.silu(gate_BLF) * up_BLF
  hidden_BLF = checkpoint_name(constrain(hidden_BLF, "batch", "length", "mlp"), "mlp_hidden")
  out_BLD = linear(params, "down_FD", "BLF,FD->BLD", hidden_BLF, fp32)
  return constrain(out_BLD, "batch", "length", None)

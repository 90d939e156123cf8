"""The parts of a decoder layer: norm, rotary positions, projections, attention, SwiGLU."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from model.attention import attention, platform
from model.config import ComputeConfig, ModelConfig, RopeScaling
from model.sharding import constrain


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
  """RMSNorm (https://arxiv.org/abs/1910.07467) over the last axis, computed in fp32."""
  x32 = x.astype(jnp.float32)
  return (x32 * inverse_rms(x32, eps) * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


def inverse_rms(x32: jax.Array, eps: float) -> jax.Array:
  """1 / sqrt(mean of squares + eps) over the last axis, which stays."""
  return checkpoint_name(
    jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps), "inverse_rms"
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def project(
  subscripts: str, x: jax.Array, weight: jax.Array, compute: ComputeConfig, out_dtype=None
) -> jax.Array:
  """`einsum(subscripts, x, weight)` in the dtype of x, with the gradient of `weight` in fp32.

  The weight is the fp32 master copy and is cast here. Plain autodiff would round the gradient's
  partial sums to the compute dtype before the sum over devices; with `reduce_gradients_in_fp32` the
  product leaves the matrix unit in fp32, so that sum is in fp32 too, at twice the bytes on the
  wire. `out_dtype` (default: that of x) is what the product itself leaves the matrix unit in.
  """
  return _project_forward(subscripts, x, weight, compute, out_dtype)[0]


def _project_forward(subscripts, x, weight, compute, out_dtype):
  del compute
  # The cast weight is kept, not cast again: in a recomputed layer its devices' parts are then
  # gathered once for the product and its gradient.
  weight = weight.astype(x.dtype)
  return jnp.einsum(subscripts, x, weight, preferred_element_type=out_dtype), (x, weight)


def _project_backward(subscripts, compute, out_dtype, residuals, grad):
  del out_dtype
  x, weight = residuals
  grad = grad.astype(x.dtype)
  inputs, out = subscripts.split("->")
  x_axes, w_axes = inputs.split(",")
  grad_x = jnp.einsum(f"{out},{w_axes}->{x_axes}", grad, weight)
  dtype = jnp.float32 if compute.reduce_gradients_in_fp32 else x.dtype
  grad_w = jnp.einsum(f"{x_axes},{out}->{w_axes}", x, grad, preferred_element_type=dtype)
  if compute.gradients_in_order:
    grad_x, grad_w = jax.lax.optimization_barrier((grad_x, grad_w))
  return grad_x, grad_w.astype(jnp.float32)


project.defvjp(_project_forward, _project_backward)


def linear(
  params: dict, name: str, subscripts: str, x: jax.Array, compute: ComputeConfig
) -> jax.Array:
  """`project` by the weight `name` of a block, plus its low-rank adapter where it has one."""
  out = project(subscripts, x, params[name], compute)
  return adapted(out, params, name, subscripts, x, compute)


def adapted(
  out: jax.Array, params: dict, name: str, subscripts: str, x: jax.Array, compute: ComputeConfig
) -> jax.Array:
  """`out` plus what the low-rank adapter of weight `name` adds where a block has one.

  The adapter (`model.lora`) adds scale * (x in) out, in the dtype of x.
  """
  adapter = params.get("lora", {}).get(name)
  if adapter is None:
    return out
  inputs, outputs = subscripts.split("->")
  x_axes, w_axes = inputs.split(",")
  contracted = "".join(axis for axis in w_axes if axis in x_axes)
  kept = "".join(axis for axis in w_axes if axis not in x_axes)
  low_BLR = project(f"{x_axes},{contracted}R->BLR", x, adapter["in"], compute)
  update = project(f"BLR,R{kept}->{outputs}", low_BLR, adapter["out"], compute)
  return out + update * adapter["scale"].astype(x.dtype)


def in_groups(query_NK: jax.Array, key_GK: jax.Array, value_GK: jax.Array) -> jax.Array:
  """[..., G, H, K]: of each key-value head its queries, then its key, then its value."""
  query_GRK = query_NK.reshape(*key_GK.shape[:-1], -1, key_GK.shape[-1])
  return jnp.concatenate([query_GRK, key_GK[..., None, :], value_GK[..., None, :]], axis=-2)


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


def rope_turns(
  positions: jax.Array, config: ModelConfig, below: int | None = None
) -> tuple[jax.Array, jax.Array]:
  """The cosine and sine of RoPE's angles at positions of any shape, fp32 [..., head_dim / 2].

  Where all positions are `below` a number, a CPU reads them from a table: XLA would compute them
  again in every fusion that they go into, for every head of every layer.
  """
  if below is not None and platform() == "cpu":
    return tuple(table_MF[positions] for table_MF in rope_turns(jnp.arange(below), config))
  freqs = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
  angles = positions[..., None].astype(jnp.float32) * freqs.reshape((1,) * positions.ndim + (-1,))
  return jnp.cos(angles), jnp.sin(angles)


def rotate(
  x_BLNK: jax.Array, turns_BLF: tuple[jax.Array, jax.Array], norm_K: jax.Array | None, eps: float
) -> jax.Array:
  """Applies RoPE in fp32; pairs are (i, i + K/2), as in Hugging Face's Llama.

  With `norm_K` of `rms_norm` before it: its inverse root mean square, one number a head, is
  multiplied last, so that neither is a pass over memory of its own.
  """
  cos, sin = (turn_BLF[:, :, None] for turn_BLF in turns_BLF)
  x32_BLNK = x_BLNK.astype(jnp.float32)
  inverse_BLN1 = 1.0
  if norm_K is not None:
    inverse_BLN1 = inverse_rms(x32_BLNK, eps)
    x32_BLNK = x32_BLNK * norm_K[None, None, None]
  first, second = jnp.split(x32_BLNK, 2, axis=-1)
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return (rotated * inverse_BLN1).astype(x_BLNK.dtype)


def part(x_BL: jax.Array, wanted: tuple[int, int] | None) -> jax.Array:
  """Of [B,L,...] the tokens from the first of `wanted` to before the second; None for all."""
  return x_BL if wanted is None else x_BL[:, wanted[0] : wanted[1]]


def qkv(params, x_BLD, turns_BLF, config: ModelConfig, compute: ComputeConfig, wanted=None):
  """Query [B,L,N,K], key and value [B,L,G,K] of a layer, rotated (and normed) for attention.

  `turns_BLF` are `rope_turns` of the tokens' positions. The queries are those of the tokens that
  are `wanted`, as of `part`.
  """
  project_qkv = _fused_qkv if compute.fuse_qkv else _separate_qkv
  return finish_qkv(params, *project_qkv(params, x_BLD, compute, wanted), turns_BLF, config, wanted)


# Both name what they give as it leaves the matrix unit: the backward pass of the norms needs what
# went into them.
def _separate_qkv(params, x_BLD, compute: ComputeConfig, wanted):
  def one(name, subscripts, heads, x_BLD):
    out_BLHK = linear(params, name, subscripts, x_BLD, compute)
    return checkpoint_name(constrain(out_BLHK, "batch", "length", heads, None), "qkv")

  return (
    one("query_DNK", "BLD,DNK->BLNK", "heads", part(x_BLD, wanted)),
    one("key_DGK", "BLD,DGK->BLGK", "kv_heads", x_BLD),
    one("value_DGK", "BLD,DGK->BLGK", "kv_heads", x_BLD),
  )


def _fused_qkv(params, x_BLD, compute: ComputeConfig, wanted):
  names = ("query_DNK", "key_DGK", "value_DGK")
  weight_DGHK = in_groups(*(params[name] for name in names))
  out_BLGHK = project("BLD,DGHK->BLGHK", x_BLD, weight_DGHK, compute)
  out_BLGHK = checkpoint_name(
    constrain(out_BLGHK, "batch", "length", "kv_heads", None, None), "qkv"
  )
  *_, heads, head_dim = out_BLGHK.shape
  parts = jax.lax.split(out_BLGHK, (heads - 2, 1, 1), axis=3)  # transposed, one concatenation
  parts = (x.reshape(*x_BLD.shape[:2], -1, head_dim) for x in parts)
  query_BLNK, key_BLGK, value_BLGK = (
    adapted(out_BLHK, params, name, "BLD,DHK->BLHK", x_BLD, compute)
    for out_BLHK, name in zip(parts, names, strict=True)
  )
  return part(query_BLNK, wanted), key_BLGK, value_BLGK


def finish_qkv(
  params, query_BLNK, key_BLGK, value_BLGK, turns_BLF, config: ModelConfig, wanted=None
):
  """Biases, norms and rotation, by `rope_turns`, of what the projections give."""
  if config.qkv_bias:
    query_BLNK = add_bias(query_BLNK, params["query_bias_NK"])
    key_BLGK = add_bias(key_BLGK, params["key_bias_GK"])
    value_BLGK = add_bias(value_BLGK, params["value_bias_GK"])
  norms = (params["query_norm_K"], params["key_norm_K"]) if config.qk_norm else (None, None)
  query_turns_BLF = tuple(part(turn_BLF, wanted) for turn_BLF in turns_BLF)
  query_BLNK = rotate(query_BLNK, query_turns_BLF, norms[0], config.norm_eps)
  key_BLGK = rotate(key_BLGK, turns_BLF, norms[1], config.norm_eps)
  return query_BLNK, key_BLGK, value_BLGK


def attention_block(
  params,
  x_BLD,
  segment_ids_BL,
  positions_BL,
  config: ModelConfig,
  compute: ComputeConfig,
  wanted: tuple[int, int] | None = None,
):
  """Pre-norm grouped-query self-attention, without the residual: [B,L,D] -> [B,L,D].

  Of the tokens that are `wanted` alone, as of `part`, where that is given.
  """
  x_BLD = checkpoint_name(rms_norm(x_BLD, params["norm_D"], config.norm_eps), "attention_norm")
  turns_BLF = rope_turns(positions_BL, config, below=positions_BL.shape[1])
  query_BLNK, key_BLGK, value_BLGK = qkv(params, x_BLD, turns_BLF, config, compute, wanted)
  out_BLNK = attention(
    query_BLNK,
    key_BLGK,
    value_BLGK,
    segment_ids_BL,
    first=0 if wanted is None else wanted[0],
    implementation=compute.attention,
    sliding_window=config.sliding_window,
    logit_softcap=config.attention_softcap,
    max_segments=compute.max_segments,
  )
  return attention_output(params, out_BLNK, compute)


def attention_output(params, out_BLNK, compute: ComputeConfig):
  """Projects the heads' outputs back to the residual stream."""
  out_BLD = linear(params, "out_NKD", "BLNK,NKD->BLD", out_BLNK, compute)
  return checkpoint_name(constrain(out_BLD, "batch", "length", None), "attention_proj")


@jax.custom_vjp
def in_turn(*xs: jax.Array) -> tuple[jax.Array, ...]:
  """Itself; in the backward pass what goes on from one waits until all have their gradients."""
  return xs


in_turn.defvjp(lambda *xs: (xs, None), lambda _, grads: jax.lax.optimization_barrier(grads))


def swiglu_block(params, x_BLD, config: ModelConfig, compute: ComputeConfig):
  """Pre-norm SwiGLU (https://arxiv.org/abs/2002.05202), without the residual."""
  x_BLD = checkpoint_name(rms_norm(x_BLD, params["norm_D"], config.norm_eps), "mlp_norm")
  gate_BLF = checkpoint_name(linear(params, "gate_DF", "BLD,DF->BLF", x_BLD, compute), "mlp_gate")
  if compute.gradients_in_order:
    gate_BLF, x_BLD = in_turn(gate_BLF, x_BLD)
  up_BLF = checkpoint_name(linear(params, "up_DF", "BLD,DF->BLF", x_BLD, compute), "mlp_up")
  hidden_BLF = jax.nn.silu(gate_BLF) * up_BLF
  hidden_BLF = checkpoint_name(constrain(hidden_BLF, "batch", "length", "mlp"), "mlp_hidden")
  out_BLD = linear(params, "down_FD", "BLF,FD->BLD", hidden_BLF, compute)
  return constrain(out_BLD, "batch", "length", None)

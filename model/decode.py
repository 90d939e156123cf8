"""The decoder a few tokens at a time: weights laid out to be streamed, and a key-value cache.

A step costs one pass over the weights, so they are cast once, a layer's arrays are its own (a scan
over a stack would copy each layer's weights and cache out of it and back), and matrices that take
the same input are one. They are [outputs, inputs], which a processor reads once and in order for
several rows; for one row alone [inputs, outputs] is read as fast or faster. The cache lies as the
two products of attention read it.
"""

import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from model import lora
from model.attention import attention, platform
from model.config import ComputeConfig, ModelConfig
from model.layers import finish_qkv, rms_norm, rope_turns
from model.sharding import BATCH_AXES, batch_shards, constrain

# Logical axes of what `prepare` makes; the rest of it is small, and whole on every device.
AXES = {
  "embedding_VD": ("vocab", "embed"),
  "qkv_GHKD": ("kv_heads", None, None, "embed"),
  "out_DX": ("embed", "heads"),
  "gate_up_CFD": (None, "mlp", "embed"),
  "down_DF": ("embed", "mlp"),
  "unembedding_VD": ("vocab", "embed"),
}
_FEW = 64  # tokens; the product of more reads a matrix as fast in either order
_ALIGNED = 16  # a cache has a multiple of so many places: lines that are whole are read faster
_SMALL = ("query_bias_NK", "key_bias_GK", "value_bias_GK", "query_norm_K", "key_norm_K")


@flax.struct.dataclass
class Cache:
  """Keys [B,G,K,M] and values [B,G,M,K] of each layer, in the compute dtype."""

  keys: tuple[jax.Array, ...]
  values: tuple[jax.Array, ...]

  @property
  def length(self) -> int:
    return self.values[0].shape[2]


def empty_cache(batch: int, length: int, config: ModelConfig, compute: ComputeConfig) -> Cache:
  """Zeros for at least `length` tokens of each row."""
  length += -length % _ALIGNED
  lead, width = (batch, config.num_kv_heads), config.head_dim

  def arrays(*shape):
    empty = (jnp.zeros(lead + shape, compute.dtype) for _ in range(config.num_layers))
    return tuple(constrain(x, "batch", "kv_heads", None, None) for x in empty)

  return Cache(keys=arrays(width, length), values=arrays(length, width))


def pad_cache(cache: Cache, length: int) -> Cache:
  """The cache with room for at least `length` tokens more."""
  length += -(cache.length + length) % _ALIGNED
  return Cache(
    keys=tuple(jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, length))) for x in cache.keys),
    values=tuple(jnp.pad(x, ((0, 0), (0, 0), (0, length), (0, 0))) for x in cache.values),
  )


@functools.partial(jax.jit, static_argnames=("config", "compute", "one_row"))
def prepare(
  params: dict, config: ModelConfig, compute: ComputeConfig, *, one_row: bool = False
) -> dict:
  """The weights as the functions below take them: a copy in the compute dtype, adapters merged.

  Prepare them once for many calls; each of the others takes only what this returns.

  Args:
    params: the tree of `model.params.param_specs(config)`, with adapters or without.
    one_row: for `extend` by a token of one row, matrices are [inputs, outputs].
  """
  if lora.is_adapted(params):
    params = lora.merge(params)
  groups, heads = config.num_kv_heads, config.num_heads // config.num_kv_heads

  def laid_out(matrices):
    whole = {n: constrain(x, *AXES[n]).astype(compute.dtype) for n, x in matrices.items()}
    if one_row:
      return {_inputs_first(n): jnp.moveaxis(x, -1, 0) for n, x in whole.items()}
    return whole

  def layer(index):
    attention, mlp = (
      {k: x[index] for k, x in params["layers"][b].items()} for b in ("attention", "mlp")
    )
    query_DGRK = attention["query_DNK"].reshape(config.d_model, groups, heads, config.head_dim)
    others = (attention[name][:, :, None] for name in ("key_DGK", "value_DGK"))
    # A group's query heads, key and value side by side, so that all are on the same device.
    qkv_DGHK = jnp.concatenate([query_DGRK, *others], axis=2)
    matrices = {
      "qkv_GHKD": jnp.moveaxis(qkv_DGHK, 0, -1),
      "out_DX": attention["out_NKD"].reshape(-1, config.d_model).T,
      "gate_up_CFD": jnp.stack([mlp["gate_DF"].T, mlp["up_DF"].T]),
      "down_DF": mlp["down_FD"].T,
    }
    return {
      **laid_out(matrices),
      "attention_norm_D": attention["norm_D"],
      "mlp_norm_D": mlp["norm_D"],
      "small": {name: attention[name] for name in _SMALL if name in attention},
    }

  weights = {
    "embedding_VD": params["embedding_VD"].astype(compute.dtype),
    "layers": tuple(layer(index) for index in range(config.num_layers)),
    "final_norm_D": params["final_norm_D"],
  }
  if not config.tie_embeddings:
    weights |= laid_out({"unembedding_VD": params["unembedding_DV"].T})
  elif one_row:
    weights |= laid_out({"unembedding_VD": params["embedding_VD"]})
  return weights


def _inputs_first(name: str) -> str:
  """qkv_DGHK of qkv_GHKD."""
  stem, axes = name.rsplit("_", 1)
  return f"{stem}_{axes[-1]}{axes[:-1]}"


def _product(x_BLX: jax.Array, arrays: dict, name: str, dtype=None) -> jax.Array:
  """[B,L,*outputs]: each token by the matrix `name` of `prepare`, in either order of its axes."""
  if _inputs_first(name) in arrays:
    return jnp.tensordot(x_BLX, arrays[_inputs_first(name)], 1, preferred_element_type=dtype)

  matrix = arrays[name]
  if platform() != "cpu" or math.prod(x_BLX.shape[:-1]) > _FEW:
    return jnp.tensordot(x_BLX, matrix, (-1, -1), preferred_element_type=dtype)
  # Without barriers XLA undoes the turning of tokens, and turns the matrix.
  x_XT = jax.lax.optimization_barrier(x_BLX.reshape(-1, x_BLX.shape[-1]).T)
  out = jax.lax.optimization_barrier(jnp.tensordot(matrix, x_XT, 1, preferred_element_type=dtype))
  return jnp.moveaxis(out, -1, 0).reshape(*x_BLX.shape[:-1], *matrix.shape[:-1])


def extend(
  weights: dict,
  cache: Cache,
  tokens_BL: jax.Array,
  positions_BL: jax.Array,
  config: ModelConfig,
) -> tuple[jax.Array, Cache]:
  """Runs tokens at consecutive positions of each row: their hidden states [B,L,D], the new cache.

  A token sees the cache up to and including its own position, so whatever lies behind (padding of
  a shorter prompt, say) is never seen before it is overwritten. The L x M logits are all held at
  one time; `prefill` is for long prompts.

  Args:
    weights: of `prepare`.
    positions_BL: int32, of which the last is below the length of the cache.
  """
  distance_BLM = positions_BL[:, :, None] - jnp.arange(cache.length)[None, None, :]
  mask_BLM = distance_BLM >= 0
  if config.sliding_window is not None:
    mask_BLM &= distance_BLM < config.sliding_window
  put = _by_shard(_put, len(tokens_BL), config.num_kv_heads)

  def attend(layer, query_BLNK, key_BLGK, value_BLGK):
    key_BGLK, value_BGLK = key_BLGK.transpose(0, 2, 1, 3), value_BLGK.transpose(0, 2, 1, 3)
    key_BGKM, value_BGMK = put(
      cache.keys[layer], cache.values[layer], key_BGLK, value_BGLK, positions_BL
    )
    return _attention(query_BLNK, key_BGKM, value_BGMK, mask_BLM, config), key_BGKM, value_BGMK

  turns_BLF = rope_turns(positions_BL, config, below=cache.length)
  return _run(weights, tokens_BL, turns_BLF, attend, config)


def _put(key_BGKM, value_BGMK, key_BGLK, value_BGLK, positions_BL):
  """The cache of a layer with new keys and values in their places."""
  # One place of a scatter for each row and group: of a single place XLA on the CPU makes an update
  # of a slice, which it then does twice, for the cache and for the product, on copies of it.
  rows_B11 = jnp.arange(key_BGKM.shape[0])[:, None, None]
  groups_1G1 = jnp.arange(key_BGKM.shape[1])[None, :, None]
  at_B1L = positions_BL[:, None, :]
  return (
    key_BGKM.at[rows_B11, groups_1G1, :, at_B1L].set(key_BGLK),
    value_BGMK.at[rows_B11, groups_1G1, at_B1L].set(value_BGLK),
  )


def _by_shard(put, batch: int, groups: int):
  """`_put` of each device's rows and heads: XLA would gather those of all devices for a scatter."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size <= 1 or batch % batch_shards(mesh) or groups % mesh.shape["tensor"]:
    return put
  heads, rows = PartitionSpec(BATCH_AXES, "tensor"), PartitionSpec(BATCH_AXES)
  return jax.shard_map(
    put, mesh=mesh, in_specs=(heads,) * 4 + (rows,), out_specs=(heads, heads), check_vma=False
  )


@flax.struct.dataclass
class Packing:
  """How prompts lie in rows that several of them share.

  Attributes:
    segments_RW: int32, from 1 for the prompts of a row; 0 is padding.
    positions_RW: int32, of a token in its prompt.
    places_BL: int32, where in the flat rows the tokens of prompt b are; what lies behind its end
      means nothing.
  """

  segments_RW: jax.Array
  positions_RW: jax.Array
  places_BL: jax.Array


def prefill(
  weights: dict,
  tokens_BL: jax.Array,
  config: ModelConfig,
  compute: ComputeConfig,
  packing: Packing | None = None,
  lengths_B: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
  """Runs prompts from position 0: their hidden states [B,L,D], and a cache of their length.

  Prompts are padded on the right: what comes out there means nothing. With a packing the tokens are
  those of its rows [R,W], and so are the hidden states; the cache is by prompt. With lengths the
  hidden states are [B,1,D], of the last token of each prompt: the last layer computes no others.
  """
  if packing is None:
    segments_BL, positions_BL = jnp.ones_like(tokens_BL), jnp.arange(tokens_BL.shape[1])[None]
  else:
    segments_BL, positions_BL = packing.segments_RW, packing.positions_RW

  def attend(_, query_BLNK, key_BLGK, value_BLGK):
    out_BLNK = attention(
      query_BLNK,
      key_BLGK,
      value_BLGK,
      segments_BL,
      sliding_window=config.sliding_window,
      logit_softcap=config.attention_softcap,
      max_segments=compute.max_segments,
    )
    if packing is not None:
      flat = (x.reshape(-1, *x.shape[2:]) for x in (key_BLGK, value_BLGK))
      key_BLGK, value_BLGK = (x[packing.places_BL] for x in flat)
    return out_BLNK, key_BLGK.transpose(0, 2, 3, 1), value_BLGK.transpose(0, 2, 1, 3)

  def last(x_BLX):
    if packing is None:
      return jnp.take_along_axis(x_BLX, (lengths_B - 1)[:, None, None], axis=1)
    places_B1 = jnp.take_along_axis(packing.places_BL, (lengths_B - 1)[:, None], axis=1)
    return x_BLX.reshape(-1, x_BLX.shape[-1])[places_B1]

  keep = None if lengths_B is None else last
  turns_BLF = rope_turns(positions_BL, config, below=tokens_BL.shape[1])
  return _run(weights, tokens_BL, turns_BLF, attend, config, keep)


def _attention(query_BLNK, key_BGKM, value_BGMK, mask_BLM, config: ModelConfig):
  """`model.attention.masked_attention` of a cache."""
  B, L, N, K = query_BLNK.shape
  query_BGRLK = query_BLNK.reshape(B, L, config.num_kv_heads, -1, K).transpose(0, 2, 3, 1, 4)
  logits_BGRLM = K**-0.5 * jnp.einsum(
    "BGRLK,BGKM->BGRLM", query_BGRLK, key_BGKM, preferred_element_type=jnp.float32
  )
  if config.attention_softcap is not None:
    logits_BGRLM = config.attention_softcap * jnp.tanh(logits_BGRLM / config.attention_softcap)
  logits_BGRLM = jnp.where(mask_BLM[:, None, None], logits_BGRLM, -jnp.inf)
  # Divided by the sum at the end, K numbers a query in the place of M.
  mass_BGRLM = jnp.exp(logits_BGRLM - jnp.max(logits_BGRLM, axis=-1, keepdims=True))
  out_BGRLK = jnp.einsum(
    "BGRLM,BGMK->BGRLK",
    mass_BGRLM.astype(query_BLNK.dtype),
    value_BGMK,
    preferred_element_type=jnp.float32,
  )
  out_BGRLK /= jnp.sum(mass_BGRLM, axis=-1, keepdims=True)
  return out_BGRLK.transpose(0, 3, 1, 2, 4).reshape(B, L, N, K).astype(query_BLNK.dtype)


def _run(weights, tokens_BL, turns_BLF, attend, config: ModelConfig, keep=None):
  """All layers; `attend(layer, query, key, value)` gives the heads' outputs, keys and values.

  Behind the last attention only what `keep` takes of rows goes on.
  """
  x_BLD = constrain(weights["embedding_VD"][tokens_BL], "batch", None, None)
  keys, values = [], []
  for index, layer in enumerate(weights["layers"]):
    normed_BLD = rms_norm(x_BLD, layer["attention_norm_D"], config.norm_eps)
    qkv_BLGHK = _product(normed_BLD, layer, "qkv_GHKD")
    query_BLNK = qkv_BLGHK[:, :, :, :-2].reshape(*tokens_BL.shape, -1, config.head_dim)
    query_BLNK, key_BLGK, value_BLGK = finish_qkv(
      layer["small"],
      query_BLNK,
      qkv_BLGHK[:, :, :, -2],
      qkv_BLGHK[:, :, :, -1],
      turns_BLF,
      config,
    )
    out_BLNK, key_BGKM, value_BGMK = attend(index, query_BLNK, key_BLGK, value_BLGK)
    keys.append(constrain(key_BGKM, "batch", "kv_heads", None, None))
    values.append(constrain(value_BGMK, "batch", "kv_heads", None, None))
    out_BLX = out_BLNK.reshape(*tokens_BL.shape, -1)
    if keep is not None and index == config.num_layers - 1:
      x_BLD, out_BLX = keep(x_BLD), keep(out_BLX)
    x_BLD += _product(out_BLX, layer, "out_DX")
    normed_BLD = rms_norm(x_BLD, layer["mlp_norm_D"], config.norm_eps)
    gate_up_BLCF = _product(normed_BLD, layer, "gate_up_CFD")
    hidden_BLF = jax.nn.silu(gate_up_BLCF[:, :, 0]) * gate_up_BLCF[:, :, 1]
    x_BLD += _product(hidden_BLF, layer, "down_DF")
  x_BLD = rms_norm(x_BLD, weights["final_norm_D"], config.norm_eps)
  return x_BLD, Cache(keys=tuple(keys), values=tuple(values))


def token_logits(weights: dict, hidden_BD: jax.Array, config: ModelConfig) -> jax.Array:
  """fp32 logits [B,V] of one hidden state a row, soft-capped where the config says so."""
  shared = config.tie_embeddings and "unembedding_DV" not in weights
  name = "embedding_VD" if shared else "unembedding_VD"
  out_BV = _product(hidden_BD[:, None], weights, name, jnp.float32)[:, 0]
  out_BV = constrain(out_BV, "batch", "vocab")
  if config.logit_softcap is not None:
    out_BV = config.logit_softcap * jnp.tanh(out_BV / config.logit_softcap)
  return out_BV

"""Memory-efficient attention in plain JAX: blocks of queries against blocks of keys, never L x M.

FlashAttention-2 (https://arxiv.org/abs/2307.08691, algorithms 1 and 2) as two nested loops of XLA.
Deviation: dK and dV are accumulated in fp32 by the same pass that computes dQ, not by a second one.
Shapes here have heads in front: R = N / G queries heads share a key-value head.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from model.attention_reference import MASKED, causal_segment_mask


@dataclasses.dataclass(frozen=True)
class _Options:
  sliding_window: int | None
  logit_softcap: float | None
  block: int


def chunked_attention(
  q_BLNK, k_BMGK, v_BMGK, q_ids_BL, kv_ids_BM, *, q_offset, sliding_window, logit_softcap, block
):
  """Attention of queries at indices `q_offset` + l over all keys, in blocks; [B,L,N,K] like q.

  `q_offset` may be traced (a shard of a row); `block` is the number of queries and of keys of a
  block, and no length needs to be a multiple of it.
  """
  B, L, N, K = q_BLNK.shape
  M, G = k_BMGK.shape[1:3]
  block = min(block, max(L, M))
  # Queries beyond the end are cut off again, and keys there come after every query.
  q_BLNK, k_BMGK, v_BMGK, q_ids_BL, kv_ids_BM = (
    jnp.pad(x, [(0, 0), (0, -x.shape[1] % block)] + [(0, 0)] * (x.ndim - 2))
    for x in (q_BLNK, k_BMGK, v_BMGK, q_ids_BL, kv_ids_BM)
  )
  q_BGRLK = q_BLNK.reshape(B, -1, G, N // G, K).transpose(0, 2, 3, 1, 4)
  k_BGMK, v_BGMK = k_BMGK.transpose(0, 2, 1, 3), v_BMGK.transpose(0, 2, 1, 3)
  options = _Options(sliding_window, logit_softcap, block)
  out_BGRLK = _flash(
    options, q_BGRLK, k_BGMK, v_BGMK, q_ids_BL, kv_ids_BM, jnp.asarray(q_offset, jnp.int32)
  )
  return out_BGRLK.transpose(0, 3, 1, 2, 4).reshape(B, -1, N, K)[:, :L]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(options, q_BGRLK, k_BGMK, v_BGMK, q_ids_BL, kv_ids_BM, q_offset):
  return _forward(options, q_BGRLK, k_BGMK, v_BGMK, q_ids_BL, kv_ids_BM, q_offset)[0]


def _flash_forward(options, *inputs):
  out_BGRLK, lse_BGRL = _forward(options, *inputs)
  out_BGRLK = checkpoint_name(out_BGRLK, "attention_out")
  lse_BGRL = checkpoint_name(lse_BGRL, "attention_lse")
  return out_BGRLK, (*inputs, out_BGRLK, lse_BGRL)


def _flash_backward(options, residuals, d_out_BGRLK):
  return *_backward(options, *residuals, d_out_BGRLK), None, None, None


_flash.defvjp(_flash_forward, _flash_backward)


def _forward(options, q_BGRLK, k_BGMK, v_BGMK, q_ids_BL, kv_ids_BM, q_offset):
  block, starts_BM = options.block, _segment_starts(kv_ids_BM)

  def query_block(i):
    q_BGRlK, q_ids_Bl = _block(q_BGRLK, i, block, 3), _block(q_ids_BL, i, block, 1)

    def key_block(j, carry):
      out_BGRlK, max_BGRl, sum_BGRl = carry
      v_BGmK = _block(v_BGMK, j, block, 2)
      x_BGRlm, _ = _logits(
        options, q_BGRlK, _block(k_BGMK, j, block, 2), q_ids_Bl, _block(kv_ids_BM, j, block, 1),
        q_offset + (i - j) * block,
      )  # fmt: skip
      new_max_BGRl = jnp.maximum(max_BGRl, x_BGRlm.max(-1))
      shrink_BGRl = jnp.exp(max_BGRl - new_max_BGRl)
      p_BGRlm = jnp.exp(x_BGRlm - new_max_BGRl[..., None])
      out_BGRlK = out_BGRlK * shrink_BGRl[..., None] + _einsum(
        "BGRlm,BGmK->BGRlK", p_BGRlm.astype(v_BGmK.dtype), v_BGmK
      )
      return out_BGRlK, new_max_BGRl, sum_BGRl * shrink_BGRl + p_BGRlm.sum(-1)

    zeros_BGRl = jnp.zeros(q_BGRlK.shape[:-1], jnp.float32)
    start = (jnp.zeros(q_BGRlK.shape, jnp.float32), zeros_BGRl + MASKED, zeros_BGRl)
    first, last = _key_blocks(options, i, q_offset, starts_BM)
    out_BGRlK, max_BGRl, sum_BGRl = lax.fori_loop(first, last, key_block, start)
    out_BGRlK = (out_BGRlK / sum_BGRl[..., None]).astype(q_BGRLK.dtype)
    return out_BGRlK, max_BGRl + jnp.log(sum_BGRl)

  out, lse = lax.map(query_block, jnp.arange(q_BGRLK.shape[3] // block))
  return _merge(out, q_BGRLK.shape), _merge(lse, q_BGRLK.shape[:-1])


def _backward(
  options, q_BGRLK, k_BGMK, v_BGMK, q_ids_BL, kv_ids_BM, q_offset, out_BGRLK, lse_BGRL, d_out_BGRLK
):
  block, starts_BM = options.block, _segment_starts(kv_ids_BM)
  scale = q_BGRLK.shape[-1] ** -0.5
  delta_BGRL = _einsum("BGRLK,BGRLK->BGRL", out_BGRLK, d_out_BGRLK)

  def query_block(carry, i):
    q_BGRlK, d_out_BGRlK = _block(q_BGRLK, i, block, 3), _block(d_out_BGRLK, i, block, 3)
    lse_BGRl, delta_BGRl = _block(lse_BGRL, i, block, 3), _block(delta_BGRL, i, block, 3)
    q_ids_Bl = _block(q_ids_BL, i, block, 1)

    def key_block(j, carry):
      dq_BGRlK, dk_BGMK, dv_BGMK = carry
      k_BGmK, v_BGmK = _block(k_BGMK, j, block, 2), _block(v_BGMK, j, block, 2)
      x_BGRlm, slope_BGRlm = _logits(
        options, q_BGRlK, k_BGmK, q_ids_Bl, _block(kv_ids_BM, j, block, 1),
        q_offset + (i - j) * block,
      )  # fmt: skip
      p_BGRlm = jnp.exp(x_BGRlm - lse_BGRl[..., None])
      dp_BGRlm = _einsum("BGRlK,BGmK->BGRlm", d_out_BGRlK, v_BGmK)
      dx_BGRlm = p_BGRlm * (dp_BGRlm - delta_BGRl[..., None]) * slope_BGRlm * scale
      p_BGRlm, dx_BGRlm = p_BGRlm.astype(q_BGRLK.dtype), dx_BGRlm.astype(q_BGRLK.dtype)
      dq_BGRlK += _einsum("BGRlm,BGmK->BGRlK", dx_BGRlm, k_BGmK)
      dk_BGMK = _add_block(dk_BGMK, j, _einsum("BGRlm,BGRlK->BGmK", dx_BGRlm, q_BGRlK))
      dv_BGMK = _add_block(dv_BGMK, j, _einsum("BGRlm,BGRlK->BGmK", p_BGRlm, d_out_BGRlK))
      return dq_BGRlK, dk_BGMK, dv_BGMK

    first, last = _key_blocks(options, i, q_offset, starts_BM)
    start = (jnp.zeros(q_BGRlK.shape, jnp.float32), *carry)
    dq_BGRlK, *carry = lax.fori_loop(first, last, key_block, start)
    return tuple(carry), dq_BGRlK.astype(q_BGRLK.dtype)

  zeros_BGMK = jnp.zeros(k_BGMK.shape, jnp.float32)
  blocks = jnp.arange(q_BGRLK.shape[3] // block)
  (dk_BGMK, dv_BGMK), dq = lax.scan(query_block, (zeros_BGMK, zeros_BGMK), blocks)
  dq_BGRLK = _merge(dq, q_BGRLK.shape)
  return dq_BGRLK, dk_BGMK.astype(k_BGMK.dtype), dv_BGMK.astype(v_BGMK.dtype)


def _logits(options, q_BGRlK, k_BGmK, q_ids_Bl, kv_ids_Bm, ahead):
  """fp32 logits of a block, and the derivative of the soft-cap; queries start `ahead` of keys."""
  x_BGRlm = _einsum("BGRlK,BGmK->BGRlm", q_BGRlK, k_BGmK) * q_BGRlK.shape[-1] ** -0.5
  slope_BGRlm = jnp.ones((1,) * 5, jnp.float32)
  if options.logit_softcap is not None:
    tanh_BGRlm = jnp.tanh(x_BGRlm / options.logit_softcap)
    x_BGRlm, slope_BGRlm = options.logit_softcap * tanh_BGRlm, 1 - tanh_BGRlm**2
  mask_Blm = causal_segment_mask(
    q_ids_Bl, kv_ids_Bm, q_offset=ahead, sliding_window=options.sliding_window
  )
  return jnp.where(mask_Blm[:, None, None], x_BGRlm, MASKED), slope_BGRlm


def _key_blocks(options, i, q_offset, starts_BM):
  """The key blocks [first, last) that query block i may see: by segments, window and causality."""
  first_query = q_offset + i * options.block
  # Segments are contiguous: before the start of its first query's, no row of the block sees a key.
  first_key = lax.dynamic_index_in_dim(starts_BM, first_query, axis=1).min()
  if options.sliding_window is not None:
    first_key = jnp.maximum(first_key, first_query - options.sliding_window + 1)
  last_key = jnp.minimum(first_query + options.block, starts_BM.shape[1]) - 1
  return first_key // options.block, last_key // options.block + 1


def _segment_starts(ids_BM):
  """For each token the index of the first one of its segment."""
  new_BM = ids_BM != jnp.roll(ids_BM, 1, axis=1)
  index_M = jnp.arange(ids_BM.shape[1], dtype=jnp.int32)
  return lax.cummax(jnp.where(new_BM, index_M[None], 0), axis=1)


def _einsum(equation, *operands):
  return jnp.einsum(equation, *operands, preferred_element_type=jnp.float32)


def _block(x, i, size, axis):
  return lax.dynamic_slice_in_dim(x, i * size, size, axis)


def _add_block(x_BGMK, j, block_BGmK):
  size = block_BGmK.shape[2]
  new = _block(x_BGMK, j, size, 2) + block_BGmK
  return lax.dynamic_update_slice_in_dim(x_BGMK, new, j * size, 2)


def _merge(blocks, shape):
  """[blocks,B,G,R,l,...] -> [B,G,R,L,...]."""
  return jnp.moveaxis(blocks, 0, 3).reshape(shape)

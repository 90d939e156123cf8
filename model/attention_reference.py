"""The definition of attention, which every other implementation is held to: masked L x M logits."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

# Finite, so that a row without any allowed key gives the mean of the values and not NaN.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def masked_attention(
  q_BLNK: jax.Array,
  k_BMGK: jax.Array,
  v_BMGK: jax.Array,
  mask_BLM: jax.Array,
  *,
  logit_softcap: float | None = None,
) -> jax.Array:
  """Grouped-query attention under an explicit mask (True: attend), [B,L,N,K] like q.

  The definition that the other implementations are held to, and the one to decode with.
  """
  B, L, N, K = q_BLNK.shape
  G = k_BMGK.shape[2]
  # Heads in front: on CPU the matmuls are about a quarter faster than on strided heads.
  q_BGRLK = q_BLNK.reshape(B, L, G, N // G, K).transpose(0, 2, 3, 1, 4)
  k_BGMK, v_BGMK = k_BMGK.transpose(0, 2, 1, 3), v_BMGK.transpose(0, 2, 1, 3)
  logits_BGRLM = K**-0.5 * jnp.einsum(
    "BGRLK,BGMK->BGRLM", q_BGRLK, k_BGMK, preferred_element_type=jnp.float32
  )
  if logit_softcap is not None:
    logits_BGRLM = logit_softcap * jnp.tanh(logits_BGRLM / logit_softcap)
  logits_BGRLM = jnp.where(mask_BLM[:, None, None], logits_BGRLM, MASKED)
  weights_BGRLM = jax.nn.softmax(logits_BGRLM, axis=-1).astype(v_BMGK.dtype)
  out_BGRLK = jnp.einsum(
    "BGRLM,BGMK->BGRLK", weights_BGRLM, v_BGMK, preferred_element_type=jnp.float32
  )
  return out_BGRLK.transpose(0, 3, 1, 2, 4).reshape(q_BLNK.shape).astype(q_BLNK.dtype)


def causal_segment_mask(
  q_ids_BL: jax.Array, kv_ids_BM: jax.Array, *, q_offset=0, sliding_window: int | None = None
) -> jax.Array:
  """Which keys a query sees, bool [B,L,M]: its own segment's, at most at its index in the row.

  Query l has index `q_offset` + l. With `sliding_window` w its keys are those in (i - w, i].
  """
  age_LM = q_offset + jnp.arange(q_ids_BL.shape[1])[:, None] - jnp.arange(kv_ids_BM.shape[1])[None]
  seen_LM = age_LM >= 0
  if sliding_window is not None:
    seen_LM &= age_LM < sliding_window
  return (q_ids_BL[:, :, None] == kv_ids_BM[:, None, :]) & seen_LM[None]


def xla_attention(
  q_BLNK, k_BMGK, v_BMGK, q_ids_BL, kv_ids_BM, *, q_offset, sliding_window, logit_softcap
):
  """Attention of queries at indices `q_offset` + l over all keys, [B,L,N,K] like q."""
  mask_BLM = causal_segment_mask(
    q_ids_BL, kv_ids_BM, q_offset=q_offset, sliding_window=sliding_window
  )
  out_BLNK = masked_attention(q_BLNK, k_BMGK, v_BMGK, mask_BLM, logit_softcap=logit_softcap)
  return checkpoint_name(out_BLNK, "attention_out")

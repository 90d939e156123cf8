"""Packed cuDNN attention on Hopper. Unverified: compiled for H100, never run on a GPU by us.

JAX has no public interface to it (`jax.nn.dot_product_attention` takes no segments), so this binds
the private primitives of `jax._src.cudnn.fused_attention_stablehlo`, by jax version, and computes
the offsets itself: jax 0.10.2 scales those of the keys by the queries' stride and so reads wrong
keys under grouped queries (https://github.com/jax-ml/jax/pull/39521).

The kernel has room in its softmax statistics for max_segments rows of every row, B * max_segments *
N * L * 4 bytes. What is kept for the backward pass are the B * N * L of them that are a token's.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

# The jax releases (major, minor) whose private interface is known, with what they add to it.
PRIMITIVE_EXTRAS = {(0, 10): {}, (0, 12): {"score_mod_name": None, "score_mod_jaxpr": None}}


@dataclasses.dataclass(frozen=True)
class _Options:
  max_segments: int
  sliding_window: int | None


HOPPER = 9.0  # the first CUDA compute capability with cuDNN's packed layout


def cudnn_refusal(
  q_BLNK, *, platform, capability, context, logit_softcap, max_segments, devices
) -> str | None:
  """Why the kernel can't do this (option, its value, remedy), or None where it can."""
  K = q_BLNK.shape[3]
  if jax.__version_info__[:2] not in PRIMITIVE_EXTRAS:
    known = ", ".join(f"{major}.{minor}" for major, minor in PRIMITIVE_EXTRAS)
    return f"jax {jax.__version__}, of which it uses private parts; use jax {known}"
  if platform != "gpu" or capability < HOPPER:
    return f"device platform {platform!r}, compute capability {capability}; use a Hopper GPU"
  if q_BLNK.dtype not in (jnp.float16, jnp.bfloat16):
    return f"dtype {q_BLNK.dtype}; use float16 or bfloat16"
  if context > 1:
    return f"mesh axis context={context}: it has no query offsets; set mesh.context to 1"
  if logit_softcap is not None:
    return f"logit_softcap={logit_softcap}; set it to None"
  if max_segments is None or max_segments < 2:
    return f"max_segments={max_segments}; give the packer's bound, at least 2"
  if K % 8 or K > 256:
    return f"head_dim={K}; use a multiple of 8, at most 256"
  if q_BLNK.size // devices >= 2**31:
    return f"{q_BLNK.size // devices} query elements a device: offsets are int32; use fewer rows"
  return None


def packed_layout(segment_ids_BL: jax.Array, max_segments: int):
  """Where each document lies: lengths [B, S] and starts [B, S + 1] in tokens, S = max_segments.

  As cuDNN wants them: a start counts from the batch's first token, and the documents of all rows
  stand one after another without gaps, in row order; then length 0, start B * L. Padding (segment
  0) is no document, and neither is a segment beyond `max_segments`.
  """
  B, L = segment_ids_BL.shape
  here_BLS = segment_ids_BL[:, :, None] == jnp.arange(1, max_segments + 1)[None, None]
  lengths_BS = here_BLS.sum(axis=1, dtype=jnp.int32)
  row_starts_BS = jnp.argmax(here_BLS, axis=1).astype(jnp.int32)
  starts_BS = row_starts_BS + L * jnp.arange(B, dtype=jnp.int32)[:, None]
  starts_BS = jnp.where(lengths_BS > 0, starts_BS, B * L)
  order = jnp.argsort(lengths_BS.ravel() == 0, stable=True)
  lengths, starts = lengths_BS.ravel()[order], starts_BS.ravel()[order]
  starts = jnp.pad(starts, (0, B), constant_values=B * L)
  return lengths.reshape(B, max_segments), starts.reshape(B, max_segments + 1)


def tokens_of_documents(stats_DNL: jax.Array, segment_ids_BL: jax.Array, max_segments: int):
  """[N,B,L], a token's own, of [B * max_segments,N,L], a document a row from its first token on."""
  B, L = segment_ids_BL.shape
  real_BL = (segment_ids_BL > 0) & (segment_ids_BL <= max_segments)
  begins_BL = real_BL & (segment_ids_BL != jnp.pad(segment_ids_BL, ((0, 0), (1, 0)))[:, :-1])
  document_BL = jnp.cumsum(begins_BL.ravel()).reshape(B, L) - 1
  at_BL = jax.lax.cummax(jnp.where(begins_BL, jnp.arange(L)[None], 0), axis=1)
  offset_BL = jnp.arange(L)[None] - at_BL
  stats_NBL = stats_DNL.transpose(1, 0, 2)[:, jnp.maximum(document_BL, 0), offset_BL]
  return jnp.where(real_BL, stats_NBL, 0.0)


def documents_of_tokens(stats_NBL: jax.Array, segment_ids_BL: jax.Array, max_segments: int):
  """The inverse of `tokens_of_documents`, with zeros where no document has a token."""
  B, L = segment_ids_BL.shape
  lengths_BS, starts_BS = packed_layout(segment_ids_BL, max_segments)
  lengths_D1 = lengths_BS.reshape(-1, 1)
  token_DL = starts_BS.ravel()[: lengths_D1.size, None] + jnp.arange(L)[None]
  stats_NDL = stats_NBL.reshape(-1, B * L)[:, jnp.minimum(token_DL, B * L - 1)]
  inside_DL = jnp.arange(L)[None] < lengths_D1
  return jnp.where(inside_DL[None], stats_NDL, 0.0).transpose(1, 0, 2)


def cudnn_attention(q_BLNK, k_BLGK, v_BLGK, segment_ids_BL, *, max_segments, sliding_window):
  """Causal attention inside each segment, [B,L,N,K] like q; see `cudnn_refusal` for its limits.

  Padding comes out as zeros; a segment beyond `max_segments` as NaN, so that it can't pass unseen.
  """
  options = _Options(max_segments, sliding_window)
  return _flash(options, q_BLNK, k_BLGK, v_BLGK, segment_ids_BL)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(options, q_BLNK, k_BLGK, v_BLGK, segment_ids_BL):
  return _flash_forward(options, q_BLNK, k_BLGK, v_BLGK, segment_ids_BL)[0]


def _flash_forward(options, q_BLNK, k_BLGK, v_BLGK, segment_ids_BL):
  operands = _operands(options, q_BLNK, k_BLGK, v_BLGK, segment_ids_BL)
  out_BLNK, stats = _library()._dot_product_attention_fwd_p.bind(
    *operands, **_parameters(options, q_BLNK), is_training=True
  )
  excess_BL11 = (segment_ids_BL > options.max_segments)[..., None, None]
  out_BLNK = jnp.where(excess_BL11, jnp.nan, _zero_padding(out_BLNK, segment_ids_BL))
  out_BLNK = out_BLNK.astype(q_BLNK.dtype)
  stats_NBL = tokens_of_documents(stats, segment_ids_BL, options.max_segments)
  # Not later, with those of other layers: until then the padded ones take memory.
  out_BLNK, stats_NBL = jax.lax.optimization_barrier((out_BLNK, stats_NBL))
  out_BLNK = checkpoint_name(out_BLNK, "attention_out")
  stats_NBL = checkpoint_name(stats_NBL, "attention_lse")
  return out_BLNK, (q_BLNK, k_BLGK, v_BLGK, segment_ids_BL, out_BLNK, stats_NBL)


def _flash_backward(options, residuals, d_out_BLNK):
  q_BLNK, k_BLGK, v_BLGK, segment_ids_BL, out_BLNK, stats_NBL = residuals
  operands = _operands(options, q_BLNK, k_BLGK, v_BLGK, segment_ids_BL)
  stats = documents_of_tokens(stats_NBL, segment_ids_BL, options.max_segments)
  gradients = _library()._dot_product_attention_bwd_p.bind(
    *operands, stats, out_BLNK, d_out_BLNK, **_parameters(options, q_BLNK)
  )
  return *(_zero_padding(gradient, segment_ids_BL) for gradient in gradients), None


_flash.defvjp(_flash_forward, _flash_backward)


def _library():
  from jax._src.cudnn import fused_attention_stablehlo

  return fused_attention_stablehlo


def _operands(options, q_BLNK, k_BLGK, v_BLGK, segment_ids_BL):
  lengths, starts = packed_layout(segment_ids_BL, options.max_segments)
  stride = lambda x: x.shape[2] * x.shape[3]  # noqa: E731
  unused = jnp.zeros(0, q_BLNK.dtype)  # bias before the lengths, page tables after the offsets
  offsets = (starts * stride(q_BLNK), starts * stride(k_BLGK))
  return (q_BLNK, k_BLGK, v_BLGK, unused, lengths, lengths, *offsets, unused, unused)


def _parameters(options, q_BLNK):
  library = _library()
  return {
    "scale": q_BLNK.shape[-1] ** -0.5,
    "seed": 0,
    "dropout_rate": 0.0,
    "variadic_args": (False, False),  # neither a bias nor its gradient
    "mask_type": library.MaskType.PADDING_CAUSAL,
    "layout": library.AttentionLayout.BTNH.value,
    "sliding_window_length": options.sliding_window,
    **PRIMITIVE_EXTRAS[jax.__version_info__[:2]],
  }


def _zero_padding(x_BLNK, segment_ids_BL):
  """Padding is no document, so the kernel leaves there what was in memory."""
  return jnp.where((segment_ids_BL > 0)[..., None, None], x_BLNK, jnp.zeros((), x_BLNK.dtype))

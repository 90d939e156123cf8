"""Causal attention inside packed documents: one dispatcher over several implementations.

A token attends to the tokens of its own segment at or before its index in the row. Segment 0 is
padding: what comes out there is finite and of no meaning, and no gradient leaves it for a document.
Logits and softmax are fp32 whatever the inputs are. Suffixes as in model/config.py; M = L for keys.

  xla      the definition: masked L x M logits; best for short rows (model/attention_reference.py)
  chunked  memory-efficient, any backend (model/attention_chunked.py)
  pallas   Pallas-Triton, GPUs since Ampere (model/attention_pallas.py)
  cudnn    cuDNN, Hopper; compiled for H100 and its offsets tested, but *unverified*: no GPU has run
           it (model/attention_cudnn.py)
  auto     pallas on a GPU that can run it with these shapes and options, else xla for rows of at
           most XLA_MAX_LENGTH, else chunked; never cudnn while that is unverified

Every implementation names its output "attention_out", and the flash ones their softmax statistics
"attention_lse": under `save_only_these_names` of both, backward does not run the forward again.
"""

import functools

import jax
from jax.sharding import PartitionSpec

from model.attention_chunked import chunked_attention
from model.attention_reference import causal_segment_mask, masked_attention, xla_attention
from model.sharding import BATCH_AXES

__all__ = ["attention", "causal_segment_mask", "masked_attention"]

IMPLEMENTATIONS = ("auto", "xla", "chunked", "pallas", "cudnn")
XLA_MAX_LENGTH = 256
# Blocks that stay in a core's cache, and blocks that fill a GPU between two kernel launches.
CHUNK = {"cpu": 64, "gpu": 512}


def attention(
  q_BLNK: jax.Array,
  k_BLGK: jax.Array,
  v_BLGK: jax.Array,
  segment_ids_BL: jax.Array,
  *,
  implementation: str = "auto",
  sliding_window: int | None = None,
  logit_softcap: float | None = None,
) -> jax.Array:
  """Causal grouped-query attention inside each segment of packed rows, [B,L,N,K] like q.

  N is a multiple of G. Segment ids are int32, each segment contiguous, 0 for padding.
  `sliding_window` w keeps the keys in (i - w, i]; `logit_softcap` c turns logits x into
  c tanh(x / c). Under `jax.set_mesh` rows are split over (data, fsdp), queries over context and
  heads over tensor; over context keys, values and ids are gathered. Raises ValueError where the
  implementation lacks an option, or a size is not divisible by its part of the mesh.
  """
  _check(q_BLNK, k_BLGK, v_BLGK, segment_ids_BL, implementation)
  mesh = jax.sharding.get_abstract_mesh()
  context = mesh.shape.get("context", 1)
  if implementation == "auto":
    implementation = "xla" if q_BLNK.shape[1] <= XLA_MAX_LENGTH else "chunked"
  options = {"sliding_window": sliding_window, "logit_softcap": logit_softcap}
  if implementation == "xla":
    kernel = functools.partial(xla_attention, **options)
  else:
    kernel = functools.partial(chunked_attention, block=CHUNK[_platform(mesh)], **options)
  if mesh.size <= 1:
    return kernel(q_BLNK, k_BLGK, v_BLGK, segment_ids_BL, segment_ids_BL, q_offset=0)
  _check_divisible(mesh, q_BLNK, k_BLGK)

  def local(q_BLNK, k_BLGK, v_BLGK, ids_BL):
    if context == 1:
      return kernel(q_BLNK, k_BLGK, v_BLGK, ids_BL, ids_BL, q_offset=0)
    k_BMGK, v_BMGK, ids_BM = (
      jax.lax.all_gather(x, "context", axis=1, tiled=True) for x in (k_BLGK, v_BLGK, ids_BL)
    )
    q_offset = jax.lax.axis_index("context") * q_BLNK.shape[1]
    return kernel(q_BLNK, k_BMGK, v_BMGK, ids_BL, ids_BM, q_offset=q_offset)

  heads = PartitionSpec(BATCH_AXES, "context", "tensor", None)
  ids = PartitionSpec(BATCH_AXES, "context")
  return jax.shard_map(
    local, mesh=mesh, in_specs=(heads, heads, heads, ids), out_specs=heads, check_vma=False
  )(q_BLNK, k_BLGK, v_BLGK, segment_ids_BL)


def _platform(mesh) -> str:
  """Of the mesh's devices, which may be a cluster that is only compiled for, else the default."""
  return jax.default_backend() if mesh.empty else mesh.abstract_device.platform


def _check(q_BLNK, k_BLGK, v_BLGK, segment_ids_BL, implementation):
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f"attention implementation is {implementation!r}; choose one of {', '.join(IMPLEMENTATIONS)}."
    )
  B, L, N, K = q_BLNK.shape
  G = k_BLGK.shape[2]
  if k_BLGK.shape != (B, L, G, K) or v_BLGK.shape != k_BLGK.shape or N % G:
    raise ValueError(
      f"attention got q {q_BLNK.shape}, k {k_BLGK.shape}, v {v_BLGK.shape}; it takes q [B,L,N,K] "
      "and k, v [B,L,G,K] with N a multiple of G."
    )
  if segment_ids_BL.shape != (B, L):
    raise ValueError(
      f"attention got segment ids {segment_ids_BL.shape} for rows of {(B, L)}; they are [B,L]."
    )
  if not q_BLNK.dtype == k_BLGK.dtype == v_BLGK.dtype:
    raise ValueError(
      f"attention got q {q_BLNK.dtype}, k {k_BLGK.dtype}, v {v_BLGK.dtype}; cast them to one dtype."
    )


def _check_divisible(mesh, q_BLNK, k_BLGK):
  for name, size, axes in (
    ("batch rows", q_BLNK.shape[0], BATCH_AXES),
    ("row length", q_BLNK.shape[1], ("context",)),
    ("query heads", q_BLNK.shape[2], ("tensor",)),
    ("key-value heads", k_BLGK.shape[2], ("tensor",)),
  ):
    parts = 1
    for axis in axes:
      parts *= mesh.shape[axis]
    if size % parts:
      raise ValueError(
        f"attention: {name}={size} is not divisible by the {parts} parts of mesh axes {axes} in "
        f"mesh {dict(mesh.shape)}; change either size."
      )

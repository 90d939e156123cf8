"""Causal attention inside packed documents: one dispatcher over several implementations.

A token attends to the tokens of its own segment at or before its index in the row. Segment 0 is
padding: what comes out there is finite and of no meaning, and no gradient leaves it for a document.
Logits and softmax are fp32 whatever the inputs are. Suffixes as in model/config.py; M = L for keys.

  xla      the definition: masked L x M logits (model/attention_reference.py)
  chunked  memory-efficient, any backend (model/attention_chunked.py)
  pallas   Pallas-Triton, GPUs since Ampere, interpreted on CPU (model/attention_pallas.py)
  cudnn    cuDNN on Hopper; compiled for H100 and its offsets tested, but *unverified*: no GPU has
           run it (model/attention_cudnn.py)
  auto     pallas on a GPU that can run it with these shapes and options, else xla for rows that
           are short, else chunked; never cudnn while that is unverified

Every implementation names its output "attention_out", and the flash ones their softmax statistics
"attention_lse": under `save_only_these_names` of both, backward does not run the forward again.
"""

import functools
import logging

import jax
from jax.sharding import PartitionSpec

from model.attention_chunked import chunked_attention
from model.attention_cudnn import HOPPER, cudnn_attention, cudnn_refusal
from model.attention_pallas import pallas_attention, pallas_refusal
from model.attention_reference import causal_segment_mask, masked_attention, xla_attention
from model.config import ATTENTION_IMPLEMENTATIONS
from model.sharding import BATCH_AXES

__all__ = ["attention", "causal_segment_mask", "masked_attention"]

# Queries of a chunk: blocks that stay in a core's cache, blocks that outlast a GPU kernel's launch.
CHUNK = {"cpu": 64, "gpu": 512}
# The longest rows whose logits are held at one time: a loop over chunks costs more until then.
SHORT = {"cpu": 128, "gpu": 512}


def attention(
  q_BLNK: jax.Array,
  k_BLGK: jax.Array,
  v_BLGK: jax.Array,
  segment_ids_BL: jax.Array,
  *,
  implementation: str = "auto",
  sliding_window: int | None = None,
  logit_softcap: float | None = None,
  max_segments: int | None = None,
) -> jax.Array:
  """Causal grouped-query attention inside each segment of packed rows, [B,L,N,K] like q.

  N is a multiple of G. Segment ids are int32, each segment contiguous, 0 for padding.
  `sliding_window` w keeps the keys in (i - w, i]; `logit_softcap` c turns logits x into
  c tanh(x / c); `max_segments`, a bound on the documents of a row, is for cudnn alone. Under
  `jax.set_mesh` rows are split over (data, fsdp), queries over context and heads over tensor; over
  context keys, values and ids are gathered. Raises ValueError where the implementation lacks an
  option, or a size is not divisible by its part of the mesh.
  """
  _check(q_BLNK, k_BLGK, v_BLGK, segment_ids_BL, implementation)
  mesh = jax.sharding.get_abstract_mesh()
  context = mesh.shape.get("context", 1)
  kernel = _kernel(implementation, mesh, q_BLNK, sliding_window, logit_softcap, max_segments)
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


def _kernel(implementation, mesh, q_BLNK, sliding_window, logit_softcap, max_segments):
  """The chosen kernel, of (q, k, v, query ids, key ids, q_offset)."""
  platform, capability = _device(mesh)
  target = {"platform": platform, "capability": capability, "context": mesh.shape.get("context", 1)}
  options = {"sliding_window": sliding_window, "logit_softcap": logit_softcap}
  refusals = {
    "pallas": pallas_refusal(q_BLNK, **target, **options),
    "cudnn": cudnn_refusal(
      q_BLNK,
      **target,
      logit_softcap=logit_softcap,
      max_segments=max_segments,
      devices=mesh.size or 1,
    ),
  }
  chunk = CHUNK.get(platform, CHUNK["gpu"])
  if implementation == "auto":
    short = "xla" if q_BLNK.shape[1] <= SHORT.get(platform, SHORT["gpu"]) else "chunked"
    implementation = "pallas" if platform == "gpu" and not refusals["pallas"] else short
  if refusals.get(implementation):
    raise ValueError(
      f"attention implementation {implementation!r} can't do {refusals[implementation]}, or choose "
      "implementation 'chunked'."
    )
  if implementation == "xla":
    return functools.partial(xla_attention, **options)
  if implementation == "chunked":
    return functools.partial(chunked_attention, block=chunk, **options)
  if implementation == "pallas":
    local = functools.partial(pallas_attention, interpret=platform != "gpu")
  else:
    logging.getLogger(__name__).warning("attention 'cudnn' is unverified: no GPU has run it yet.")
    local = functools.partial(
      cudnn_attention, max_segments=max_segments, sliding_window=sliding_window
    )
  return lambda q, k, v, ids, kv_ids, q_offset: local(q, k, v, ids)


def _device(mesh) -> tuple[str, float]:
  """Platform and CUDA compute capability of the mesh's devices; without a mesh, the default's."""
  device = jax.local_devices()[0]
  if not mesh.empty and mesh.abstract_device.platform != device.platform:
    return mesh.abstract_device.platform, HOPPER  # only compiled for: see train/deviceless.py
  return device.platform, float(getattr(device, "compute_capability", 0))


def _check(q_BLNK, k_BLGK, v_BLGK, segment_ids_BL, implementation):
  if implementation not in ATTENTION_IMPLEMENTATIONS:
    raise ValueError(
      f"attention implementation is {implementation!r}; choose one of "
      f"{', '.join(ATTENTION_IMPLEMENTATIONS)}."
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

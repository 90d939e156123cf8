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
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from model.attention_chunked import chunked_attention
from model.attention_cudnn import HOPPER, cudnn_attention, cudnn_refusal
from model.attention_pallas import pallas_attention, pallas_refusal
from model.attention_reference import causal_segment_mask, masked_attention, xla_attention
from model.config import ATTENTION_IMPLEMENTATIONS
from model.sharding import BATCH_AXES

__all__ = ["attention", "causal_segment_mask", "masked_attention", "platform"]

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
  first: int = 0,
  implementation: str = "auto",
  sliding_window: int | None = None,
  logit_softcap: float | None = None,
  max_segments: int | None = None,
) -> jax.Array:
  """Causal grouped-query attention inside each segment of packed rows, [B,L,N,K] like q.

  N is a multiple of G. Segment ids are int32, each segment contiguous, 0 for padding. Queries may
  be those of a part of each row: the tokens from the one with index `first`.
  `sliding_window` w keeps the keys in (i - w, i]; `logit_softcap` c turns logits x into
  c tanh(x / c); `max_segments`, a bound on the documents of a row, is for cudnn alone. Under
  `jax.set_mesh` rows are split over (data, fsdp), queries over context and heads over tensor; over
  context keys, values and ids are gathered. Raises ValueError where the implementation lacks an
  option, or a size is not divisible by its part of the mesh.
  """
  _check(q_BLNK, k_BLGK, v_BLGK, segment_ids_BL, first, implementation)
  mesh = jax.sharding.get_abstract_mesh()
  context = mesh.shape.get("context", 1)
  B, M = segment_ids_BL.shape
  q_BMNK = jax.ShapeDtypeStruct((B, M, *q_BLNK.shape[2:]), q_BLNK.dtype)
  kernel = _kernel(implementation, mesh, q_BMNK, sliding_window, logit_softcap, max_segments)
  assert q_BLNK.shape[1] == M or context == 1, "a row over devices is whole"

  def whole(q_BLNK, k_BLGK, v_BLGK, ids_BL):
    q_ids_BL = ids_BL[:, first : first + q_BLNK.shape[1]]
    return kernel(q_BLNK, k_BLGK, v_BLGK, q_ids_BL, ids_BL, q_offset=first)

  if mesh.size <= 1:
    return whole(q_BLNK, k_BLGK, v_BLGK, segment_ids_BL)
  _check_divisible(mesh, q_BLNK, k_BLGK)

  def local(q_BLNK, k_BLGK, v_BLGK, ids_BL):
    if context == 1:
      return whole(q_BLNK, k_BLGK, v_BLGK, ids_BL)
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


def _kernel(implementation, mesh, q_BMNK, sliding_window, logit_softcap, max_segments):
  """The chosen kernel, of (q, k, v, query ids, key ids, q_offset)."""
  platform, capability = _device(mesh)
  target = {"platform": platform, "capability": capability, "context": mesh.shape.get("context", 1)}
  options = {"sliding_window": sliding_window, "logit_softcap": logit_softcap}
  refusals = {
    "pallas": pallas_refusal(q_BMNK, **target, **options),
    "cudnn": cudnn_refusal(
      q_BMNK,
      **target,
      logit_softcap=logit_softcap,
      max_segments=max_segments,
      devices=mesh.size or 1,
    ),
  }
  chunk = CHUNK.get(platform, CHUNK["gpu"])
  if implementation == "auto":
    short = "xla" if q_BMNK.shape[1] <= SHORT.get(platform, SHORT["gpu"]) else "chunked"
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

  def of_whole_rows(q_BLNK, k_BMGK, v_BMGK, q_ids_BL, ids_BM, q_offset):
    length, rest = q_BLNK.shape[1], ids_BM.shape[1] - q_BLNK.shape[1]
    if not rest:
      return local(q_BLNK, k_BMGK, v_BMGK, ids_BM)
    q_BMNK = jnp.pad(q_BLNK, [(0, 0), (q_offset, rest - q_offset), (0, 0), (0, 0)])
    return local(q_BMNK, k_BMGK, v_BMGK, ids_BM)[:, q_offset : q_offset + length]

  return of_whole_rows


def platform() -> str:
  """That of the devices that a traced function is for, as jax names it."""
  return _device(jax.sharding.get_abstract_mesh())[0]


def _device(mesh) -> tuple[str, float]:
  """Platform and CUDA compute capability of the mesh's devices; without a mesh, the default's."""
  device = jax.local_devices()[0]
  if not mesh.empty and mesh.abstract_device.platform != device.platform:
    return mesh.abstract_device.platform, HOPPER  # only compiled for: see train/deviceless.py
  return device.platform, float(getattr(device, "compute_capability", 0))


def _check(q_BLNK, k_BLGK, v_BLGK, segment_ids_BL, first, implementation):
  if implementation not in ATTENTION_IMPLEMENTATIONS:
    raise ValueError(
      f"attention implementation is {implementation!r}; choose one of "
      f"{', '.join(ATTENTION_IMPLEMENTATIONS)}."
    )
  B, L, N, K = q_BLNK.shape
  M, G = k_BLGK.shape[1:3]
  if k_BLGK.shape != (B, M, G, K) or v_BLGK.shape != k_BLGK.shape or N % G:
    raise ValueError(
      f"attention got q {q_BLNK.shape}, k {k_BLGK.shape}, v {v_BLGK.shape}; it takes q [B,L,N,K] "
      "and k, v [B,M,G,K] with N a multiple of G."
    )
  if first + L > M:
    raise ValueError(
      f"attention got queries of {L} tokens from token {first}, but keys of {M}; a query's own "
      "token is among the keys."
    )
  if segment_ids_BL.shape != (B, M):
    raise ValueError(
      f"attention got segment ids {segment_ids_BL.shape} for rows of {(B, M)}; they are [B,M]."
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

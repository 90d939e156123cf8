"""Pallas-Triton attention from JAX itself, with segment ids; interpreted where there is no GPU.

`jax.experimental.pallas.ops.gpu.attention.mha` and its backward, under our own custom_vjp, so that
a remat policy can name the kernel's residuals. Deviation: the kernel knows no grouped queries, so
keys and values are repeated on the way in and their gradients summed in fp32 on the way out.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

BLOCK = 128  # the kernel's tile of queries, and of keys
HEAD_DIMS = (16, 32, 64, 128)


AMPERE = 8.0  # the first CUDA compute capability that Triton's matmuls of these tiles run on


def pallas_refusal(
  q_BLNK, *, platform, capability, context, sliding_window, logit_softcap
) -> str | None:
  """Why the kernel can't do this (option, its value, remedy), or None where it can.

  On any platform but a GPU it is interpreted, so that only shapes and options count.
  """
  L, K = q_BLNK.shape[1], q_BLNK.shape[3]
  if platform == "gpu" and capability < AMPERE:
    return f"compute capability {capability}; use a GPU of at least {AMPERE}"
  if platform == "gpu" and q_BLNK.dtype == jnp.float32:
    return "dtype float32, which Triton rounds to TF32; use float16 or bfloat16"
  if context > 1:
    return f"mesh axis context={context}: it has no query offsets; set mesh.context to 1"
  if sliding_window is not None:
    return f"sliding_window={sliding_window}; set it to None"
  if logit_softcap is not None:
    return f"logit_softcap={logit_softcap}; set it to None"
  if K not in HEAD_DIMS:
    return f"head_dim={K}; use one of {HEAD_DIMS}"
  if L % BLOCK:
    return f"row length {L}; use a multiple of {BLOCK}"
  return None


def pallas_attention(q_BLNK, k_BLGK, v_BLGK, segment_ids_BL, *, interpret: bool):
  """Causal attention inside each segment, [B,L,N,K] like q; see `pallas_refusal` for its limits."""
  return _mha(interpret, q_BLNK, k_BLGK, v_BLGK, segment_ids_BL)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mha(interpret, q_BLNK, k_BLGK, v_BLGK, segment_ids_BL):
  return _mha_forward(interpret, q_BLNK, k_BLGK, v_BLGK, segment_ids_BL)[0]


def _mha_forward(interpret, q_BLNK, k_BLGK, v_BLGK, segment_ids_BL):
  k_BLNK, v_BLNK = _repeat(k_BLGK, q_BLNK), _repeat(v_BLGK, q_BLNK)
  out_BLNK, lse_BNL = _library().mha(
    q_BLNK, k_BLNK, v_BLNK, segment_ids_BL, **_settings(q_BLNK, interpret), return_residuals=True
  )
  out_BLNK = checkpoint_name(out_BLNK, "attention_out")
  lse_BNL = checkpoint_name(lse_BNL, "attention_lse")
  return out_BLNK, (q_BLNK, k_BLGK, v_BLGK, segment_ids_BL, out_BLNK, lse_BNL)


def _mha_backward(interpret, residuals, d_out_BLNK):
  q_BLNK, k_BLGK, v_BLGK, segment_ids_BL, out_BLNK, lse_BNL = residuals
  k_BLNK, v_BLNK = _repeat(k_BLGK, q_BLNK), _repeat(v_BLGK, q_BLNK)
  dq_BLNK, dk_BLNK, dv_BLNK, _ = _library()._mha_backward(
    **_settings(q_BLNK, interpret),
    return_residuals=False,
    res=(q_BLNK, k_BLNK, v_BLNK, segment_ids_BL, out_BLNK, lse_BNL),
    do=d_out_BLNK,
  )
  return dq_BLNK, _sum_groups(dk_BLNK, k_BLGK), _sum_groups(dv_BLNK, v_BLGK), None


_mha.defvjp(_mha_forward, _mha_backward)


def _library():
  # jax 0.12 deprecates the module in favour of tokamax, which refuses GPU kernels on a CPU host.
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from jax.experimental.pallas.ops.gpu import attention
  return attention


def _settings(q_BLNK, interpret):
  return {
    "sm_scale": q_BLNK.shape[-1] ** -0.5,
    "causal": True,
    "block_sizes": _library().BlockSizes.get_default(),
    "backward_pass_impl": "triton",
    "num_warps": None,
    "num_stages": 2,
    "grid": None,
    "interpret": interpret,
    "debug": False,
  }


def _repeat(x_BLGK, q_BLNK):
  return jnp.repeat(x_BLGK, q_BLNK.shape[2] // x_BLGK.shape[2], axis=2)


def _sum_groups(dx_BLNK, x_BLGK):
  B, L, G, K = x_BLGK.shape
  dx_BLGK = dx_BLNK.reshape(B, L, G, -1, K).sum(axis=3, dtype=jnp.float32)
  return dx_BLGK.astype(x_BLGK.dtype)

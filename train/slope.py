"""Cross-entropy that computes its logits once, and holds those of a part of the vocabulary."""

import functools

import jax
import jax.numpy as jnp

from model.config import ComputeConfig
from model.sharding import constrain, parts_of

SCALE = 2.0**15  # with it exp(logit - their maximum), at most 1, uses all of fp16's range
LOGICAL = {"D": "embed", "V": "vocab"}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def sloped_cross_entropy(
  compute: ComputeConfig, axes: str, hidden_BLD: jax.Array, weight: jax.Array, targets_BL: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """`train.losses.cross_entropy` with an unembedding `weight` of `axes`, "DV" or "VD".

  The vocabulary is taken in `compute.loss_chunks` parts, each of which has a share of what every
  device holds. The backward pass needs softmax - onehot, which is kept in the compute dtype as
  exp(logit - the part's maximum); a gradient is rounded to that dtype before its products with
  weights anyhow. At the target it is of the fp32 loss instead, since near-certain ones cancel.
  """
  return _forward(compute, axes, hidden_BLD, weight, targets_BL)[0]


def _forward(compute, axes, hidden_BLD, weight, targets_BL):
  _check(weight.shape[axes.index("V")], compute.loss_chunks)
  hidden, parts = hidden_BLD, []
  for p in range(compute.loss_chunks):
    gathered = _gathered(weight, axes, p, compute)
    logits_BLV = jnp.einsum(
      f"BLD,{axes}->BLV", hidden, gathered, preferred_element_type=jnp.float32
    )
    logits_BLV = constrain(logits_BLV, "batch", "length", "vocab")
    top_BL = jnp.max(logits_BLV, axis=-1)
    exp_BLV = jnp.exp(logits_BLV - top_BL[..., None])
    is_target_BLV = _is_target(targets_BL, logits_BLV, p, compute.loss_chunks)
    of_part = (
      (SCALE * exp_BLV).astype(hidden_BLD.dtype),
      top_BL,
      jnp.sum(exp_BLV, axis=-1),
      jnp.sum(jnp.where(is_target_BLV, logits_BLV, 0.0), axis=-1),
    )
    # The next part's logits after this one's are gone.
    of_part, hidden = jax.lax.optimization_barrier((of_part, hidden))
    parts.append(of_part)
  slopes, tops_PBL, sums_PBL, at_target_PBL = zip(*parts, strict=True)
  log_z_BL = jax.nn.logsumexp(jnp.stack(tops_PBL) + jnp.log(jnp.stack(sums_PBL)), axis=0)
  nll_BL = log_z_BL - sum(at_target_PBL)
  return (nll_BL, log_z_BL), (hidden_BLD, weight, targets_BL, nll_BL, log_z_BL, slopes, tops_PBL)


def _backward(compute, axes, residuals, grads):
  hidden_BLD, weight, targets_BL, nll_BL, log_z_BL, slopes, tops_PBL = residuals
  # Gathered again: what the forward pass gathered is not kept until now.
  weight, (grad_nll_BL, grad_z_BL) = jax.lax.optimization_barrier((weight, grads))
  at_target_BL = grad_nll_BL * jnp.expm1(-nll_BL) + grad_z_BL * jnp.exp(-nll_BL)
  dtype = jnp.float32 if compute.reduce_gradients_in_fp32 else hidden_BLD.dtype
  sum_BLD, parts = jnp.zeros(hidden_BLD.shape, jnp.float32), []
  for p, top_BL in enumerate(tops_PBL):
    (slope_BLV, *slopes), sum_BLD = jax.lax.optimization_barrier((slopes, sum_BLD))
    elsewhere_BL = (grad_nll_BL + grad_z_BL) * jnp.exp(top_BL - log_z_BL) / SCALE
    grad_BLV = jnp.where(
      _is_target(targets_BL, slope_BLV, p, compute.loss_chunks),
      at_target_BL[..., None],
      elsewhere_BL[..., None] * slope_BLV.astype(jnp.float32),
    ).astype(hidden_BLD.dtype)
    part = jnp.einsum(f"BLD,BLV->{axes}", hidden_BLD, grad_BLV, preferred_element_type=dtype)
    part = constrain(part, *(LOGICAL[axis] for axis in axes))
    sum_BLD += jnp.einsum(
      f"BLV,{axes}->BLD",
      grad_BLV,
      _gathered(weight, axes, p, compute),
      preferred_element_type=jnp.float32,
    )
    part, sum_BLD, hidden_BLD = jax.lax.optimization_barrier((part, sum_BLD, hidden_BLD))
    parts.append(part.astype(jnp.float32))
  return sum_BLD.astype(hidden_BLD.dtype), _joined(parts, axes.index("V")), None


sloped_cross_entropy.defvjp(_forward, _backward)


def _check(vocab_size: int, parts: int) -> None:
  shards = parts_of("vocab")
  if vocab_size % (shards * parts):
    raise ValueError(
      f"model.vocab_size={vocab_size} is not divisible by compute.loss_chunks={parts} parts of "
      f"each of {shards} shards, which compute.remat_save with 'loss_slope' needs; change either."
    )


def _gathered(weight, axes: str, p: int, compute: ComputeConfig):
  """Part `p` of an unembedding, cast and whole on every device but for its shards of `vocab`."""
  axis, shards = axes.index("V"), parts_of("vocab")
  split = (shards, compute.loss_chunks, -1)
  shape = (*weight.shape[:axis], *split, *weight.shape[axis + 1 :])
  part = jax.lax.index_in_dim(weight.reshape(shape), p, axis + 1, keepdims=False)
  part = part.reshape(*weight.shape[:axis], -1, *weight.shape[axis + 1 :]).astype(compute.dtype)
  part = constrain(part, *(LOGICAL[a] for a in axes))
  return constrain(part, *("vocab" if a == "V" else None for a in axes))


def _joined(parts: list[jax.Array], axis: int) -> jax.Array:
  """The whole of all parts of `_gathered`'s."""
  shape, shards = parts[0].shape, parts_of("vocab")
  split = (*shape[:axis], shards, 1, shape[axis] // shards, *shape[axis + 1 :])
  whole = jnp.concatenate([part.reshape(split) for part in parts], axis=axis + 1)
  return whole.reshape(*shape[:axis], -1, *shape[axis + 1 :])


def _is_target(targets_BL, like_BLV, p: int, parts: int):
  """Where part `p` of the vocabulary has the target of a token."""
  V, shards = like_BLV.shape[-1], parts_of("vocab")
  index_V = jnp.arange(V)
  width = V // shards  # of a shard's share of the part
  ids_V = index_V // width * (width * parts) + p * width + index_V % width
  return ids_V[None, None] == targets_BL[..., None]

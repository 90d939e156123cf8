"""Losses return sums and weights; whoever has all the sums divides, once."""

import dataclasses

import jax
import jax.numpy as jnp

from model import transformer
from model.config import ComputeConfig, ModelConfig
from train.slope import sloped_cross_entropy


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """`z_loss` is the coefficient of log(Z)^2 (PaLM's is 1e-4); 0 turns it off."""

  z_loss: float

  def __post_init__(self):
    if not self.z_loss >= 0:
      raise ValueError(f"loss.z_loss is {self.z_loss}; it must be >= 0.")


@dataclasses.dataclass(frozen=True)
class SftLossConfig(LossConfig):
  """`neftune_alpha` is the noise on embeddings (https://arxiv.org/abs/2310.05914); 0 for none."""

  neftune_alpha: float

  def __post_init__(self):
    super().__post_init__()
    if not self.neftune_alpha >= 0:
      raise ValueError(f"loss.neftune_alpha is {self.neftune_alpha}; it must be >= 0.")


def cross_entropy(
  params: dict,
  hidden_BLD: jax.Array,
  targets_BL: jax.Array,
  config: ModelConfig,
  compute: ComputeConfig,
) -> tuple[jax.Array, jax.Array]:
  """Negative log-likelihood of the targets in nats and log(Z), both fp32 [B,L].

  The rows are taken in `compute.loss_chunks` chunks, so that fp32 logits are held for one chunk
  only. The backward pass computes them again, unless `compute.remat_save` has "loss_slope", their
  gradient in the compute dtype. A chunk is every n-th token of a row: with the length sharded over
  devices, each of them has its share of every chunk.
  """
  batch, length = targets_BL.shape
  chunks = compute.loss_chunks
  if length % chunks:
    raise ValueError(f"rows of {length} tokens are not divisible by compute.loss_chunks={chunks}.")
  if "loss_slope" in compute.remat_save:
    if config.logit_softcap is not None:
      raise ValueError(
        "compute.remat_save has 'loss_slope', which is of logits without "
        f"model.logit_softcap={config.logit_softcap}; leave one of them out."
      )
    name = "embedding_VD" if config.tie_embeddings else "unembedding_DV"
    with jax.named_scope("loss"):
      return sloped_cross_entropy(compute, name[-2:], hidden_BLD, params[name], targets_BL)

  def chunk(_, inputs):
    hidden_BCD, targets_BC = inputs
    logits_BCV = transformer.logits(params, hidden_BCD, config, compute)
    log_z_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
    target_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
    return None, (log_z_BC - target_BC, log_z_BC)

  def strided(x):
    return jnp.moveaxis(x.reshape(batch, length // chunks, chunks, *x.shape[2:]), 2, 0)

  with jax.named_scope("loss"):
    _, outs = jax.lax.scan(
      jax.checkpoint(chunk, prevent_cse=False), None, (strided(hidden_BLD), strided(targets_BL))
    )
  nll_BL, log_z_BL = (jnp.moveaxis(x, 0, 2).reshape(batch, length) for x in outs)
  return nll_BL, log_z_BL


def next_token_loss(
  params: dict, batch: dict, key: jax.Array, config: ModelConfig, compute: ComputeConfig, z_loss
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The pretraining objective, summed over the batch.

  Args:
    batch: the arrays [B,L] that `data.batch` documents.
    key: unused; a stage whose loss draws random numbers gets them from it.

  Returns:
    the weighted sum of NLL (plus z-loss), fp32, and the sums {"weight", "loss", "z_loss"}.
  """
  del key
  hidden_BLD = transformer.hidden_states(
    params, batch["tokens"], batch["segment_ids"], batch["positions"], config, compute
  )
  return _weighted(params, hidden_BLD, batch, config, compute, z_loss)


def answer_loss(
  params: dict,
  batch: dict,
  key: jax.Array,
  config: ModelConfig,
  compute: ComputeConfig,
  loss: SftLossConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """`next_token_loss` with NEFTune's noise; the loss weights say which targets are answers.

  The noise on a token is uniform in +-alpha / sqrt(n D) with n the tokens of its conversation;
  NEFTune's own code has the padded length of the batch there.
  """
  tokens_BL, segment_ids_BL = batch["tokens"], batch["segment_ids"]
  x_BLD = transformer.embed(params, tokens_BL, compute)
  if loss.neftune_alpha:
    same_BLM = segment_ids_BL[:, :, None] == segment_ids_BL[:, None, :]
    sizes_BL = jnp.sum(same_BLM, axis=-1, dtype=jnp.float32)
    bound_BL = loss.neftune_alpha / jnp.sqrt(sizes_BL * config.d_model)
    noise_BLD = jax.random.uniform(key, x_BLD.shape, jnp.float32, -1.0, 1.0)
    x_BLD = x_BLD + (noise_BLD * bound_BL[..., None]).astype(x_BLD.dtype)
  hidden_BLD = transformer.decode(
    params, x_BLD, segment_ids_BL, batch["positions"], config, compute
  )
  return _weighted(params, hidden_BLD, batch, config, compute, loss.z_loss)


def _weighted(params, hidden_BLD, batch, config, compute, z_loss):
  nll_BL, log_z_BL = cross_entropy(params, hidden_BLD, batch["targets"], config, compute)
  weights_BL = batch["loss_weights"]
  nll = jnp.sum(nll_BL * weights_BL)
  z = z_loss * jnp.sum(jnp.square(log_z_BL) * weights_BL)
  return nll + z, {"weight": jnp.sum(weights_BL), "loss": nll, "z_loss": z}

"""The decoder: embedding, a stack of layers (scanned or unrolled), final norm, logits."""

import functools

import jax
import jax.numpy as jnp

from model.config import ComputeConfig, ModelConfig
from model.layers import attention_block, part, project, rms_norm, swiglu_block
from model.sharding import constrain


def embed(params, tokens_BL: jax.Array, compute: ComputeConfig) -> jax.Array:
  """Token embeddings [B,L,D] in the compute dtype; their gradient is summed in fp32."""
  x_BLD = params["embedding_VD"][tokens_BL].astype(compute.dtype)
  return constrain(x_BLD, "batch", "length", None)


def remat(layer, compute: ComputeConfig):
  """Wraps a layer so that its backward pass saves, offloads or recomputes by policy."""
  if compute.remat == "none":
    return layer
  policy = jax.checkpoint_policies.nothing_saveable
  if compute.remat == "selective":
    policy = jax.checkpoint_policies.save_and_offload_only_these_names(
      names_which_can_be_saved=list(compute.remat_save),
      names_which_can_be_offloaded=list(compute.remat_offload),
      offload_src="device",
      offload_dst="pinned_host",
    )
  return jax.checkpoint(layer, policy=policy, prevent_cse=not compute.scan_layers)


def hidden_states(
  params: dict,
  tokens_BL: jax.Array,
  segment_ids_BL: jax.Array,
  positions_BL: jax.Array,
  config: ModelConfig,
  compute: ComputeConfig,
  wanted: tuple[int, int] | None = None,
) -> jax.Array:
  """Final normed hidden states [B,L,D] of packed rows, in the compute dtype.

  Args:
    params: the tree of `model.params.param_specs(config)`, fp32.
    tokens_BL, segment_ids_BL, positions_BL: int32 [B,L], as `data.batch` documents them.
    config, compute: the architecture, and how to compute it.
    wanted: the first token of each row whose hidden state is wanted, and the one after the last;
      None for all. In line, the last layer does no more for the others than their keys and values.
  """
  with jax.named_scope("embed"):
    x_BLD = embed(params, tokens_BL, compute)
  return decode(params, x_BLD, segment_ids_BL, positions_BL, config, compute, wanted)


def decode(
  params: dict,
  x_BLD: jax.Array,
  segment_ids_BL: jax.Array,
  positions_BL: jax.Array,
  config: ModelConfig,
  compute: ComputeConfig,
  wanted: tuple[int, int] | None = None,
) -> jax.Array:
  """`hidden_states` of embeddings [B,L,D] in place of tokens."""

  def layer(x_BLD, layer_params, wanted=None):
    with jax.named_scope("attention"):
      out_BLD = attention_block(
        layer_params["attention"], x_BLD, segment_ids_BL, positions_BL, config, compute, wanted
      )
      x_BLD = part(x_BLD, wanted) + out_BLD
    with jax.named_scope("mlp"):
      x_BLD += swiglu_block(layer_params["mlp"], x_BLD, config, compute)
    return x_BLD, None

  last = None
  if wanted is not None:
    last = remat(functools.partial(layer, wanted=wanted), compute)
  x_BLD, _ = run_layers(
    remat(layer, compute), x_BLD, params["layers"], compute.scan_layers, last=last
  )
  if compute.scan_layers:
    x_BLD = part(x_BLD, wanted)
  return rms_norm(x_BLD, params["final_norm_D"], config.norm_eps)


def run_layers(layer, carry, stacked, scan: bool, last=None):
  """`lax.scan` of `layer(carry, slice) -> (carry, out)` over the stack, or the same unrolled.

  Unrolled, the stack is taken apart by one split, whose transpose is one concatenation; indexing
  would add a whole stack of zeros for each layer's gradient. `last` is then what runs last.
  """
  if scan:
    return jax.lax.scan(layer, carry, stacked)
  leaves, tree = jax.tree.flatten(stacked)
  num_layers = leaves[0].shape[0]
  slices = zip(*(jax.lax.split(leaf, (1,) * num_layers) for leaf in leaves), strict=True)
  outs = []
  for index, parts in enumerate(slices):
    run = last if last is not None and index == num_layers - 1 else layer
    carry, out = run(carry, tree.unflatten([x[0] for x in parts]))
    outs.append(out)
  return carry, jax.tree.map(lambda *xs: jnp.stack(xs), *outs)


def logits(
  params: dict, hidden_BLD: jax.Array, config: ModelConfig, compute: ComputeConfig
) -> jax.Array:
  """fp32 logits [B,L,V] of hidden states, soft-capped where the config says so."""
  if config.tie_embeddings:
    out_BLV = project("BLD,VD->BLV", hidden_BLD, params["embedding_VD"], compute, jnp.float32)
  else:
    out_BLV = project("BLD,DV->BLV", hidden_BLD, params["unembedding_DV"], compute, jnp.float32)
  out_BLV = constrain(out_BLV, "batch", "length", "vocab")
  if config.logit_softcap is not None:
    out_BLV = config.logit_softcap * jnp.tanh(out_BLV / config.logit_softcap)
  return out_BLV


def forward(params, tokens_BL, segment_ids_BL, positions_BL, config, compute) -> jax.Array:
  """fp32 logits [B,L,V] of packed rows; see `hidden_states`."""
  hidden_BLD = hidden_states(params, tokens_BL, segment_ids_BL, positions_BL, config, compute)
  return logits(params, hidden_BLD, config, compute)

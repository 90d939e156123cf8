"""Log-probabilities of continuations, where what several of them share is computed once.

A row holds the trees of one item or of several. A tree is a trunk, the tokens that all of an item's
requests begin with, and a branch for what is left of each. A token attends to the shared prefix, to
its own trunk and to its own branch. The prefix, a few-shot prompt say, is there once for all rows:
its keys and values have no batch axis.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from model.attention_reference import MASKED
from model.config import ComputeConfig, ModelConfig
from model.layers import attention_output, qkv, rms_norm, rope_turns, swiglu_block
from model.sampling import likeliest
from model.sharding import constrain
from model.transformer import embed, logits, run_layers


@flax.struct.dataclass
class Prefix:
  """Keys and values of a shared prefix, [layers, P, G, K] each, of which `length` are real."""

  key: jax.Array
  value: jax.Array
  length: jax.Array


@flax.struct.dataclass
class Trees:
  """Rows of trees, int32 [B,L] each.

  Attributes:
    tokens: padding is 0.
    positions: in the text: a tree's first token comes right after the prefix.
    items: which tree of the row a token is of, from 1; 0 is padding.
    branches: 0 for the trunk, from 1 for the branches.
  """

  tokens: jax.Array
  positions: jax.Array
  items: jax.Array
  branches: jax.Array


def tree_mask(trees: Trees, sliding_window: int | None) -> jax.Array:
  """Which tokens of its own row a token sees, bool [B,L,M]."""
  items_BL, branches_BL, positions_BL = trees.items, trees.branches, trees.positions
  distance_BLM = positions_BL[:, :, None] - positions_BL[:, None, :]
  trunk_BLM = branches_BL[:, None, :] == 0
  own_BLM = branches_BL[:, :, None] == branches_BL[:, None, :]
  seen_BLM = (items_BL[:, :, None] == items_BL[:, None, :]) & (trunk_BLM | own_BLM)
  seen_BLM &= distance_BLM >= 0
  if sliding_window is not None:
    seen_BLM &= distance_BLM < sliding_window
  return seen_BLM


def _tree_attention(q_BLNK, k_BLGK, v_BLGK, k_PGK, v_PGK, seen_BLM, seen_BLP, softcap):
  """Grouped-query attention to the row and to the prefix together, [B,L,N,K]; fp32 softmax."""
  B, L, N, K = q_BLNK.shape
  G, P = k_BLGK.shape[2], k_PGK.shape[0]
  q_BGRLK = q_BLNK.reshape(B, L, G, N // G, K).transpose(0, 2, 3, 1, 4)
  einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  logits_BGRLM = jnp.concatenate(
    [
      einsum("BGRLK,PGK->BGRLP", q_BGRLK, k_PGK),
      einsum("BGRLK,BMGK->BGRLM", q_BGRLK, k_BLGK),
    ],
    axis=-1,
  )
  logits_BGRLM *= K**-0.5
  if softcap is not None:
    logits_BGRLM = softcap * jnp.tanh(logits_BGRLM / softcap)
  seen_BLM = jnp.concatenate([seen_BLP, seen_BLM], axis=-1)
  logits_BGRLM = jnp.where(seen_BLM[:, None, None], logits_BGRLM, MASKED)
  weights_BGRLM = jax.nn.softmax(logits_BGRLM, axis=-1).astype(v_BLGK.dtype)
  out_BGRLK = einsum("BGRLP,PGK->BGRLK", weights_BGRLM[..., :P], v_PGK)
  out_BGRLK += einsum("BGRLM,BMGK->BGRLK", weights_BGRLM[..., P:], v_BLGK)
  return out_BGRLK.transpose(0, 3, 1, 2, 4).reshape(q_BLNK.shape).astype(q_BLNK.dtype)


def tree_states(
  params: dict, prefix: Prefix, trees: Trees, config: ModelConfig, compute: ComputeConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Final normed hidden states [B,L,D] of the rows, and their keys and values [layers,B,L,G,K]."""
  seen_BLM = tree_mask(trees, config.sliding_window)
  index_P = jnp.arange(prefix.key.shape[1])
  distance_BLP = trees.positions[:, :, None] - index_P[None, None]
  seen_BLP = jnp.broadcast_to((index_P < prefix.length)[None, None], distance_BLP.shape)
  if config.sliding_window is not None:
    seen_BLP &= distance_BLP < config.sliding_window

  def layer(x_BLD, inputs):
    layer_params, k_PGK, v_PGK = inputs
    block = layer_params["attention"]
    normed_BLD = rms_norm(x_BLD, block["norm_D"], config.norm_eps)
    turns_BLF = rope_turns(trees.positions, config)
    q_BLNK, k_BLGK, v_BLGK = qkv(block, normed_BLD, turns_BLF, config, compute)
    out_BLNK = _tree_attention(
      q_BLNK, k_BLGK, v_BLGK, k_PGK, v_PGK, seen_BLM, seen_BLP, config.attention_softcap
    )
    x_BLD += attention_output(block, out_BLNK, compute)
    x_BLD += swiglu_block(layer_params["mlp"], x_BLD, config, compute)
    return x_BLD, (k_BLGK, v_BLGK)

  x_BLD, (keys, values) = run_layers(
    layer,
    embed(params, trees.tokens, compute),
    (params["layers"], prefix.key, prefix.value),
    compute.scan_layers,
  )
  return rms_norm(x_BLD, params["final_norm_D"], config.norm_eps), keys, values


def no_prefix(config: ModelConfig, compute: ComputeConfig) -> Prefix:
  shape = (config.num_layers, 0, config.num_kv_heads, config.head_dim)
  empty = jnp.zeros(shape, compute.dtype)
  return Prefix(key=empty, value=empty, length=jnp.zeros((), jnp.int32))


def make_prefix(
  params: dict, tokens_P: jax.Array, length, config: ModelConfig, compute: ComputeConfig
) -> Prefix:
  """The prefix of tokens int32 [P], of which the first `length` are real."""
  row_1P = jnp.zeros((1, len(tokens_P)), jnp.int32)
  trees = Trees(
    tokens=tokens_P[None], positions=jnp.arange(len(tokens_P))[None], items=row_1P, branches=row_1P
  )
  _, keys, values = tree_states(params, no_prefix(config, compute), trees, config, compute)
  return Prefix(
    key=constrain(keys[:, 0], None, None, "kv_heads", None),
    value=constrain(values[:, 0], None, None, "kv_heads", None),
    length=length,
  )


def target_logprobs(
  params: dict,
  hidden_BLD: jax.Array,
  sources_S: jax.Array,
  slots_T: jax.Array,
  targets_T: jax.Array,
  config: ModelConfig,
  compute: ComputeConfig,
) -> tuple[jax.Array, jax.Array]:
  """What tokens are predicted with, from the hidden states before them.

  Args:
    hidden_BLD: of `tree_states`.
    sources_S: indices into the B * L states, those that predict something.
    slots_T: for every target, the index of its source in `sources_S`.
    targets_T: the token ids.

  Returns:
    log-probabilities fp32 [T], and whether no other token has a larger one, bool [T].
  """
  states_1SD = hidden_BLD.reshape(-1, hidden_BLD.shape[-1])[sources_S][None]
  logits_SV = logits(params, states_1SD, config, compute)[0]
  normalizer_S = jax.nn.logsumexp(logits_SV, axis=-1)
  best_S = likeliest(logits_SV)
  logprobs_T = logits_SV[slots_T, targets_T] - normalizer_S[slots_T]
  return logprobs_T, best_S[slots_T] == targets_T

"""Every parameter, described once: shape, logical axes, initialization and decay."""

import dataclasses
import math
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class ParamSpec:
  """One parameter: the single source of its initialization, sharding, decay and counts.

  Attributes:
    shape: its dimensions; a parameter of the layer stack has the number of layers in front.
    axes: a logical axis a dimension, which `model.sharding.RULES` maps to the mesh.
    std: standard deviation of the normal initialization; 0 means zeros.
    mean: the mean of the initialization (1 for norm scales).
    trained: whether steps change it; what is frozen has no gradient and no optimizer state.
  """

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  std: float = 0.0
  mean: float = 0.0
  trained: bool = True

  def __post_init__(self):
    assert len(self.shape) == len(self.axes), (self.shape, self.axes)

  @property
  def decay(self) -> bool:
    """Weight decay applies to what maps to or from the residual stream, named by its axis.

    The rank says nothing: a stacked norm scale is a matrix, and so is a bias of heads.
    """
    return "embed" in self.axes

  @property
  def size(self) -> int:
    return math.prod(self.shape)


def param_specs(config: ModelConfig) -> dict:
  """The tree of a decoder's `ParamSpec`s; leaves are named by their shapes (`model.config`)."""
  c = config
  n, d, f, v = c.num_layers, c.d_model, c.d_ff, c.vocab_size
  heads, groups, k = c.num_heads, c.num_kv_heads, c.head_dim
  fan_d = 1 / math.sqrt(d)
  residual = 1 / math.sqrt(2 * n)  # GPT-2: projections back into the stream shrink with depth.

  def stacked(shape, axes, **init):
    return ParamSpec((n, *shape), ("layers", *axes), **init)

  def norm(size):
    return stacked((size,), ("norm",), mean=1.0)

  attention = {
    "norm_D": norm(d),
    "query_DNK": stacked((d, heads, k), ("embed", "heads", "head_dim"), std=fan_d),
    "key_DGK": stacked((d, groups, k), ("embed", "kv_heads", "head_dim"), std=fan_d),
    "value_DGK": stacked((d, groups, k), ("embed", "kv_heads", "head_dim"), std=fan_d),
    "out_NKD": stacked(
      (heads, k, d), ("heads", "head_dim", "embed"), std=residual / math.sqrt(heads * k)
    ),
  }
  if c.qkv_bias:
    attention |= {
      "query_bias_NK": stacked((heads, k), ("heads", "head_dim")),
      "key_bias_GK": stacked((groups, k), ("kv_heads", "head_dim")),
      "value_bias_GK": stacked((groups, k), ("kv_heads", "head_dim")),
    }
  if c.qk_norm:
    attention |= {"query_norm_K": norm(k), "key_norm_K": norm(k)}
  mlp = {
    "norm_D": norm(d),
    "gate_DF": stacked((d, f), ("embed", "mlp"), std=fan_d),
    "up_DF": stacked((d, f), ("embed", "mlp"), std=fan_d),
    "down_FD": stacked((f, d), ("mlp", "embed"), std=residual / math.sqrt(f)),
  }
  specs = {
    "embedding_VD": ParamSpec((v, d), ("vocab", "embed"), std=c.embed_init_std),
    "layers": {"attention": attention, "mlp": mlp},
    "final_norm_D": ParamSpec((d,), ("norm",), mean=1.0),
  }
  if not c.tie_embeddings:
    specs["unembedding_DV"] = ParamSpec((d, v), ("embed", "vocab"), std=fan_d)
  return specs


def is_spec(leaf) -> bool:
  return isinstance(leaf, ParamSpec)


def map_specs(fn: Callable[[ParamSpec], object], specs: dict):
  """`jax.tree.map` over the specs of a tree."""
  return jax.tree.map(fn, specs, is_leaf=is_spec)


def split_trained(specs: dict, tree: dict) -> tuple[dict, dict]:
  """(trained, frozen): `tree` twice, with None for each leaf that is in the other."""
  one = jax.tree.map(lambda s, x: x if s.trained else None, specs, tree, is_leaf=is_spec)
  other = jax.tree.map(lambda s, x: None if s.trained else x, specs, tree, is_leaf=is_spec)
  return one, other


def join(trained: dict, frozen: dict) -> dict:
  """What `split_trained` took apart."""
  return jax.tree.map(
    lambda t, f: f if t is None else t, trained, frozen, is_leaf=lambda x: x is None
  )


def init_params(specs: dict, seed: int) -> dict:
  """fp32 parameters; the same seed gives the same values on any mesh, scanned or unrolled.

  A leaf's random numbers are those of jax's counter-based threefry, keyed by the seed and the
  leaf's path and counted by the position in the leaf. So a leaf does not change when others are
  added to the tree, and jit it with sharded outputs to make each device draw its own part.
  """
  root = jax.random.key(seed, impl="threefry2x32")

  def init(path, spec):
    if not spec.std:
      return jnp.full(spec.shape, spec.mean, jnp.float32)
    key = jax.random.fold_in(root, zlib.crc32(jax.tree_util.keystr(path).encode()))
    noise = jax.random.normal(key, spec.shape, jnp.float32)
    # Compiled as one, `std` would be folded into a constant of the normal: other bits than eagerly.
    return spec.mean + spec.std * jax.lax.optimization_barrier(noise)

  return jax.tree_util.tree_map_with_path(init, specs, is_leaf=is_spec)


def count(specs: dict) -> int:
  """The number of parameters."""
  return sum(spec.size for spec in jax.tree.leaves(specs, is_leaf=is_spec))


def flops_per_token(config: ModelConfig, seq_len: int) -> tuple[float, float]:
  """Training FLOPs a token, with causal and with full attention.

  6 N without the input embedding (tied, it is counted once: as the output projection), plus
  attention: 6 * layers * heads * head_dim * seq_len when causal (PaLM's appendix B, halved),
  twice that when full.
  """
  n = count(param_specs(config))
  if not config.tie_embeddings:
    n -= config.vocab_size * config.d_model
  attention = 6.0 * config.num_layers * config.num_heads * config.head_dim * seq_len
  return 6.0 * n + attention, 6.0 * n + 2 * attention

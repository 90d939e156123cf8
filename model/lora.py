"""Low-rank adapters (LoRA, https://arxiv.org/abs/2106.09685) as more parameters in the same tree.

A block of the layer stack with adapters has a subtree "lora": {name of a weight: {"in", "out",
"scale"}}, which `model.layers.linear` adds as scale * (x in) out. The rest of the tree is frozen,
the scale alpha / rank too. As in the paper "out" begins at zero; "in" has peft's deviation, drawn
from a normal where peft's is uniform.
"""

import dataclasses
import math

import jax.numpy as jnp

from model.params import ParamSpec, map_specs

TARGETS = {
  "query": ("attention", "query_DNK"),
  "key": ("attention", "key_DGK"),
  "value": ("attention", "value_DGK"),
  "out": ("attention", "out_NKD"),
  "gate": ("mlp", "gate_DF"),
  "up": ("mlp", "up_DF"),
  "down": ("mlp", "down_FD"),
}


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Adapters of `rank` with the scale alpha / rank on `targets`; rank 0 trains all weights."""

  rank: int
  alpha: float
  targets: tuple[str, ...]

  def __post_init__(self):
    if self.rank < 0 or not self.alpha > 0:
      raise ValueError(
        f"lora has rank={self.rank}, alpha={self.alpha}; the rank must be at least 0 (0 turns it "
        "off), alpha positive."
      )
    for target in self.targets:
      if target not in TARGETS:
        raise ValueError(f"lora.targets has {target!r}; it must be one of {', '.join(TARGETS)}.")
    if self.rank and not self.targets:
      raise ValueError("lora.targets is empty; name at least one weight, or set lora.rank to 0.")


def add(specs: dict, config: LoraConfig) -> dict:
  """The specs with adapters; they and heads alone are trained. The same specs at rank 0."""
  if not config.rank:
    return specs
  specs = freeze(specs) | {name: specs[name] for name in ("heads",) if name in specs}
  layers = {block: dict(leaves) for block, leaves in specs["layers"].items()}
  for target in config.targets:
    block, name = TARGETS[target]
    adapter = _adapter(layers[block][name], config)
    layers[block]["lora"] = layers[block].get("lora", {}) | {name: adapter}
  return specs | {"layers": layers}


def freeze(specs: dict) -> dict:
  """The specs, none of them trained."""
  return map_specs(lambda spec: dataclasses.replace(spec, trained=False), specs)


def _adapter(weight: ParamSpec, config: LoraConfig) -> dict:
  (n, *shape), (_, *axes) = weight.shape, weight.axes
  inputs = _inputs(axes)
  fan_in = math.prod(shape[:inputs])
  std = 1 / math.sqrt(3 * fan_in)  # of peft's uniform distribution over +-1 / sqrt(fan_in)
  rank = config.rank
  return {
    "in": ParamSpec((n, *shape[:inputs], rank), ("layers", *axes[:inputs], "rank"), std=std),
    "out": ParamSpec((n, rank, *shape[inputs:]), ("layers", "rank", *axes[inputs:])),
    "scale": ParamSpec((n,), ("layers",), mean=config.alpha / rank, trained=False),
  }


def _inputs(axes) -> int:
  """How many leading dimensions of a weight are its inputs."""
  return 1 if axes[0] == "embed" else len(axes) - 1


def merge(params: dict) -> dict:
  """The parameters without adapters that compute the same; arrays of jax or numpy."""
  layers = {}
  for block, leaves in params["layers"].items():
    adapters = leaves.get("lora", {})
    layers[block] = {name: leaf for name, leaf in leaves.items() if name != "lora"}
    for name, adapter in adapters.items():
      before, after = adapter["in"].ndim - 2, adapter["out"].ndim - 2
      spread = adapter["scale"].reshape(-1, *[1] * (before + after))
      i, o = "abc"[:before], "xyz"[:after]
      update = jnp.einsum(
        f"l{i}r,lr{o}->l{i}{o}", adapter["in"], adapter["out"], precision="highest"
      )
      layers[block][name] = layers[block][name] + spread * update
  return params | {"layers": layers}


def without(params: dict) -> dict:
  """The parameters as they were before the adapters: the reference of a trained policy."""
  layers = {
    block: {name: leaf for name, leaf in leaves.items() if name != "lora"}
    for block, leaves in params["layers"].items()
  }
  return params | {"layers": layers}


def is_adapted(params: dict) -> bool:
  """Whether a tree, of parameters or specs, has adapters."""
  return any("lora" in leaves for leaves in params["layers"].values())

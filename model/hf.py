"""Hugging Face models of the Llama, Mistral, Qwen2 and Qwen3 families as our parameters.

SmolLM and SmolLM2 are of Llama's architecture, Qwen2.5 of Qwen2's. Logits of such a directory:

  python -m model.hf logits DIR IDS.npy OUT.npy

IDS.npy is an integer array (batch, length); OUT.npy becomes float32 (batch, length, vocabulary).
"""

import argparse
import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.config import ComputeConfig, ModelConfig
from model.hf_config import CONFIG, read_json, to_model
from model.params import is_spec, param_specs
from model.safetensors import open_directory
from model.transformer import forward

# Every leaf of `param_specs`, by its path, and its tensors; {} is the layer.
NAMES = {
  "embedding_VD": "model.embed_tokens.weight",
  "layers/attention/norm_D": "model.layers.{}.input_layernorm.weight",
  "layers/attention/query_DNK": "model.layers.{}.self_attn.q_proj.weight",
  "layers/attention/query_bias_NK": "model.layers.{}.self_attn.q_proj.bias",
  "layers/attention/query_norm_K": "model.layers.{}.self_attn.q_norm.weight",
  "layers/attention/key_DGK": "model.layers.{}.self_attn.k_proj.weight",
  "layers/attention/key_bias_GK": "model.layers.{}.self_attn.k_proj.bias",
  "layers/attention/key_norm_K": "model.layers.{}.self_attn.k_norm.weight",
  "layers/attention/value_DGK": "model.layers.{}.self_attn.v_proj.weight",
  "layers/attention/value_bias_GK": "model.layers.{}.self_attn.v_proj.bias",
  "layers/attention/out_NKD": "model.layers.{}.self_attn.o_proj.weight",
  "layers/mlp/norm_D": "model.layers.{}.post_attention_layernorm.weight",
  "layers/mlp/gate_DF": "model.layers.{}.mlp.gate_proj.weight",
  "layers/mlp/up_DF": "model.layers.{}.mlp.up_proj.weight",
  "layers/mlp/down_FD": "model.layers.{}.mlp.down_proj.weight",
  "final_norm_D": "model.norm.weight",
  "unembedding_DV": "lm_head.weight",
}

FP32 = ComputeConfig(
  dtype="float32",
  scan_layers=True,
  remat="none",
  remat_save=(),
  remat_offload=(),
  attention="chunked",
  max_segments=None,
  fuse_qkv=False,
  gradients_in_order=False,
  reduce_gradients_in_fp32=True,
  loss_chunks=1,
)


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor of a Hugging Face model and where it is in ours.

  Attributes:
    name: there.
    path: of our leaf.
    layer: its index in the leaf's stack, or None where the leaf is no stack.
    shape, axes: of that part of the leaf, as its `ParamSpec` has them.
  """

  name: str
  path: str
  layer: int | None
  shape: tuple[int, ...]
  axes: tuple[str, ...]

  @property
  def stored_shape(self) -> tuple[int, ...]:
    """What is a matrix there. A linear map is [outputs, inputs]; ours has its inputs first."""
    if "embed" not in self.axes:
      return (math.prod(self.shape),)
    if not self._is_linear:
      return self.shape
    inputs = 1 if self.axes[0] == "embed" else len(self.shape) - 1
    return math.prod(self.shape[inputs:]), math.prod(self.shape[:inputs])

  @property
  def _is_linear(self) -> bool:
    return "embed" in self.axes and self.axes != ("vocab", "embed")

  def to_stored(self, x: np.ndarray) -> np.ndarray:
    """Our part of the leaf as it is stored there; a view."""
    return x.reshape(self.stored_shape[::-1]).T if self._is_linear else x.reshape(self.stored_shape)

  def from_stored(self, x: np.ndarray) -> np.ndarray:
    return (x.T if self._is_linear else x).reshape(self.shape)


def tensors(config: ModelConfig) -> list[Tensor]:
  """Every tensor of the model, a layer after the other."""
  found = []
  for keys, spec in jax.tree_util.tree_leaves_with_path(param_specs(config), is_leaf=is_spec):
    path = _path(keys)
    if spec.axes[0] != "layers":
      found.append(Tensor(NAMES[path], path, None, spec.shape, spec.axes))
      continue
    for layer in range(config.num_layers):
      name = NAMES[path].format(layer)
      found.append(Tensor(name, path, layer, spec.shape[1:], spec.axes[1:]))
  return sorted(found, key=lambda tensor: -1 if tensor.layer is None else tensor.layer)


def stored_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """{name: shape} of the tensors of a Hugging Face model, in the order of `stored_tensors`."""
  return {tensor.name: tensor.stored_shape for tensor in tensors(config)}


def stored_tensors(params: dict, config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
  """(name, array) of the tensors of a Hugging Face model; views of `params` that are numpy."""
  leaves = _by_path(params)
  for tensor in tensors(config):
    leaf = np.asarray(leaves[tensor.path])
    yield tensor.name, tensor.to_stored(leaf if tensor.layer is None else leaf[tensor.layer])


def read_params(
  stored: Mapping[str, np.ndarray],
  config: ModelConfig,
  empty: Callable[[tuple[int, ...]], np.ndarray] | None = None,
) -> dict:
  """Our fp32 parameters, numpy arrays, of a Hugging Face model's tensors; each is read once.

  Args:
    stored: {name: array}; one array is held at a time.
    config: of the model.
    empty: makes the fp32 array of a shape that a leaf is filled in; None for one in memory.

  Raises:
    ValueError: a tensor is missing, is of another shape, or is none of the architecture's.
  """
  if config.num_layers > len(stored):  # before a list of their tensors is made
    raise ValueError(
      f"config.json describes {config.num_layers} layers, and there are {len(stored)} tensors."
    )
  wanted = tensors(config)
  if absent := [tensor.name for tensor in wanted if tensor.name not in stored]:
    raise ValueError(
      f"tensor {absent[0]!r} is missing ({len(absent)} are); config.json describes another model."
    )
  if extra := sorted(name for name in stored.keys() - {t.name for t in wanted} if _counts(name)):
    raise ValueError(
      f"tensor {extra[0]!r} ({len(extra)} such) is none of the model that config.json describes; "
      "its architecture is not one that can be computed here."
    )
  specs, leaves = param_specs(config), {}
  for tensor in wanted:
    array = stored[tensor.name]
    if tuple(array.shape) != tensor.stored_shape:
      raise ValueError(
        f"tensor {tensor.name!r} has the shape {list(array.shape)}; by config.json it is "
        f"{list(tensor.stored_shape)}."
      )
    if tensor.path not in leaves:  # made no earlier, so that a size that is wrong takes no memory
      stack = () if tensor.layer is None else (config.num_layers,)
      leaves[tensor.path] = (empty or _empty)((*stack, *tensor.shape))
    part = leaves[tensor.path]
    part[... if tensor.layer is None else tensor.layer] = tensor.from_stored(array)
  return jax.tree_util.tree_map_with_path(
    lambda keys, _: leaves[_path(keys)], specs, is_leaf=is_spec
  )


def as_jax(params: dict) -> dict:
  """As jax arrays: on the CPU what `read_params` made is not copied, so write to it no more."""
  return jax.tree.map(lambda leaf: jax.device_put(leaf, may_alias=True), params)


def _empty(shape: tuple[int, ...]) -> np.ndarray:
  """An fp32 array at a multiple of 64 bytes, so that jax on the CPU takes it without a copy."""
  size = 4 * math.prod(shape)
  memory = np.empty(size + 64, np.uint8)
  first = -memory.ctypes.data % 64
  return memory[first : first + size].view(np.float32).reshape(shape)


def _counts(name: str) -> bool:
  """Whether a tensor beside ours means something: not a tied output, nor RoPE's old buffers."""
  return name != "lm_head.weight" and not name.endswith("rotary_emb.inv_freq")


def _path(keys: tuple) -> str:
  return jax.tree_util.keystr(keys, simple=True, separator="/")


def _by_path(tree: dict) -> dict[str, Any]:
  return {_path(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def load(
  directory: Path, empty: Callable[[tuple[int, ...]], np.ndarray] | None = None
) -> tuple[ModelConfig, dict]:
  """Config and fp32 parameters of a directory; see `read_params` for `empty` and errors."""
  config = to_model(read_json(directory / CONFIG))
  return config, read_params(open_directory(directory), config, empty)


def logits(params: dict, ids_BL: np.ndarray, config: ModelConfig) -> Iterator[np.ndarray]:
  """fp32 logits [L,V] of each row of ids, computed in fp32 on the CPU or a GPU alike."""
  params = as_jax(params)
  with jax.default_matmul_precision("highest"):
    for row in np.asarray(ids_BL, np.int32):
      positions = np.arange(len(row), dtype=np.int32)[None]
      yield np.asarray(_row_logits(params, row[None], positions, config))[0]


@functools.partial(jax.jit, static_argnames="config")
def _row_logits(params, tokens_BL, positions_BL, config: ModelConfig):
  return forward(params, tokens_BL, jnp.ones_like(tokens_BL), positions_BL, config, FP32)


def check_ids(ids: np.ndarray, config: ModelConfig) -> None:
  """Raises ValueError unless ids are integers (batch, length) within the vocabulary."""
  if ids.ndim != 2 or ids.size == 0 or ids.dtype.kind not in "iu":
    raise ValueError(
      f"ids have the shape {list(ids.shape)} and dtype {ids.dtype}; they must be integers "
      "(batch, length)."
    )
  if ids.min() < 0 or ids.max() >= config.vocab_size:
    raise ValueError(
      f"ids go from {ids.min()} to {ids.max()}; the vocabulary has {config.vocab_size}."
    )


def _write_logits(directory: Path, ids_path: Path, out: Path) -> None:
  try:
    ids = np.load(ids_path, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise ValueError(f"{ids_path} cannot be read as an array: {error}.") from None
  config = to_model(read_json(directory / CONFIG))
  check_ids(ids, config)
  params = read_params(open_directory(directory), config)
  array = np.lib.format.open_memmap(out, "w+", np.float32, (*ids.shape, config.vocab_size))
  for i, row in enumerate(logits(params, ids, config)):
    array[i] = row
  array.flush()
  print(f"{out}: float32 {list(array.shape)}")


def main(argv: Sequence[str]) -> int:
  parser = argparse.ArgumentParser(prog="python -m model.hf", description=__doc__.split("\n")[0])
  commands = parser.add_subparsers(required=True)
  command = commands.add_parser("logits", help="write the logits of token ids")
  command.add_argument("directory", metavar="DIR", type=Path, help="config.json and safetensors")
  command.add_argument("ids", metavar="IDS.npy", type=Path, help="integers (batch, length)")
  command.add_argument("out", metavar="OUT.npy", type=Path, help="float32 logits")
  arguments = parser.parse_args(argv)
  try:
    _write_logits(arguments.directory, arguments.ids, arguments.out)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))

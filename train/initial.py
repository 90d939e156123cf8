"""The weights that a stage begins with: those of another run, or of an imported model."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from model import lora
from train.checkpoint import Checkpointer

MODEL = "model"
_OPTIONAL = ("heads/", "normalization/")


def given_params(folder: str, abstract: dict) -> dict:
  """The newest weights in a run's folder, for the parameters `abstract`; None where it has none.

  Adapters in the folder are merged into the weights that they belong to, and those of `abstract`
  are new. Heads are taken where the folder has as many and are new where it has not; an output
  projection or a normalization that is not wanted is left.

  Args:
    folder: of a run, or of an imported model.
    abstract: the tree of ShapeDtypeStructs, with shardings, of the stage's parameters.

  Raises:
    ValueError: there is no checkpoint, or it is of another architecture.
    train.catalog.CheckpointError: no checkpoint is whole.
  """
  source = Checkpointer(Path(folder) / "checkpoints")
  if not source.steps():
    raise ValueError(
      f"train.init_from={folder!r} holds no checkpoints; name the folder of a run, or of an "
      "imported model."
    )
  wanted = _by_path(abstract)
  stored = {
    path: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=wanted[path].sharding if path in wanted else None
    )
    for path, leaf in source.abstract_weights(source.steps()[-1])[MODEL].items()
  }
  _check(folder, stored, wanted)
  params = source.restore_weights({MODEL: _nested(stored)})[MODEL]
  if lora.is_adapted(params):
    params = lora.merge(params)
  found = {
    path: x
    for path, x in _by_path(params).items()
    if path in wanted and x.shape == wanted[path].shape
  }
  return jax.tree_util.tree_map_with_path(
    lambda keys, leaf: _placed(found.get(_path(keys)), leaf), abstract
  )


def _check(folder: str, stored: dict, wanted: dict) -> None:
  for path in sorted(stored.keys() | wanted.keys()):
    unused = path == "unembedding_DV" and path not in wanted
    if "/lora/" in path or path.startswith(_OPTIONAL) or unused:
      continue
    there = _format(stored[path]) if path in stored else "absent"
    here = _format(wanted[path]) if path in wanted else "absent"
    if there != here:
      raise ValueError(
        f"train.init_from={folder!r} is of another model: leaf {path} is {there} there and {here} "
        "here. Make the section `model` that of its config.json."
      )


def _placed(array: Any, leaf: jax.ShapeDtypeStruct) -> Any:
  return None if array is None else jax.device_put(array, leaf.sharding)


def _nested(flat: dict[str, Any]) -> dict:
  tree: dict = {}
  for path, leaf in flat.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def _by_path(tree: dict) -> dict[str, Any]:
  return {_path(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _path(keys) -> str:
  return jax.tree_util.keystr(keys, simple=True, separator="/")


def _format(leaf: jax.ShapeDtypeStruct) -> str:
  return f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"

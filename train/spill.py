"""Arrays in nameless files, for models that are larger than memory.

The system writes their pages out when memory is short and reads them again when they are needed.
The disk's space is free once no array is left of a file, whatever ends the program.
"""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np


def on_disk(folder: Path) -> Callable[[tuple[int, ...]], np.ndarray]:
  """A function from a shape to an fp32 array of zeros in a file on the disk of `folder`.

  The array begins at a page, so that jax on the CPU takes it without a copy.
  """

  def empty(shape: tuple[int, ...]) -> np.ndarray:
    with tempfile.TemporaryFile(dir=folder) as file:
      return np.asarray(np.memmap(file, np.float32, "w+", shape=shape))

  return empty


def read_leaf(folder: Path, path: str, out: np.ndarray) -> np.ndarray:
  """Fills `out` with a leaf of what Orbax wrote into `folder`, one stored chunk after the other.

  Orbax itself reads all chunks of a leaf at once, which is several times the leaf in memory.

  Raises:
    ValueError: there is no such leaf, or it has another shape.
  """
  import tensorstore

  store = {"driver": "ocdbt", "base": folder.as_uri(), "path": f"{path}/"}
  context = {"cache_pool": {"total_bytes_limit": 0}}
  stored = tensorstore.open({"driver": "zarr", "kvstore": store, "context": context}).result()
  if stored.shape != out.shape:
    raise ValueError(f"{path} has the shape {list(stored.shape)}, and not {list(out.shape)}.")
  sizes = stored.chunk_layout.read_chunk.shape or ()
  for first in itertools.product(*map(range, itertools.repeat(0), out.shape, sizes)):
    at = tuple(slice(i, min(i + k, n)) for i, k, n in zip(first, sizes, out.shape, strict=True))
    out[at] = stored[at].read().result()
  return out

"""Arrays in nameless files, for models that are larger than memory.

The system writes their pages out when memory is short and reads them again when they are needed.
The disk's space is free once no array is left of a file, whatever ends the program.
"""

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

"""Batches on the host to sharded arrays on the devices."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from data.batch import empty_batch
from model.sharding import batch_sharding, row_sharding

_TOKEN_KEYS = tuple(empty_batch(0, 0))


def sharding_of(name: str, mesh: Mesh) -> NamedSharding:
  """Of a batch's array: one with a place a token (`data.batch`) is split over context too."""
  return batch_sharding(mesh) if name in _TOKEN_KEYS else row_sharding(mesh)


def from_parts(rows: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Global arrays of the batch of which this process has its part, `rows`."""
  return {
    name: jax.make_array_from_process_local_data(sharding_of(name, mesh), array)
    for name, array in rows.items()
  }


def from_whole(rows: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Global arrays of a batch that every process holds whole."""
  return {
    name: jax.make_array_from_callback(array.shape, sharding_of(name, mesh), array.__getitem__)
    for name, array in rows.items()
  }

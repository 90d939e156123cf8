"""One table from logical axes to mesh axes; every sharding in the project comes from it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from model.params import ParamSpec, is_spec, map_specs

MESH_AXES = ("data", "fsdp", "context", "tensor")
BATCH_AXES = ("data", "fsdp")

# Logical axis -> mesh axes. Parameters shard over fsdp (and tensor), activations over the rest.
RULES: dict[str, tuple[str, ...]] = {
  "batch": BATCH_AXES,
  "length": ("context",),
  "embed": ("fsdp",),
  "heads": ("tensor",),
  "kv_heads": ("tensor",),
  "mlp": ("tensor",),
  "vocab": ("tensor",),
  "layers": (),
  "norm": (),
  "head_dim": (),
  "rank": (),
  "scores": (),
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; one of them may be -1, which takes what the others leave."""

  data: int
  fsdp: int
  context: int
  tensor: int

  def __post_init__(self):
    sizes = dataclasses.astuple(self)
    if any(s < 1 and s != -1 for s in sizes) or sizes.count(-1) > 1:
      raise ValueError(f"mesh is {self}; sizes are at least 1, and at most one of them is -1.")

  def resolve(self, devices: int) -> "MeshConfig":
    """Fills in the -1. Raises ValueError unless the sizes multiply to `devices`."""
    sizes = dataclasses.asdict(self)
    known = math.prod(s for s in sizes.values() if s != -1)
    for name, size in sizes.items():
      if size == -1 and devices % known == 0:
        sizes[name] = devices // known
    if math.prod(sizes.values()) != devices:
      raise ValueError(
        f"mesh {dataclasses.asdict(self)} does not fit {devices} devices; its sizes must multiply "
        f"to {devices} (set one to -1 to take the rest)."
      )
    return MeshConfig(**sizes)


def make_mesh(config: MeshConfig, devices=None) -> Mesh:
  """A mesh over `devices` (default: all), tensor innermost so that it stays within a node."""
  devices = jax.devices() if devices is None else devices
  sizes = dataclasses.astuple(config.resolve(len(devices)))
  return jax.make_mesh(sizes, MESH_AXES, (AxisType.Auto,) * len(MESH_AXES), devices=devices)


def partition_spec(axes: tuple[str | None, ...]) -> PartitionSpec:
  """The PartitionSpec of logical `axes`. Raises ValueError where two claim one mesh axis."""
  taken: dict[str, str] = {}
  entries = []
  for axis in axes:
    if axis is not None and axis not in RULES:
      raise ValueError(f"logical axis {axis!r} is not in RULES; known: {', '.join(RULES)}.")
    mesh_axes = () if axis is None else RULES[axis]
    for mesh_axis in mesh_axes:
      if mesh_axis in taken:
        raise ValueError(
          f"logical axes {taken[mesh_axis]!r} and {axis!r} of {axes} both map to mesh axis "
          f"{mesh_axis!r}; change one of them in RULES."
        )
      taken[mesh_axis] = axis
    entries.append(mesh_axes or None)
  return PartitionSpec(*entries)


def param_shardings(specs: dict, mesh: Mesh) -> dict:
  """A NamedSharding a parameter. Raises ValueError naming the size and axis that don't divide."""

  def sharding(path, spec: ParamSpec):
    for size, axis in zip(spec.shape, spec.axes, strict=True):
      parts = math.prod(mesh.shape[m] for m in RULES[axis])
      if size % parts:
        raise ValueError(
          f"parameter {jax.tree_util.keystr(path)}: {axis}={size} is not divisible by the {parts} "
          f"parts of mesh axes {RULES[axis]} in mesh {dict(mesh.shape)}; change either size."
        )
    return NamedSharding(mesh, partition_spec(spec.axes))

  return jax.tree_util.tree_map_with_path(sharding, specs, is_leaf=is_spec)


def abstract_params(specs: dict, mesh: Mesh) -> dict:
  """The fp32 parameters as ShapeDtypeStructs with their shardings; see `param_shardings`."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    map_specs(lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32), specs),
    param_shardings(specs, mesh),
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Of a batch array [B, L]: rows over data and fsdp, length over context."""
  return NamedSharding(mesh, partition_spec(("batch", "length")))


def row_sharding(mesh: Mesh) -> NamedSharding:
  """Of a batch array [B, ...] that has no dimension of length: rows over data and fsdp."""
  return NamedSharding(mesh, partition_spec(("batch",)))


def batch_shards(mesh: Mesh) -> int:
  """In how many parts the rows of a batch are split."""
  return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def parts_of(axis: str) -> int:
  """In how many parts the table splits a logical axis under `jax.set_mesh`; without a mesh, 1."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else math.prod(mesh.shape[name] for name in RULES[axis])


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Pins an activation to the table's sharding under `jax.set_mesh`; without a mesh, x itself."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, partition_spec(axes))


def host_rows(mesh: Mesh, rows: int) -> tuple[int, int]:
  """(i, n): this process's devices hold the i-th of n equal parts of a batch of `rows` rows.

  Processes whose devices share rows (over context or tensor) get the same part.
  """
  indices = row_sharding(mesh).addressable_devices_indices_map((rows,))
  held = sorted({row for index in indices.values() for row in range(*index[0].indices(rows))})
  first, size = held[0], len(held)
  if held[-1] - first + 1 != size or rows % size or first % size:
    raise ValueError(
      f"process {jax.process_index()} holds {size} rows of {rows}, {first} to {held[-1]}, which is "
      f"no equal part; arrange mesh {dict(mesh.shape)} so that data x fsdp fills whole processes."
    )
  return first // size, rows // size

"""The table from logical to mesh axes, its two errors, and which rows a process holds."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from model import sharding
from model.params import ParamSpec, param_specs
from model.sharding import MeshConfig, batch_sharding, batch_shards, host_rows, make_mesh
from tests.build import model_config


def test_parameters_follow_the_table():
  mesh = make_mesh(MeshConfig(1, 2, 2, 2))
  shardings = sharding.param_shardings(param_specs(model_config(qkv_bias=True)), mesh)
  attention, mlp = shardings["layers"]["attention"], shardings["layers"]["mlp"]
  fsdp, tensor = ("fsdp",), ("tensor",)
  for got, spec in [
    (shardings["embedding_VD"], (tensor, fsdp)),
    (shardings["unembedding_DV"], (fsdp, tensor)),
    (shardings["final_norm_D"], (None,)),
    (attention["query_DNK"], (None, fsdp, tensor, None)),
    (attention["out_NKD"], (None, tensor, None, fsdp)),
    (attention["key_bias_GK"], (None, tensor, None)),
    (attention["query_norm_K"], (None, None)),
    (mlp["norm_D"], (None, None)),
    (mlp["down_FD"], (None, tensor, fsdp)),
  ]:
    assert got == NamedSharding(mesh, PartitionSpec(*spec))


def test_every_axis_of_a_model_is_in_the_table():
  axes = {axis for spec in jax.tree.leaves(
    param_specs(model_config(qkv_bias=True)), is_leaf=lambda x: isinstance(x, ParamSpec)
  ) for axis in spec.axes}  # fmt: skip
  assert axes <= set(sharding.RULES)
  assert {mesh_axis for axes in sharding.RULES.values() for mesh_axis in axes} == set(
    sharding.MESH_AXES
  )


def test_two_axes_on_one_mesh_axis_are_refused_by_name():
  with pytest.raises(ValueError, match=r"'heads' and 'mlp' of .* both map to mesh axis 'tensor'"):
    sharding.partition_spec(("heads", "mlp"))
  with pytest.raises(ValueError, match=r"'batch' and 'embed' .* 'fsdp'"):
    sharding.partition_spec(("batch", "length", "embed"))
  with pytest.raises(ValueError, match=r"'head' is not in RULES"):
    sharding.partition_spec(("head",))


def test_an_indivisible_size_is_refused_with_both_names():
  mesh = make_mesh(MeshConfig(1, 2, 1, 4))
  with pytest.raises(ValueError) as error:
    sharding.param_shardings(param_specs(model_config()), mesh)
  for part in ("key_DGK", "kv_heads=2", "4 parts", "'tensor'", "'tensor': 4"):
    assert part in str(error.value)


def test_mesh_sizes():
  assert MeshConfig(1, -1, 1, 2).resolve(8) == MeshConfig(1, 4, 1, 2)
  assert dict(make_mesh(MeshConfig(-1, 2, 1, 2)).shape) == {
    "data": 2, "fsdp": 2, "context": 1, "tensor": 2,
  }  # fmt: skip
  for sizes in [(3, -1, 1, 1), (2, 2, 1, 1), (16, 1, 1, 1)]:
    with pytest.raises(ValueError, match="does not fit 8 devices"):
      MeshConfig(*sizes).resolve(8)
  for sizes in [(0, 1, 1, 1), (-1, -1, 1, 1), (-2, 1, 1, 1)]:
    with pytest.raises(ValueError, match="at most one of them is -1"):
      MeshConfig(*sizes)


def test_a_batch_is_split_by_rows_and_length():
  mesh = make_mesh(MeshConfig(2, 2, 2, 1))
  array = jax.device_put(np.arange(4 * 6).reshape(4, 6), batch_sharding(mesh))
  assert batch_shards(mesh) == 4
  assert {shard.data.shape for shard in array.addressable_shards} == {(1, 3)}


def test_constrain_without_a_mesh_is_the_identity():
  x = np.ones((2, 2))
  assert sharding.constrain(x, "batch", "length") is x


def rows_of_process(monkeypatch, sizes, rows, devices):
  """`host_rows` as a process sees it whose devices are those at `devices` of the mesh."""
  mesh = make_mesh(MeshConfig(*sizes))
  mine = [mesh.devices.flat[i] for i in devices]

  def addressable(self, shape):
    indices = self.devices_indices_map(shape)
    return {device: indices[device] for device in mine}

  monkeypatch.setattr(NamedSharding, "addressable_devices_indices_map", addressable)
  return host_rows(mesh, rows)


@pytest.mark.parametrize(
  ("sizes", "devices", "expected"),
  [
    ((1, 8, 1, 1), range(8), (0, 1)),
    ((1, 8, 1, 1), range(4, 8), (1, 2)),
    ((2, 4, 1, 1), range(2, 4), (1, 4)),
    ((1, 4, 1, 2), range(4, 8), (1, 2)),
    ((1, 2, 1, 4), range(2, 4), (0, 2)),  # two processes share rows over tensor
    ((1, 2, 1, 4), range(4, 6), (1, 2)),
    ((1, 1, 8, 1), range(4, 8), (0, 1)),  # and over context
  ],
)
def test_a_process_holds_its_part_of_the_rows(monkeypatch, sizes, devices, expected):
  assert rows_of_process(monkeypatch, sizes, 16, devices) == expected


@pytest.mark.parametrize("devices", [(0, 7), (1, 2), (0, 1, 2)])
def test_a_process_whose_rows_are_no_equal_part_is_refused(monkeypatch, devices):
  with pytest.raises(ValueError, match=r"no equal part; arrange mesh .*'fsdp': 8"):
    rows_of_process(monkeypatch, (1, 8, 1, 1), 16, devices)

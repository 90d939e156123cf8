"""Attention of the 37B shape compiled for H100s that aren't here: `pytest -m peers` with `plan`."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from model.attention import attention
from model.sharding import MeshConfig, make_mesh
from train.cluster import load_cluster
from train.deviceless import compile_for, gpu_devices, missing_packages

pytestmark = [
  pytest.mark.peers,
  # jax 0.12 says so when it lowers the pallas kernel, in favour of libraries outside jax.
  pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning"),
  pytest.mark.skipif(
    bool(missing_packages()), reason=f"needs {missing_packages()}: pip install -e '.[plan]'"
  ),
]

L, N, G, K = 8192, 64, 8, 128
KERNELS = {
  "pallas": ("mha_forward", "mha_backward"),
  "cudnn": ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"),
}


@pytest.mark.parametrize("config", [MeshConfig(1, 8, 1, 1), MeshConfig(1, 4, 1, 2)])
@pytest.mark.parametrize("implementation", KERNELS)
def test_compiles_forward_and_backward_once_each(implementation, config):
  mesh = make_mesh(config, gpu_devices(load_cluster("h100"), nodes=1))
  rows = config.fsdp

  def abstract(dtype, *shape):
    axes = (("data", "fsdp"), "context", "tensor", None)[: len(shape)]
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  q = abstract(jnp.float16, rows, L, N, K)
  k = abstract(jnp.float16, rows, L, G, K)
  ids = abstract(jnp.int32, rows, L)
  policy = jax.checkpoint_policies.save_only_these_names("attention_out", "attention_lse")

  def loss(q, k, v, ids):
    @functools.partial(jax.checkpoint, policy=policy)
    def layer(q, k, v):
      return attention(q, k, v, ids, implementation=implementation, max_segments=32)

    return layer(q, k, v).astype(jnp.float32).sum()

  program = compile_for(mesh, jax.grad(loss, argnums=(0, 1, 2)), q, k, k, ids)
  text = program.as_text()
  for kernel in KERNELS[implementation]:
    assert len(re.findall(rf'"{re.escape(kernel)}"', text)) == 1, kernel
  assert not re.search(r"all-gather|all-reduce|all-to-all|collective-permute", text)
  # Never L x L: in fp16 those logits alone would be 8 GiB a row.
  assert program.memory_analysis().temp_size_in_bytes < 2**30


def test_auto_takes_pallas_for_a_cluster_only_compiled_for():
  node = dataclasses.replace(load_cluster("h100"), gpus_a_node=2)
  mesh = make_mesh(MeshConfig(1, 2, 1, 1), gpu_devices(node, nodes=1))
  q, ids = jnp.zeros((2, 256, 4, 64), jnp.float16), jnp.ones((2, 256), jnp.int32)
  with jax.set_mesh(mesh):
    jaxpr = jax.make_jaxpr(attention)(q, q, q, ids)
  assert "name=mha_forward" in str(jaxpr) and "interpret=False" in str(jaxpr)

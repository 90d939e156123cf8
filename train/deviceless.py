"""Compile for GPUs on a machine without one: a topology of devices that exist only to XLA.

Needs the `plan` extra (the CUDA plugin and ptxas), no driver and no cuDNN. XLA then skips
autotuning, so the kernels that it picks can differ from those it would find best on a GPU.
"""

import importlib.util
import os

import jax
from jax.experimental import topologies

from train.cluster import Cluster

# GpuTargetConfigProto of XLA in text. The scheduler reads `device_memory_size`.
TARGET = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} {feature} }}
  core_count: {core_count}
  fpus_per_core: {fpus_per_core}
  clock_rate_ghz: {clock_rate_ghz}
  device_memory_size: {memory_bytes}
  memory_bandwidth: {memory_bandwidth}
  l2_cache_size: {l2_cache_size}
  shared_memory_per_core: {shared_memory_per_core}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {shared_memory_per_block_optin}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{description}"
"""


def target_config(cluster: Cluster) -> str:
  """What XLA asks of a GPU, as text of its protocol buffer."""
  major, minor = cluster.target["compute_capability"]
  return TARGET.format(
    **cluster.target,
    major=major,
    minor=minor,
    # wgmma and the like, which a program for one architecture alone may use
    feature="feature_extension: ACCELERATED_FEATURES" if major >= 9 else "",
    memory_bytes=cluster.memory_bytes,
    memory_bandwidth=int(cluster.facts["hbm_bytes_per_second"]),
  )


def missing_packages() -> list[str]:
  """The packages of the `plan` extra that can't be imported here."""
  modules = ("jax_cuda12_plugin", "nvidia.cuda_nvcc")
  return [name for name in modules if not _importable(name)]


def gpu_devices(cluster: Cluster, nodes: int) -> list:
  """Devices of `nodes` machines of a cluster, to build a mesh of and compile for.

  Raises ValueError, naming them, where packages of the `plan` extra are missing.
  """
  if missing := missing_packages():
    raise ValueError(
      f"compiling for GPUs needs {', '.join(missing)}; install them: pip install -e '.[plan]'."
    )
  # Without it the plugin looks for a driver and gives up.
  os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
  topology = topologies.get_topology_desc(
    topology_name=cluster.target["description"],
    platform="cuda",
    target_config=target_config(cluster),
    topology=f"1x{nodes}x{cluster.gpus_a_node}",
  )
  return topology.devices


def compile_for(mesh: jax.sharding.Mesh, function, *arguments, **jit_options):
  """Compiles `function` of abstract `arguments` for the mesh's devices.

  Arguments are ShapeDtypeStructs with shardings; `jit_options` go to `jax.jit`. The result has
  `memory_analysis()`, bytes a device, and `as_text()`, the scheduled program.
  """
  with jax.set_mesh(mesh):
    traced = jax.jit(function, **jit_options).trace(*arguments)
    return traced.lower(lowering_platforms=("cuda",)).compile()


def _importable(name: str) -> bool:
  try:
    return importlib.util.find_spec(name) is not None
  except ModuleNotFoundError:  # of a parent package
    return False

"""Compile for H100s on a machine without one: a topology of devices that exist only to XLA.

Needs the `plan` extra (the CUDA plugin and ptxas), no driver and no cuDNN. XLA then skips
autotuning, so the kernels that it picks can differ from those it would find best on a GPU.
"""

import importlib.util
import os

import jax
from jax.experimental import topologies

# GpuTargetConfigProto of XLA in text, from NVIDIA's H100 SXM data sheet and CUDA's limits for
# compute capability 9.0. The scheduler reads `device_memory_size`: pass what a run may really use.
H100_SXM = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: {memory_bytes}
  memory_bandwidth: 3352000000000
  l2_cache_size: 52428800
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
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
device_description_str: "NVIDIA H100 80GB HBM3"
"""
H100_MEMORY_BYTES = 84_942_979_072


def missing_packages() -> list[str]:
  """The packages of the `plan` extra that can't be imported here."""
  modules = ("jax_cuda12_plugin", "nvidia.cuda_nvcc")
  return [name for name in modules if not _importable(name)]


def h100_devices(nodes: int, gpus_a_node: int = 8, memory_bytes: int = H100_MEMORY_BYTES) -> list:
  """Devices of `nodes` H100 machines, to build a mesh of and compile for.

  Raises ValueError, naming them, where packages of the `plan` extra are missing.
  """
  if missing := missing_packages():
    raise ValueError(
      f"compiling for H100 needs {', '.join(missing)}; install them: pip install -e '.[plan]'."
    )
  # Without it the plugin looks for a driver and gives up.
  os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
  topology = topologies.get_topology_desc(
    topology_name="h100",
    platform="cuda",
    target_config=H100_SXM.format(memory_bytes=memory_bytes),
    topology=f"1x{nodes}x{gpus_a_node}",
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

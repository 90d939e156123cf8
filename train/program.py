"""The training step compiled for a cluster that isn't here, and what it keeps in memory."""

import contextlib
import dataclasses
import math
import time
from typing import Any

import jax

from model.sharding import make_mesh
from train import deviceless, loop, pretrain
from train.cluster import Cluster
from train.config import PretrainConfig
from train.hlo import Module
from train.optimizer import make_optimizer
from train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled training step.

  Attributes:
    text: the scheduled program of one device.
    memory: `jax.stages.Compiled.memory_analysis()`, of one device.
    accumulated: bytes a device of gradients summed over microbatches, apart from a microbatch's.
    state: bytes a device of each field of the train state, exact.
    replicated: (path, bytes) of leaves of the state that every device holds whole.
    mesh: sizes by axis.
    compile_seconds: tracing, lowering and compiling.
    on_gpu: compiled for GPUs, not for virtual CPU devices.
  """

  text: str
  memory: Any
  accumulated: int
  state: dict[str, int]
  replicated: list[tuple[str, int]]
  mesh: dict[str, int]
  compile_seconds: float
  on_gpu: bool


def compile_program(config: PretrainConfig, nodes: int, cluster: Cluster) -> Program:
  """Compiles the step that `train.loop` runs, from shapes alone.

  For H100s where the `plan` extra is installed, for virtual CPU devices elsewhere. XLA is told of
  the whole device memory, as a GPU tells it; how much of it the program may take is a matter of
  `xla_gpu_memory_limit_slop_factor`, percent of four fifths of it.

  Raises ValueError where the config does not fit the devices.
  """
  count = nodes * cluster.gpus_a_node
  on_gpu = not deviceless.missing_packages()
  if on_gpu:
    devices = deviceless.h100_devices(nodes, cluster.gpus_a_node, cluster.memory_bytes)
  else:
    devices = virtual_devices(count)
  mesh = make_mesh(config.mesh, devices)
  loop.check_sizes(config, mesh)
  specs, loss_fn = pretrain.objective(config)
  optimizer = make_optimizer(config.optimizer, config.train.steps, specs)
  abstract = loop.abstract_train_state(specs, config, optimizer, mesh)
  start = time.perf_counter()
  with jax.set_mesh(mesh):
    traced = loop.trace_step(specs, loss_fn, config, optimizer, abstract, mesh)
    lowered = traced.lower(lowering_platforms=("cuda",)) if on_gpu else traced.lower()
    compiled = loop.compile_step(lowered, config)
  seconds = time.perf_counter() - start
  state = state_bytes(abstract)
  return Program(
    text=compiled.as_text(),
    memory=compiled.memory_analysis(),
    accumulated=state["params"] if config.train.microbatches > 1 else 0,
    state=state,
    replicated=replicated_leaves(abstract, count),
    mesh=dict(mesh.shape),
    compile_seconds=seconds,
    on_gpu=on_gpu,
  )


def virtual_devices(count: int) -> list:
  """CPU devices that share this machine; a jax that already started has what it has."""
  with contextlib.suppress(RuntimeError):  # jax started before
    jax.config.update("jax_num_cpu_devices", count)
  devices = jax.devices("cpu")
  if len(devices) < count:
    raise ValueError(
      f"{count} virtual CPU devices are needed and jax has {len(devices)}; start the process with "
      f"XLA_FLAGS=--xla_force_host_platform_device_count={count}."
    )
  return devices[:count]


def _leaves(abstract: TrainState):
  for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
    size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    yield jax.tree_util.keystr(path).lstrip("."), size, leaf


def state_bytes(abstract: TrainState) -> dict[str, int]:
  """Bytes a device of each field of an abstract TrainState."""
  sizes: dict[str, int] = {}
  for path, size, _ in _leaves(abstract):
    field = path.split("[")[0].split(".")[0]
    sizes[field] = sizes.get(field, 0) + size
  return sizes


def replicated_leaves(abstract: TrainState, devices: int) -> list[tuple[str, int]]:
  """(path, bytes) of the leaves that every one of several devices holds whole."""
  return [
    (path, size)
    for path, size, leaf in _leaves(abstract)
    if devices > 1 and leaf.sharding.is_fully_replicated
  ]


def memory(module: Module, program: Program, cluster: Cluster) -> dict[str, Any]:
  """Bytes a device: the state exactly, what loops stack for the backward pass, and the rest.

  Gradients are the sum over microbatches and what the backward loops fill of it; "temporary" is
  what is left of the peak, which is XLA's.
  """
  state, stats = program.state, program.memory
  arguments = stats.argument_size_in_bytes
  total = arguments + stats.temp_size_in_bytes + stats.output_size_in_bytes
  peak = getattr(stats, "peak_memory_in_bytes", 0) or total - stats.alias_size_in_bytes
  categories = {
    "weights": state["params"],
    "optimizer": state["opt_state"],
    "average": state.get("average", 0),
    "batch": max(0, arguments - sum(state.values())),
  }
  if program.on_gpu:
    saved = stacked_bytes(module)
    categories["gradients"] = saved["gradients"] + program.accumulated
    categories["activations"] = saved["activations"]
    categories["temporary"] = peak - sum(categories.values())
  return {
    "peak_bytes": peak if program.on_gpu else None,
    "by_category": categories,
    "usable_bytes": cluster.usable_memory_bytes,
    "device_bytes": cluster.memory_bytes,
  }


def stacked_bytes(module: Module) -> dict[str, int]:
  """Bytes that loops fill slice by slice: forward loops activations, backward loops gradients."""
  sizes = {"activations": 0, "gradients": 0}
  for computation in module.computations.values():
    for outer in computation:
      if outer.opcode != "while":
        continue
      backward = "transpose(" in outer.op_name
      for instruction in module.computations[outer.called("body")]:
        called = module.computations.get(instruction.called("calls") or "")
        updates = [i for i in called or () if i.opcode == "dynamic-update-slice"]
        if not updates and instruction.opcode == "dynamic-update-slice":
          updates = [instruction]
        stacked = (u.nbytes for u in updates if outer.trip_count in u.arrays[0].shape)
        sizes["gradients" if backward else "activations"] += sum(stacked)
  return sizes

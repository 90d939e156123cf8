"""The training step compiled for a cluster that isn't here, and what it keeps in memory."""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import math
import time
from pathlib import Path
from typing import Any

import jax

from model.sharding import make_mesh
from train import deviceless, loop, xla
from train.cluster import Cluster
from train.config import RunConfig
from train.hlo import Module
from train.optimizer import make_optimizer
from train.state import TrainState
from train.workdir import write_atomically


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled training step.

  Attributes:
    text: the scheduled program of one device.
    memory: bytes of one device by `MEMORY`, of `jax.stages.Compiled.memory_analysis()`.
    accumulated: bytes a device of gradients summed over microbatches, apart from a microbatch's.
    state: bytes a device of each field of the train state, exact.
    saved: bytes a device that layers in line save, by a formula; 0 of loops, whose text tells.
    replicated: (path, bytes) of leaves of the state that every device holds whole.
    mesh: sizes by axis.
    compile_seconds: tracing, lowering and compiling.
    on_gpu: compiled for GPUs, not for virtual CPU devices.
  """

  text: str
  memory: dict[str, int]
  accumulated: int
  saved: int
  state: dict[str, int]
  replicated: list[tuple[str, int]]
  mesh: dict[str, int]
  compile_seconds: float
  on_gpu: bool


MEMORY = ("argument", "output", "alias", "temp", "host_temp")


def compile_program(
  config: RunConfig, nodes: int, cluster: Cluster, cache: Path | None = None
) -> Program:
  """Compiles the step that `train.loop` runs, from shapes alone.

  For the cluster's GPUs where the `plan` extra is installed, for virtual CPU devices elsewhere. XLA
  is told of the whole device memory, as a GPU tells it; how much of it the program may take is a
  matter of `xla_gpu_memory_limit_slop_factor`, percent of four fifths of it. A program that the
  folder `cache` has from before is taken from there.

  Raises ValueError where the config does not fit the devices.
  """
  devices, on_gpu = devices_of(cluster, nodes)
  count = len(devices)
  mesh = make_mesh(config.mesh, devices)
  loop.check_sizes(config, mesh)
  stage = importlib.import_module(f"train.{config.stage}")
  if config.train.steps is None:
    raise ValueError(
      f"train.steps is None: the stage {config.stage!r} counts them by its data, which a plan does "
      "not read. Set it, as --config.train.steps=300."
    )
  specs, loss_fn = stage.objective(config)
  optimizer = make_optimizer(config.optimizer, config.train.steps, specs)
  abstract = loop.abstract_train_state(specs, config, optimizer, mesh)
  row = stage.empty_row(config)
  start = time.perf_counter()
  with jax.set_mesh(mesh):
    traced = loop.trace_step(specs, loss_fn, row, config, optimizer, abstract, mesh)
    lowered = traced.lower(lowering_platforms=("cuda",)) if on_gpu else traced.lower()
    path = cache and cache / "programs" / f"{program_key(lowered, config, cluster, on_gpu)}.json"
    if path and (kept := _read(path)):
      return kept
    compiled = loop.compile_step(lowered, config)
  seconds = time.perf_counter() - start
  state = state_bytes(abstract)
  stats = compiled.memory_analysis()
  program = Program(
    text=compiled.as_text(),
    memory={name: getattr(stats, f"{name}_size_in_bytes") for name in MEMORY}
    | {"peak": getattr(stats, "peak_memory_in_bytes", 0)},
    accumulated=state["params"] if config.train.microbatches > 1 else 0,
    saved=0 if config.compute.scan_layers else int(saved_bytes(_resolved(config, count))),
    state=state,
    replicated=replicated_leaves(abstract, count),
    mesh=dict(mesh.shape),
    compile_seconds=seconds,
    on_gpu=on_gpu,
  )
  if path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(dataclasses.asdict(program)))
  return program


def _resolved(config: RunConfig, devices: int) -> RunConfig:
  return dataclasses.replace(config, mesh=config.mesh.resolve(devices))


def program_key(lowered, config: RunConfig, cluster: Cluster, on_gpu: bool) -> str:
  """Of all that a program depends on: what jax hands to XLA, its options, the target, versions."""
  parts = (
    lowered.as_text(debug_info=True),  # with source lines, which the plan shows
    json.dumps(
      xla.step_options(config.train.xla_profile, config.train.xla_options), sort_keys=True
    ),
    deviceless.target_config(cluster) if on_gpu else "cpu",
    f"{jax.__version__} {jax.lib.__version__}",
  )
  return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _read(path: Path) -> Program | None:
  try:
    return Program(**json.loads(path.read_text()))
  except (OSError, ValueError, TypeError):
    return None  # not there, or from another version


def devices_of(cluster: Cluster, nodes: int) -> tuple[list, bool]:
  """Devices to compile for, and whether they are the cluster's GPUs, or virtual CPU devices."""
  on_gpu = cluster.platform == "gpu" and not deviceless.missing_packages()
  if on_gpu:
    return deviceless.gpu_devices(cluster, nodes), True
  return virtual_devices(nodes * cluster.gpus_a_node), False


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


def activation_bytes(config: RunConfig) -> dict[str, int]:
  """Bytes of what a layer can save for the backward pass, a token, on all of the tensor axis."""
  m = config.model
  heads, groups = 2 * m.num_heads * m.head_dim, 2 * m.num_kv_heads * m.head_dim
  return {
    "inverse_rms": 4 * (2 + (m.num_heads + m.num_kv_heads) * m.qk_norm),
    "qkv": heads + 2 * groups,
    "attention_out": heads,
    "attention_lse": 4 * m.num_heads,
    "attention_proj": 2 * m.d_model,
    "mlp_gate": 2 * m.d_ff,
    "mlp_up": 2 * m.d_ff,
  }


def tokens_a_part(config: RunConfig) -> float:
  """Tokens of a microbatch that one device's rows have."""
  parts = config.mesh.data * config.mesh.fsdp * config.train.microbatches
  return config.data.batch_size * config.data.seq_len / parts / config.mesh.context


def saved_bytes(config: RunConfig) -> float:
  """Bytes a device of what is saved for the backward pass of a microbatch."""
  compute, m = config.compute, config.model
  if compute.remat == "none":
    return 0.0  # all that jax's rules of differentiation want; nobody counted it
  whole, tensor = ("attention_proj",), config.mesh.tensor
  sizes = {
    name: size / (1 if name in whole else tensor) for name, size in activation_bytes(config).items()
  }
  layer = 2 * m.d_model + sum(sizes.get(name, 0) for name in compute.remat_save)
  slope = 2 * m.vocab_size / tensor if "loss_slope" in compute.remat_save else 0
  return tokens_a_part(config) * (m.num_layers * layer + slope)


def memory(module: Module, program: Program, cluster: Cluster) -> dict[str, Any]:
  """Bytes a device: the state exactly, what loops stack for the backward pass, and the rest.

  Gradients are the sum over microbatches and what the backward loops fill of it; "temporary" is
  what is left of the peak, which is XLA's.
  """
  state, stats = program.state, program.memory
  arguments = stats["argument"]
  peak = stats["peak"] or arguments + stats["temp"] + stats["output"] - stats["alias"]
  categories = {
    "weights": state["params"],
    "optimizer": state["opt_state"],
    "average": state.get("average", 0),
    "batch": max(0, arguments - sum(state.values())),
  }
  if program.on_gpu:
    saved = stacked_bytes(module)
    categories["gradients"] = saved["gradients"] + program.accumulated
    categories["activations"] = saved["activations"] + program.saved
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
        stacked = (
          u.nbytes
          for u in updates
          if outer.trip_count in u.arrays[0].shape and not u.arrays[0].on_host
        )
        sizes["gradients" if backward else "activations"] += sum(stacked)
  return sizes

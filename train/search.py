"""The fastest way to run a recipe that fits a cluster: mesh, microbatches, remat, attention, flags.

    python -m train.plan --search --config configs/pretrain_37b.py --html search.html

Thousands of candidates are ranked by a formula, a lower bound of their seconds and an estimate of
their bytes. Those with scanned layers are compiled and walked by the plan's model, best bound
first, until none can win by its bound and by what others of its mesh took over theirs. Then the
layers of the best are put in line, and XLA's options varied. What there was no time for is said.
Compiled programs are kept in the cache, so a search that was stopped continues.
"""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from model.params import count, param_specs
from train import hlo
from train.cluster import Cluster
from train.config import PretrainConfig
from train.cost import Traffic, collective_seconds, host_copy_rates
from train.program import (
  activation_bytes,
  compile_program,
  memory,
  saved_bytes,
  tokens_a_part,
)
from train.schedule import estimate

GIB = 2**30
SLACK = 3 * GIB  # of the formula: what it estimates over the limit may still fit
# What variants differ by, in docs/plan.md. Of one mesh and rows a microbatch, how far they are over
# their bounds: from 1.09 to 1.19. Layers in line to scanned ones: 0.96 to 0.97, and 0.80 where
# those are near the limit, and scheduled to save memory. XLA's options that leave the work as it
# is: by 0.4%, which is how the scheduler happens to order it.
SPREAD, IN_LINE, CROWDED, ALIKE = 0.85, 0.95, 0.78, 0.005
# What a layer saves, from least to most; each set with what it adds to the one before.
LADDER = (
  (),
  ("inverse_rms", "qkv", "attention_out", "attention_lse"),
  ("attention_proj",),
  ("mlp_gate",),
  ("mlp_up",),
)
# XLA's options that are tried on the best, over those of the recipe's profile; and those of loops
# over layers, where it has one.
FLAGS = (
  {"xla_gpu_reduce_scatter_combine_threshold_bytes": 2**27},
  {"xla_gpu_all_gather_combine_threshold_bytes": 2**28},
  {"xla_gpu_enable_triton_gemm": True},
)
LOOP_FLAGS = (
  {"xla_gpu_enable_while_loop_double_buffering": True},
  {"xla_gpu_enable_pipelined_all_gather": True, "xla_gpu_enable_pipelined_reduce_scatter": True},
)


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A variant of a recipe, with the formula's seconds of a step, at least, and bytes a device."""

  changes: dict[str, Any]
  config: PretrainConfig
  seconds: float
  nbytes: float


@dataclasses.dataclass(frozen=True)
class Found:
  """A candidate that was compiled."""

  changes: dict[str, Any]
  bound: float
  seconds: float
  peak_bytes: int


def candidates(config: PretrainConfig, devices: int, cluster: Cluster) -> Iterator[Candidate]:
  """Every variant that the sizes allow and that may fit, in no order."""
  rows = config.data.batch_size
  for tensor, data in itertools.product((1, 2, 4, 8), (1, 2, 4, 8, 16)):
    if devices % (tensor * data) or config.model.num_kv_heads % tensor:
      continue
    fsdp = devices // (tensor * data)
    if config.model.d_model % fsdp or rows % (data * fsdp):
      continue
    a_device = rows // (data * fsdp)
    for a_part in (1, 2, 4):
      if a_device % a_part:
        continue
      for remat in remat_sets(config):
        for attention, scan in itertools.product(("pallas", "cudnn"), (True, False)):
          changes = {
            "mesh": {"data": data, "fsdp": fsdp, "tensor": tensor},
            "train.microbatches": a_device // a_part,
            **{f"compute.{name}": value for name, value in remat.items()},
            "compute.attention": attention,
            "compute.scan_layers": scan,
          }
          yield bounded(changes, config, devices, cluster)


def remat_sets(config: PretrainConfig) -> Iterator[dict[str, Any]]:
  """Changes to `compute`: the rungs of the ladder, and the top with a part left out or on the host.

  The slope of the loss is kept where the recipe keeps it.
  """
  slope = tuple(name for name in config.compute.remat_save if name == "loss_slope")
  rungs = [tuple(itertools.chain(*LADDER[: i + 1])) for i in range(1, len(LADDER))]
  plain = {"remat_offload": ()}
  yield from (plain | {"remat_save": rung + slope} for rung in rungs)
  for part in ("qkv", "attention_proj", "mlp_gate"):
    rest = plain | {"remat_save": tuple(n for n in rungs[-1] if n != part) + slope}
    yield rest
    yield rest | {"remat_offload": (part,)}


def bounded(
  changes: dict[str, Any], config: PretrainConfig, devices: int, cluster: Cluster
) -> Candidate:
  """A candidate with the formula's seconds and bytes."""
  varied = apply(config, changes)
  return Candidate(
    changes,
    varied,
    seconds_bound(varied, devices, cluster),
    estimated_bytes(varied),
  )


def apply(config: PretrainConfig, changes: dict[str, Any]) -> PretrainConfig:
  """The recipe with the changes: {"section.key": value}, and of the mesh a mapping."""
  sections: dict[str, dict[str, Any]] = {"mesh": dict(changes["mesh"])}
  for key, value in changes.items():
    if "." in key:
      section, name = key.split(".")
      sections.setdefault(section, {})[name] = value
  if "xla_options" in sections.get("train", {}):
    changed = sections["train"]["xla_options"]
    sections["train"]["xla_options"] = {**config.train.xla_options, **changed}
  if "compute" in sections:
    sections["compute"]["remat"] = "selective"
    if sections["compute"].get("attention") == "cudnn":
      sections["compute"]["max_segments"] = config.data.max_segments
  return dataclasses.replace(
    config, **{s: dataclasses.replace(getattr(config, s), **v) for s, v in sections.items()}
  )


def estimated_bytes(config: PretrainConfig) -> float:
  """A device's peak: state and two gradients in fp32, what is saved, and the loss's logits."""
  m, mesh = config.model, config.mesh
  average = config.average.fraction > 0
  state = 4 * (5 + average) * _parameters(m) / (mesh.fsdp * mesh.tensor)
  tokens = tokens_a_part(config)
  logits = 6 * m.vocab_size / mesh.tensor * tokens / config.compute.loss_chunks
  gathered = 6 * m.vocab_size * m.d_model / mesh.tensor
  return state + saved_bytes(config) + logits + gathered / 2


def seconds_bound(config: PretrainConfig, devices: int, cluster: Cluster) -> float:
  """Products, attention, least bytes, the tensor axis's sums and what the weights' traffic slows.

  Or that traffic alone, or the copies to the host and back, if they take longer.
  """
  m, mesh, c = config.model, config.mesh, cluster.constants
  tokens = config.data.batch_size * config.data.seq_len
  matrices = _parameters(m) - m.vocab_size * m.d_model
  kept = config.compute.remat_save + config.compute.remat_offload
  recomputed = sum(
    size * m.d_model * m.num_layers / 2
    for name, size in activation_bytes(config).items()
    if name not in kept and name not in ("inverse_rms", "attention_out", "attention_lse")
  )
  if "loss_slope" not in kept:
    recomputed += m.vocab_size * m.d_model
  products = (6 * matrices + 2 * recomputed) * tokens / devices / cluster.peak_flops
  products /= min(1.05 * c["gemm_efficiency"], cluster.bounds["gemm_efficiency"])
  kind = "flash" if config.compute.attention == "cudnn" else "pallas"
  square = m.num_layers * m.num_heads * m.head_dim * config.data.seq_len * tokens / devices
  times = 2 if "attention_out" not in kept else 1
  attention = square * (
    2 * times / c[f"{kind}_forward_efficiency"] + 5 / c[f"{kind}_backward_efficiency"]
  )
  sums = 0.0
  if mesh.tensor > 1:
    activation = int(2 * m.d_model * tokens_a_part(config))
    one = _traffic("all-reduce", activation, mesh.tensor, cluster, 1)
    sums = 4 * m.num_layers * config.train.microbatches * collective_seconds(one, cluster)
  weight = matrices / m.num_layers / mesh.tensor
  layer = [
    _traffic("all-gather", int(2 * weight), mesh.fsdp, cluster, mesh.tensor),
    _traffic("all-gather", int(2 * weight), mesh.fsdp, cluster, mesh.tensor),
    _traffic("reduce-scatter", int(4 * weight), mesh.fsdp, cluster, mesh.tensor),
  ]
  wire = sum(collective_seconds(t, cluster) for t in layer)
  wire *= m.num_layers * config.train.microbatches
  # Beside a collective, compute has fewer processors.
  slowed = wire * c["collective_processors"] / cluster.facts["streaming_multiprocessors"]
  # SwiGLU reads and writes 11 arrays of its hidden size, and norms, residuals and rotations 16 of
  # the model's.
  elements = 11 * m.d_ff / mesh.tensor + 16 * m.d_model
  memory = 2 * elements * m.num_layers * tokens / devices * mesh.tensor
  memory /= cluster.facts["hbm_bytes_per_second"] * c["hbm_efficiency"]
  offloaded = sum(activation_bytes(config)[name] for name in config.compute.remat_offload)
  copies = 2 * offloaded * m.num_layers * tokens / devices / host_copy_rates(cluster)[0]
  return max(products + attention / cluster.peak_flops + sums + memory + slowed, wire, copies)


@functools.cache
def _parameters(model: ModelConfig) -> int:
  return count(param_specs(model))


def _traffic(op: str, nbytes: int, members: int, cluster: Cluster, inner: int) -> Traffic:
  """Of groups whose members lie `inner` devices apart."""
  a_node = max(1, cluster.gpus_a_node // inner)
  nodes = math.ceil(members / a_node)
  return Traffic(op, "f16", nbytes, "", "", members, nodes)


def least(candidate: Candidate, found: list[Found], limit: int) -> float:
  """Seconds that a candidate takes at least, by its bound and by what others took over theirs.

  In line, also by what the same variant took with scanned layers.
  """
  changes, sizes = candidate.changes, ("mesh", "train.microbatches")
  alike = [f for f in found if all(f.changes.get(key) == changes[key] for key in sizes)]
  over = min((f.seconds / f.bound for f in alike if f.peak_bytes <= limit), default=1.0)
  expected = candidate.seconds * max(1.0, SPREAD * over)
  if changes["compute.scan_layers"]:
    return expected
  scanned = next(f for f in found if f.changes == changes | {"compute.scan_layers": True})
  if scanned.peak_bytes > limit + SLACK:
    return math.inf
  return max(expected, (IN_LINE if scanned.peak_bytes <= limit else CROWDED) * scanned.seconds)


def search(
  config: PretrainConfig,
  nodes: int,
  cluster: Cluster,
  *,
  minutes: float,
  cache: Path | None,
) -> tuple[list[Found], list[str]]:
  """Compiles candidates, the recipe itself first, for at most about `minutes`.

  A program with its layers in line takes several times as long to compile. So the first half of the
  time is for scanned layers, by their bounds. Then those are put in line, the fastest first, and
  XLA's options varied on the best of all. What cannot be faster than the best, by `least`, is left
  out.

  Returns:
    what was compiled, the fastest that fits first, and what was not because the time was up.
  """
  devices = nodes * cluster.gpus_a_node
  limit = cluster.usable_memory_bytes
  mesh = config.mesh.resolve(devices)
  config = dataclasses.replace(config, mesh=mesh)
  own = {"mesh": {"data": mesh.data, "fsdp": mesh.fsdp, "tensor": mesh.tensor}}
  everything = list(candidates(config, devices, cluster))
  fitting = [c for c in everything if c.nbytes < limit + SLACK]
  print(f"{len(everything):,} candidates, of which {len(fitting):,} may fit", flush=True)
  found: list[Found] = []
  late: list[Candidate] = []
  start = time.monotonic()

  def best() -> float:
    return min((f.seconds for f in found if f.peak_bytes <= limit), default=math.inf)

  def compile_next(candidate: Candidate) -> None:
    found.append(_compiled(candidate, nodes, cluster, cache))
    last = found[-1]
    fits = "" if last.peak_bytes <= limit else ", too large"
    print(
      f"  {len(found):>3}: {last.seconds:6.2f} s (at least {last.bound:.2f}), "
      f"{last.peak_bytes / GIB:5.1f} GiB{fits}; best {best():.2f}: {describe(last.changes)}",
      flush=True,
    )

  def may_win(candidate: Candidate) -> bool:
    return candidate.config != config and least(candidate, found, limit) < best()

  def compile_all(queue: Iterable[Candidate], share: float) -> None:
    for candidate in queue:
      if time.monotonic() - start > share * 60 * minutes:
        late.append(candidate)
      else:
        compile_next(candidate)

  compile_next(bounded(own, config, devices, cluster))
  scanned = [c for c in fitting if c.config.compute.scan_layers]
  compile_all(filter(may_win, sorted(scanned, key=lambda c: (c.seconds, c.nbytes))), 0.5)
  changes = [f.changes | {"compute.scan_layers": False} for f in ranked(found, limit)]
  in_line = [bounded(c, config, devices, cluster) for c in changes if "compute.remat_save" in c]
  compile_all(filter(may_win, in_line), 0.8)
  best_of_all = ranked(found, limit)[0].changes
  scans = best_of_all.get("compute.scan_layers", config.compute.scan_layers)
  options = [{"train.xla_options": o} for o in (*FLAGS, *(LOOP_FLAGS if scans else ()))]
  compile_all([bounded(best_of_all | o, config, devices, cluster) for o in options], 1)
  untried = [c for c in late if "train.xla_options" in c.changes or may_win(c)]
  return ranked(found, limit), [describe(c.changes) for c in untried]


def ranked(found: list[Found], limit: int) -> list[Found]:
  """The fastest that fits first."""
  return sorted(found, key=lambda f: (f.peak_bytes > limit, f.seconds))


def _compiled(candidate: Candidate, nodes: int, cluster: Cluster, cache: Path | None) -> Found:
  program = compile_program(candidate.config, nodes, cluster, cache)
  if not program.on_gpu:
    raise ValueError("--search compiles for GPUs; install the extra: pip install -e '.[plan]'.")
  module = hlo.parse(program.text)
  return Found(
    candidate.changes,
    candidate.seconds,
    estimate(module, program.mesh, cluster).seconds,
    memory(module, program, cluster)["peak_bytes"],
  )


def describe(changes: dict[str, Any]) -> str:
  """A candidate in a line; the recipe itself has only its mesh."""
  mesh = " x ".join(f"{name} {size}" for name, size in changes["mesh"].items() if size > 1)
  options = [f"{name}={value}" for name, value in changes.get("train.xla_options", {}).items()]
  if "compute.remat_save" not in changes:
    return ", ".join(["the recipe itself", mesh, *options])
  offloaded = changes["compute.remat_offload"]
  return ", ".join(
    [
      mesh,
      f"{changes['train.microbatches']} microbatches",
      changes["compute.attention"],
      "scanned" if changes["compute.scan_layers"] else "in line",
      "saves " + " ".join(changes["compute.remat_save"]),
      *([f"offloads {' '.join(offloaded)}"] if offloaded else []),
      *options,
    ]
  )


def table(found: list[Found], untried: list[str], limit: int) -> str:
  """Markdown: the fastest that fits first, the recipe beside it, and what was left untried."""
  lines = ["| step s | peak GiB | fits | |", "|---|---|---|---|"]
  for f in found:
    fits = "yes" if f.peak_bytes <= limit else "no"
    lines.append(f"| {f.seconds:.2f} | {f.peak_bytes / GIB:.1f} | {fits} | {describe(f.changes)} |")
  return "\n".join([*lines, "", verdict(found, limit), *_left(untried)])


def verdict(found: list[Found], limit: int) -> str:
  """The recipe and the fastest that fits, in a sentence."""
  own = next(f for f in found if f.changes.keys() == {"mesh"})
  if own.peak_bytes > limit:
    return f"The recipe does not fit: {own.peak_bytes / GIB:.1f} GiB of {limit / GIB:.1f}."
  slower = own.seconds / ranked(found, limit)[0].seconds - 1
  if slower == 0:
    return "The recipe is the fastest that fits."
  alike = f", which is alike: options that leave the work as it is differ by {ALIKE:.1%}"
  return f"The recipe is {slower:.1%} slower than the fastest{alike if slower <= ALIKE else ''}."


def _left(untried: list[str]) -> list[str]:
  if not untried:
    return ["No other variant can win by its estimate: the search came to its end."]
  return [
    f"Time was up before {len(untried)} that may win; started again, the search goes on with them:",
    *(f"- {what}" for what in untried),
  ]

"""A recipe on fewer and more nodes: what it keeps of its speed, and where it stops to fit.

    python -m train.plan --growth --config configs/pretrain_37b.py --html growth.html

Every size has as many rows a GPU as the recipe, so that the global batch grows with it, and its
weights over as many devices, where there are so many; the rest is `data`. Layers are scanned, which
is compiled in a tenth of the time, and save of what the recipe names as much as may fit.
"""

import dataclasses
import math
from pathlib import Path

from model.params import flops_per_token
from train import hlo
from train.cluster import Cluster
from train.config import PretrainConfig
from train.program import compile_program, memory
from train.schedule import estimate
from train.search import estimated_bytes

GIB = 2**30
NODES = (1, 8, 16, 64, 512)
# What layers may save no more, first what saves the least time for its bytes.
GIVEN_UP = ("attention_proj", "qkv", "mlp_gate", "mlp_up")


@dataclasses.dataclass(frozen=True)
class Size:
  """A recipe on some number of GPUs.

  Attributes:
    given_up: what its layers save no more.
    exposed: seconds of a step in which nothing hides a collective, by the mesh axes it joins.
    usable_bytes: of a device, for the run.
  """

  devices: int
  mesh: dict[str, int]
  peak_bytes: int
  usable_bytes: int
  seconds: float
  mfu: float
  given_up: tuple[str, ...]
  exposed: dict[str, float]

  @property
  def fits(self) -> bool:
    return self.peak_bytes <= self.usable_bytes


def resized(config: PretrainConfig, devices: int) -> PretrainConfig | None:
  """The recipe on `devices`, or None where tensor and context leave none for `fsdp`."""
  mesh = config.mesh
  inner = mesh.tensor * mesh.context
  if devices % inner:
    return None
  fsdp = math.gcd(mesh.fsdp, devices // inner)
  data = devices // inner // fsdp
  rows = config.data.batch_size // (mesh.data * mesh.fsdp) * data * fsdp
  return dataclasses.replace(
    config,
    mesh=dataclasses.replace(mesh, data=data, fsdp=fsdp),
    data=dataclasses.replace(config.data, batch_size=rows, streams=data * fsdp),
    eval=dataclasses.replace(config.eval, batch_size=data * fsdp),
    compute=dataclasses.replace(config.compute, scan_layers=True),
  )


def fitted(config: PretrainConfig, limit: int) -> PretrainConfig:
  """The recipe without as many of GIVEN_UP as it takes to fit, by the search's formula of bytes."""
  for i in range(len(GIVEN_UP) + 1):
    saved = tuple(name for name in config.compute.remat_save if name not in GIVEN_UP[:i])
    compute = dataclasses.replace(config.compute, remat_save=saved)
    less = dataclasses.replace(config, compute=compute)
    if estimated_bytes(less) <= limit:
      break
  return less


def grow(config: PretrainConfig, cluster: Cluster, cache: Path | None) -> list[Size]:
  """Plans of the recipe on NODES of the cluster. Its mesh must have sizes, not -1."""
  sizes = []
  for nodes in NODES:
    devices = nodes * cluster.gpus_a_node
    varied = resized(config, devices)
    if varied is None:
      continue
    varied = fitted(varied, cluster.usable_memory_bytes)
    program = compile_program(varied, nodes, cluster, cache)
    if not program.on_gpu:
      raise ValueError("--growth compiles for GPUs; install the extra: pip install -e '.[plan]'.")
    module = hlo.parse(program.text)
    step = estimate(module, program.mesh, cluster)
    exposed: dict[str, float] = {}
    for c in step.collectives:
      exposed[c.traffic.axis] = exposed.get(c.traffic.axis, 0.0) + c.exposed_seconds
    causal, _ = flops_per_token(varied.model, varied.data.seq_len)
    tokens = varied.data.batch_size * varied.data.seq_len / devices
    sizes.append(
      Size(
        devices=devices,
        mesh=program.mesh,
        peak_bytes=memory(module, program, cluster)["peak_bytes"],
        usable_bytes=cluster.usable_memory_bytes,
        seconds=step.seconds,
        mfu=tokens * causal / step.seconds / cluster.peak_flops,
        given_up=tuple(n for n in config.compute.remat_save if n not in varied.compute.remat_save),
        exposed=exposed,
      )
    )
    print(f"{devices:,} GPUs: {step.seconds:.1f} s a step, {sizes[-1].mfu:.1%} MFU", flush=True)
  return sizes


def best_of(sizes: list[Size]) -> Size:
  """What efficiency is relative to: the fastest that fits, or the fastest."""
  return max(sizes, key=lambda size: (size.fits, size.mfu))


def table(sizes: list[Size], base: Size) -> str:
  """Markdown, a size a row."""
  lines = [
    "| GPUs | mesh | not saved | peak GiB | step s | MFU | efficiency | exposed |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for size in sizes:
    mesh = ", ".join(f"{name} {n}" for name, n in size.mesh.items() if n > 1)
    worst = sorted(size.exposed.items(), key=lambda item: -item[1])[:2]
    exposed = ", ".join(f"{s:.1f} s over {axis}" for axis, s in worst if s >= 0.05)
    fits = "" if size.fits else ", does not fit"
    lines.append(
      f"| {size.devices:,} | {mesh} | {', '.join(size.given_up)} | "
      f"{size.peak_bytes / GIB:.1f}{fits} | {size.seconds:.1f} | "
      f"{size.mfu:.1%} | {size.mfu / base.mfu:.2f} | {exposed} |"
    )
  return "\n".join(lines)

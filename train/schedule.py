"""A walk over a compiled program's schedule with a clock: a step's time, and what of it waits.

Compute runs on one stream, collectives on another and copies to host memory on a third, as XLA's
GPU runtime has it. A start puts its collective behind those before it; a done makes compute wait
for the end, and that wait is what is exposed. While both are busy, compute has fewer processors: a
collective's channels hold the rest. Copies to host memory go over the link to the network card too,
and have what a collective between nodes leaves of it.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from train.cluster import Cluster
from train.cost import Kernel, Traffic, collective_seconds, host_copy_rates, kernel, traffic
from train.hlo import Computation, Instruction, Module


@dataclasses.dataclass
class Collective:
  """All executions of one collective instruction in a step."""

  traffic: Traffic
  source: str
  op_name: str
  count: int = 0
  seconds: float = 0.0
  exposed_seconds: float = 0.0


@dataclasses.dataclass
class Estimate:
  """A step's time: `waterfall` adds up to it; `by_scope` has what named scopes take of it."""

  waterfall: dict[str, float]
  by_scope: dict[str, float]
  collectives: list[Collective]
  flops: dict[str, float]
  rematerialized_flops: float
  host_bytes: int
  unknown_loops: int

  @property
  def seconds(self) -> float:
    return sum(self.waterfall.values())


class _Clock:
  """The two streams, and who keeps compute waiting."""

  def __init__(
    self,
    module: Module,
    mesh_shape: Mapping[str, int],
    cluster: Cluster,
    trips: int,
    scopes: Sequence[str],
  ):
    self.module, self.mesh_shape, self.cluster = module, mesh_shape, cluster
    self.trips, self.by_scope = trips, dict.fromkeys(scopes, 0.0)
    self.now = self.wire_free = self.nic_free = self.copied = 0.0
    self.ends: dict[str, float] = {}
    self.copies: dict[str, float] = {}  # to and from the host: bytes left at the time `copied`
    self.copy_rates = host_copy_rates(cluster)
    self.host_bytes = 0
    self.unknown_loops: set[str] = set()
    self.waterfall: dict[str, float] = collections.defaultdict(float)
    self.flops: dict[str, float] = collections.defaultdict(float)
    self.rematerialized = 0.0
    self.collectives: dict[str, Collective] = {}
    self.processors = cluster.facts["streaming_multiprocessors"]
    self.kernels: dict[tuple[str, str], Kernel | None] = {}

  def run(self, computation: Computation) -> None:
    for instruction in computation:
      if instruction.opcode == "while":
        body = self.module.computations[instruction.called("body")]
        trips = instruction.trip_count if instruction.has_trip_count else self.trips
        if not instruction.has_trip_count:
          self.unknown_loops.add(instruction.name)
        for _ in range(trips):
          self.run(body)
      elif instruction.opcode == "conditional":
        self._branch(instruction)
      elif instruction.opcode == "call":
        self.run(self.module.computations[instruction.called("to_apply")])
      elif instruction.collective:
        self._start(instruction, computation)
      elif instruction.opcode.endswith("-start") and instruction.host_bytes:
        self._start_host_copy(instruction)
      elif instruction.opcode.endswith("-done"):
        self._done(instruction.operands[0])
      else:
        self._compute(instruction, computation)

  def _branch(self, instruction: Instruction) -> None:
    """Takes the branch with the fewest instructions: the other is of rare steps (snapshots)."""
    branches = [self.module.computations[name] for name in instruction.branches]
    self.run(min(branches, key=lambda branch: len(branch.instructions)))

  def _start(self, instruction: Instruction, computation: Computation) -> None:
    if instruction.name not in self.collectives:
      named = _named(instruction, computation)
      self.collectives[instruction.name] = Collective(
        traffic(instruction, self.mesh_shape, self.cluster.gpus_a_node),
        self.module.source(named),
        named.op_name,
      )
    entry = self.collectives[instruction.name]
    seconds = collective_seconds(entry.traffic, self.cluster)
    self._copy_until_now()  # by the collectives before this one
    self.wire_free = max(self.now, self.wire_free) + seconds
    if entry.traffic.nodes > 1:
      self.nic_free = self.wire_free
    self.ends[instruction.name] = self.wire_free
    entry.count += 1
    entry.seconds += seconds
    if not instruction.opcode.endswith("-start"):
      self._done(instruction.name)

  def _start_host_copy(self, instruction: Instruction) -> None:
    """A copy to or from pinned host memory, by the copy engine, behind those before it."""
    self._copy_until_now()
    self.copies[instruction.name] = instruction.host_bytes
    self.host_bytes += instruction.host_bytes

  def _copy_until_now(self) -> None:
    """Moves the copies' bytes; those that are done leave."""
    for name, left in list(self.copies.items()):
      end = self._copy_end(self.copied, left)
      if end > self.now:
        alone, beside = self.copy_rates
        shared = min(max(self.nic_free - self.copied, 0.0), self.now - self.copied)
        self.copies[name] = left - shared * beside - (self.now - self.copied - shared) * alone
        break
      self.copied = end
      del self.copies[name]
    self.copied = self.now

  def _copy_end(self, start: float, nbytes: float) -> float:
    """When a copy that begins at `start` ends, if no further collective does."""
    alone, beside = self.copy_rates
    shared = max(self.nic_free - start, 0.0)
    if nbytes < shared * beside:
      return start + nbytes / beside
    return start + shared + (nbytes - shared * beside) / alone

  def _done(self, start: str) -> None:
    if start in self.copies:
      self._copy_until_now()
      end = self.now
      for name, left in self.copies.items():
        end = self._copy_end(end, left)
        if name == start:
          self._spend("exposed host copy", end - self.now, "")
          break
      self._copy_until_now()
    if start not in self.ends:
      return  # of a fusion on another stream, which counted when it started
    entry = self.collectives[start]
    wait = max(0.0, self.ends.pop(start) - self.now)
    entry.exposed_seconds += wait
    self._spend(f"exposed {entry.traffic.op}", wait, entry.op_name)

  def _compute(self, instruction: Instruction, computation: Computation) -> None:
    key = (computation.name, instruction.name)
    if key not in self.kernels:
      self.kernels[key] = kernel(instruction, computation, self.module, self.cluster)
    cost = self.kernels[key]
    if cost is None:
      return
    shared = self._shared_seconds(cost.seconds)
    self._spend(cost.category, cost.seconds, instruction.op_name)
    self._spend("slowed by collectives", shared, instruction.op_name)
    self.flops[cost.category] += cost.flops
    if "rematted_computation" in instruction.op_name:
      self.rematerialized += cost.flops

  def _spend(self, category: str, seconds: float, op_name: str) -> None:
    self.now += seconds
    self.waterfall[category] += seconds
    for scope in self.by_scope:
      if f"/{scope}/" in op_name:
        self.by_scope[scope] += seconds

  def _shared_seconds(self, seconds: float) -> float:
    """What a kernel of `seconds` takes longer, while a collective holds some of the processors."""
    busy = max(0.0, self.wire_free - self.now)
    rate = 1 - self.cluster.constants["collective_processors"] / self.processors
    return min(seconds / rate, busy) * (1 - rate)


def _named(instruction: Instruction, computation: Computation) -> Instruction:
  """Itself, or what it takes, where XLA merged several and kept the name of none."""
  operand = instruction
  while not operand.op_name and operand.operands:
    if operand.operands[0] not in computation.instructions:
      break
    operand = computation.instructions[operand.operands[0]]
  return operand


def estimate(
  module: Module,
  mesh_shape: Mapping[str, int],
  cluster: Cluster,
  trips: int = 1,
  scopes: Sequence[str] = (),
) -> Estimate:
  """Walks the program once, loops as often as they run.

  Args:
    module: the parsed text of a program compiled for GPUs.
    mesh_shape: sizes of the mesh's axes in their order, whose product is the partitions.
    cluster: what the constants are of.
    trips: how often a loop runs that does not say it.
    scopes: names of jax's named scopes, to tell what is spent in each.
  """
  clock = _Clock(module, mesh_shape, cluster, trips, scopes)
  clock.run(module.entry)
  return Estimate(
    waterfall=dict(clock.waterfall),
    by_scope=clock.by_scope,
    collectives=list(clock.collectives.values()),
    flops=dict(clock.flops),
    rematerialized_flops=clock.rematerialized,
    host_bytes=clock.host_bytes,
    unknown_loops=len(clock.unknown_loops),
  )


def collectives(step: Estimate, timed: bool) -> list[dict[str, Any]]:
  """A line for each kind of traffic from one place, the most exposed first; bytes of one step."""
  lines: dict[tuple, dict[str, Any]] = {}
  for entry in step.collectives:
    t = entry.traffic
    where = entry.source or entry.op_name.rsplit("/", 1)[0]
    backward = "transpose(" in entry.op_name
    line = lines.setdefault(
      (t, where, backward),
      {
        "op": t.op,
        "bytes": 0,
        "dtype": t.dtype,
        "axis": t.axis,
        "link": t.link,
        "count": 0,
        "seconds": 0.0,
        "exposed_seconds": 0.0,
        "source": where,
        "backward": backward,
      },
    )
    line["count"] += entry.count
    line["bytes"] += entry.count * t.nbytes
    line["seconds"] += entry.seconds
    line["exposed_seconds"] += entry.exposed_seconds
  if not timed:
    for line in lines.values():
      line["seconds"] = line["exposed_seconds"] = None
  return sorted(lines.values(), key=lambda line: (-(line["exposed_seconds"] or 0), -line["bytes"]))


def sensitivity(
  module: Module, mesh_shape: Mapping[str, int], cluster: Cluster, change: float = 0.1
) -> dict[str, tuple[float, float]]:
  """Step seconds with each constant less and more by `change`, one at a time."""
  return {
    name: tuple(
      estimate(module, mesh_shape, cluster.scaled(name, factor)).seconds
      for factor in (1 - change, 1 + change)
    )
    for name in cluster.constants
  }

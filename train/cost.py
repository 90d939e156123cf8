"""What the parts of a compiled program cost on a cluster: kernels and collectives, one at a time.

GEMMs cost by their shapes, attention kernels by their FLOPs, everything else by the bytes that it
moves; collectives by bytes, rings and hops. The constants and their sources are in
`train/clusters/*.json`.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from train.cluster import Cluster
from train.hlo import Computation, Instruction, Module

FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
  "replica-id", "opt-barrier", "optimization-barrier", "async-update", "domain", "iota",
}  # fmt: skip
TILE_M, TILE_N = 128, 256  # of a large GEMM on Hopper
SKINNY = 64  # rows up to which kernels split the contraction over all processors


@dataclasses.dataclass(frozen=True)
class Traffic:
  """One collective instruction.

  Attributes:
    op: "all-gather", ...
    dtype: of what it carries.
    nbytes: the whole payload of one execution: what is gathered, or what is reduced.
    axis: the mesh axes whose devices it joins, "fsdp" or "data,fsdp".
    link: "NVLink" where all of a group is on one node, else "InfiniBand".
    members: devices of a group.
    nodes: nodes that a group lies on.
  """

  op: str
  dtype: str
  nbytes: int
  axis: str
  link: str
  members: int
  nodes: int


def traffic(instruction: Instruction, mesh_shape: Mapping[str, int], gpus_a_node: int) -> Traffic:
  """Reads a collective; partition p is the p-th device of the mesh, on node p // gpus_a_node."""
  group = instruction.groups(math.prod(mesh_shape.values()))[0]
  coordinates = np.unravel_index(group, tuple(mesh_shape.values()))
  axes = [n for n, c in zip(mesh_shape, coordinates, strict=True) if len(set(c.tolist())) > 1]
  nodes = len(set((group // gpus_a_node).tolist()))
  arrays, op = instruction.arrays, instruction.collective
  if instruction.opcode.endswith("-start") and len(arrays) > len(instruction.operands):
    half = len(arrays) // 2  # operands, then results
    nbytes = max(sum(a.nbytes for a in arrays[:half]), sum(a.nbytes for a in arrays[half:]))
  else:
    nbytes = instruction.nbytes * (len(group) if op == "reduce-scatter" else 1)
  return Traffic(
    op=op,
    dtype=max(arrays, key=lambda a: a.nbytes).dtype,
    nbytes=nbytes,
    axis=",".join(axes),
    link="NVLink" if nodes == 1 else "InfiniBand",
    members=len(group),
    nodes=nodes,
  )


def collective_seconds(t: Traffic, cluster: Cluster) -> float:
  """Rings of NCCL, as its own tuner models them: hops in a row, and bytes over the slowest link.

  A ring enters and leaves a node once, so a group with r devices on a node has r network cards for
  r rings. An all-reduce goes round twice, or, where that is faster, up and down a tree of nodes. In
  an all-to-all, and between a pair, a device sends for itself, over its own card what leaves the
  node.
  """
  if t.members == 1:
    return 0.0
  facts, c = cluster.facts, cluster.constants
  a_node = t.members / t.nodes
  rounds = 2 if t.op == "all-reduce" else 1
  link = facts["nvlink_bytes_per_second"]
  if t.nodes > 1 and t.op in ("all-gather", "all-reduce", "reduce-scatter"):
    link = min(link, a_node * facts["nic_bytes_per_second"])
  elif t.nodes > 1:
    link = facts["nic_bytes_per_second"]
  if t.op in ("all-to-all", "ragged-all-to-all"):
    share = (t.members - a_node) / t.members if t.nodes > 1 else (t.members - 1) / t.members
    wire, hops_inside, hops_between = t.nbytes * share, 0, t.nodes
  elif t.op == "collective-permute":
    wire, hops_inside, hops_between = t.nbytes, 1, int(t.nodes > 1)
  else:
    wire = t.nbytes * (t.members - 1) / t.members
    hops_inside, hops_between = t.members - t.nodes, t.nodes - 1 if t.nodes > 1 else 0
  hops = hops_inside * c["ring_intra_seconds"] + hops_between * c["ring_inter_seconds"]
  seconds = hops + wire / (link * c["link_efficiency"])
  if t.op == "all-reduce":
    depth = (a_node - 1) * c["ring_intra_seconds"] + math.log2(t.nodes) * c["ring_inter_seconds"]
    seconds = min(seconds, depth + t.nbytes / (link * c["link_efficiency"]))
  return rounds * seconds + c["launch_seconds"]


def host_copy_rates(cluster: Cluster) -> tuple[float, float]:
  """Bytes a second of a copy between a GPU and its host: alone, and beside traffic between nodes.

  A network card reads and writes a GPU's memory over the GPU's own PCIe link (GPUDirect RDMA), both
  ways at once in a ring, and a copy has what is left of it.
  """
  facts, c = cluster.facts, cluster.constants
  alone = facts["pcie_bytes_per_second"] * c["pcie_efficiency"]
  return alone, max(0.0, alone - facts["nic_bytes_per_second"] * c["link_efficiency"])


@dataclasses.dataclass(frozen=True)
class Gemm:
  """A product of `batch` matrices [m, k] and [k, n]."""

  batch: int
  m: int
  n: int
  k: int

  @property
  def flops(self) -> float:
    return 2.0 * self.batch * self.m * self.n * self.k


def gemm_seconds(gemm: Gemm, cluster: Cluster) -> float:
  """By waves of output tiles over the processors, and by the depth of the contraction.

  The curve is 1 at 8192 x 8192 x 8192, where `gemm_efficiency` holds. A product with so few rows
  that it streams its other matrix, as in decoding, is at that rate: its bytes take longer, and are
  what `kernel` counts.
  """
  c, sms = cluster.constants, cluster.facts["streaming_multiprocessors"]
  if min(gemm.m, gemm.n) <= SKINNY:
    return gemm.flops / (cluster.peak_flops * c["gemm_efficiency"])

  def curve(batch, m, n, k):
    tiles = batch * min(
      math.ceil(m / TILE_M) * math.ceil(n / TILE_N), math.ceil(m / TILE_N) * math.ceil(n / TILE_M)
    )
    useful = batch * m * n / (TILE_M * TILE_N)
    return useful / (math.ceil(tiles / sms) * sms) * k / (k + c["gemm_depth"])

  relative = curve(gemm.batch, gemm.m, gemm.n, gemm.k) / curve(1, 8192, 8192, 8192)
  rate = cluster.peak_flops * min(
    c["gemm_efficiency"] * relative, cluster.bounds["gemm_efficiency"]
  )
  return gemm.flops / rate


def gemm_of(dot: Instruction, inside: Computation) -> Gemm:
  """The shape of a dot instruction."""
  lhs, rhs = (inside.instructions[name].arrays[0].shape for name in dot.operands[:2])
  batch = dot.dimensions("lhs_batch_dims")
  k_dims = dot.dimensions("lhs_contracting_dims")
  b, k = (math.prod(lhs[d] for d in dims) for dims in (batch, k_dims))
  return Gemm(b, math.prod(lhs) // (b * k), math.prod(rhs) // (b * k), k)


@dataclasses.dataclass(frozen=True)
class Kernel:
  """What one instruction of the compute stream does.

  Attributes:
    category: "gemm", "attention", "optimizer" or "memory_bound".
    flops: on tensor cores, of the causal half in attention.
    nbytes: read and written.
    seconds: by the model.
  """

  category: str
  flops: float
  nbytes: int
  seconds: float


def kernel(
  instruction: Instruction, inside: Computation, module: Module, cluster: Cluster
) -> Kernel | None:
  """The cost of an instruction of `inside`; None of what runs nothing."""
  if instruction.opcode in FREE:
    return None
  c = cluster.constants
  nbytes = moved_bytes(instruction, inside, module)
  memory = nbytes / (cluster.facts["hbm_bytes_per_second"] * c["hbm_efficiency"])
  launch = c["launch_seconds"]
  if attention := attention_kernel(instruction, inside):
    flops, constant = attention
    seconds = flops / (cluster.peak_flops * c[constant])
    return Kernel("attention", flops, nbytes, max(seconds, memory) + launch)
  gemms = [gemm_of(dot, where) for dot, where in _dots(instruction, inside, module)]
  if gemms:
    seconds = sum(gemm_seconds(gemm, cluster) for gemm in gemms)
    flops = sum(gemm.flops for gemm in gemms)
    return Kernel("gemm", flops, nbytes, max(seconds, memory) + launch)
  category = "optimizer" if "/optimizer/" in instruction.op_name else "memory_bound"
  return Kernel(category, 0.0, nbytes, memory + launch)


def attention_kernel(instruction: Instruction, inside: Computation) -> tuple[float, str] | None:
  """Causal FLOPs of an attention custom call and the constant of its rate, else None.

  Forward has two products of a query-key pair and backward five.
  """
  target = instruction.custom_target or ""
  if instruction.opcode != "custom-call":
    return None
  if "fmha" in target:
    kind, backward = "flash", "Backward" in target
  elif "pallas_call" in instruction.op_name and "mha_" in instruction.op_name:
    if "preprocess" in instruction.op_name:
      return None
    kind, backward = "pallas", "mha_backward" in instruction.op_name
  else:
    return None
  B, L, N, K = inside.instructions[instruction.operands[0]].arrays[0].shape
  flops = (5 if backward else 2) * 2 * B * N * K * L * L / 2
  return flops, f"{kind}_{'backward' if backward else 'forward'}_efficiency"


def _dots(instruction: Instruction, inside: Computation, module: Module):
  """The matrix products in an instruction, with the computation that each stands in."""
  if instruction.opcode == "dot" or (
    instruction.opcode == "custom-call" and "__cublas" in (instruction.custom_target or "")
  ):
    yield instruction, inside
  elif (called := instruction.called("calls")) in module.computations:
    for inner in module.computations[called]:
      yield from _dots(inner, module.computations[called], module)


def moved_bytes(instruction: Instruction, inside: Computation, module: Module) -> int:
  """Bytes read and written: of a sliced operand the slice, of an update in place the update."""
  called = instruction.called("calls")
  if called not in module.computations:
    operands = [inside.instructions[n] for n in instruction.operands if n in inside.instructions]
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
      return 2 * instruction.nbytes
    if instruction.opcode == "dynamic-update-slice":
      return 2 * operands[1].nbytes
    return instruction.nbytes + sum(o.nbytes for o in operands)
  body = module.computations[called]
  total = 0
  for parameter in (i for i in body if i.opcode == "parameter"):
    total += _read(parameter, body)
  root = body.root
  results = [body.instructions[n] for n in root.operands] if root.opcode == "tuple" else [root]
  return total + sum(_written(result, body) for result in results)


def _read(value: Instruction, body: Computation) -> int:
  users = body.users[value.name]
  through = ("bitcast", "reshape", "copy", "transpose", "convert")
  if users and all(u.opcode in through for u in users):
    return min(value.nbytes, max(_read(u, body) for u in users))
  if users and all(u.opcode in ("dynamic-slice", "slice", "gather") for u in users):
    return min(value.nbytes, sum(u.nbytes for u in users))
  if users and all(
    u.opcode == "dynamic-update-slice" and u.operands[0] == value.name for u in users
  ):
    return 0
  return value.nbytes


def _written(result: Instruction, body: Computation) -> int:
  while result.opcode in ("bitcast", "reshape") and result.operands[0] in body.instructions:
    result = body.instructions[result.operands[0]]
  if result.opcode == "dynamic-update-slice":
    return body.instructions[result.operands[1]].nbytes
  return result.nbytes

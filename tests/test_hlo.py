"""The parser of compiled programs, on a program of 16 H100s (fixtures/make_hlo.py)."""

from pathlib import Path

import numpy as np
import pytest

from train import hlo
from train.cost import attention_kernel, gemm_of, moved_bytes, traffic

TEXT = (Path(__file__).parent / "fixtures" / "hlo_16xh100.txt").read_text()
MESH = {"data": 2, "fsdp": 8, "context": 1, "tensor": 1}
LAYERS, L, N, K = 3, 1024, 4, 64
D = N * K


@pytest.fixture(scope="module")
def module():
  return hlo.parse(TEXT)


def loops(module):
  return [i for c in module.computations.values() for i in c if i.opcode == "while"]


def test_no_line_of_the_program_is_lost(module):
  lines = [line for line in TEXT.split("\n") if line.startswith("  ") and " = " in line]
  assert sum(len(list(c)) for c in module.computations.values()) == len(lines) > 200
  for computation in module.computations.values():
    assert computation.root.is_root
    for instruction in computation:
      if instruction.opcode not in ("parameter", "constant"):
        assert all(name in computation.instructions for name in instruction.operands)


def test_a_loop_a_pass_with_its_trip_count(module):
  assert [i.trip_count for i in loops(module)] == [LAYERS, LAYERS]
  assert ["transpose(" in i.op_name for i in loops(module)].count(True) == 1


def test_every_start_has_one_done_later_in_the_schedule(module):
  for computation in module.computations.values():
    names = list(computation.instructions)
    for start in computation:
      if start.collective:
        users = [i for i in computation if start.name in i.operands]
        assert [u.opcode for u in users] == [start.opcode.replace("-start", "-done")]
        assert names.index(users[0].name) > names.index(start.name)


def test_gemms_have_the_shapes_that_were_written(module):
  gemms = [
    gemm_of(dot, computation)
    for computation in module.computations.values()
    for dot in computation
    if dot.opcode == "dot"
  ]
  # A row a device: forward, the input's gradient, and the weight's, which XLA splits over the rows.
  assert sorted((g.m, g.n, g.batch * g.k) for g in gemms) == sorted(
    [(L, D, D), (L, D, D), (D, D, L)]
  )
  assert all(g.flops == 2 * L * D * D for g in gemms)


def test_attention_counts_causal_flops_forward_once_and_backward_once(module):
  costs = [
    found
    for computation in module.computations.values()
    for instruction in computation
    if (found := attention_kernel(instruction, computation))
  ]
  forward = 2 * 2 * N * K * L * L / 2
  assert sorted(costs) == [
    (forward, "pallas_forward_efficiency"),
    (2.5 * forward, "pallas_backward_efficiency"),
  ]


def test_collectives_know_their_axis_and_link(module):
  found = {
    (t.op, t.dtype, t.nbytes, t.axis, t.link, t.members, t.nodes)
    for computation in module.computations.values()
    for instruction in computation
    if instruction.collective
    for t in [traffic(instruction, MESH, gpus_a_node=8)]
  }
  assert found == {
    ("all-gather", "f16", 2 * D * D, "fsdp", "NVLink", 8, 1),  # weights, cast before
    ("reduce-scatter", "f16", 2 * D * D, "fsdp", "NVLink", 8, 1),  # their gradients
    ("all-reduce", "f16", 2 * D * D // 8, "data", "InfiniBand", 2, 2),  # the parts of them
  }


def test_source_lines_are_ours(module):
  gathers = [i for c in module.computations.values() for i in c if i.collective == "all-gather"]
  source = (Path(__file__).parent / "fixtures" / "make_hlo.py").read_text().split("\n")
  for gather in gathers:
    file, line = module.source(gather).split(":")
    assert file == "fixtures/make_hlo.py" and "einsum" in source[int(line) - 1]


def test_a_slice_of_a_stack_counts_as_a_slice(module):
  for computation in module.computations.values():
    for instruction in computation:
      body = module.computations.get(instruction.called("calls") or "")
      if body and any(i.opcode.startswith("dynamic-") for i in body):
        assert moved_bytes(instruction, computation, module) < LAYERS * L * D * 2, instruction.name


@pytest.mark.parametrize(
  ("text", "groups"),
  [
    ("replica_groups={{0,1},{2,3}}, x={1}", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}, dimensions={0}", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
    ("source_target_pairs={{0,1},{1,2},{2,3},{3,0}}", [[0, 1], [1, 2], [2, 3], [3, 0]]),
    ("replica_groups={}, channel_id=1", [[0, 1, 2, 3]]),
  ],
)
def test_groups_in_every_notation(text, groups):
  np.testing.assert_array_equal(hlo.parse_groups(text, 4), groups)


def test_bytes_of_types():
  sizes = {"f32": 4, "bf16": 2, "pred": 1, "s4": 0.5, "f8e4m3fn": 1, "c64": 8, "token": 0}
  for dtype, size in sizes.items():
    assert hlo.Array(dtype, (4, 2)).nbytes == 8 * size, dtype


def test_text_without_a_program_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    hlo.parse("HloModule m\n")

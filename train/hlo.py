"""A compiled XLA program, read from its text: computations, instructions, loops, device groups.

The text of `jax.stages.Compiled.as_text()` is scheduled: a computation's instructions stand in the
order in which they are issued, with collectives split in a start and a done. Only what a cost model
reads is parsed; everything else of an instruction stays in `attributes`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16}
COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
  "collective-broadcast",
  "ragged-all-to-all",
)

# Functions of ours that many lines call: the caller's line says more.
HELPERS = ("linear", "project", "_project_forward", "_project_backward")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$", re.DOTALL)
_ARRAY = re.compile(r"\b([a-z]+[0-9]*(?:e[0-9]+m[0-9]+\w*)?)\[([0-9,]*)\](\{[^{}]*S\(5\)[^{}]*\})?")


@dataclasses.dataclass(frozen=True)
class Array:
  """The type of one array of a result; `on_host`, XLA's memory space 5, is pinned host memory."""

  dtype: str
  shape: tuple[int, ...]
  on_host: bool = False

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @property
  def nbytes(self) -> int:
    digits = re.search(r"\d+", self.dtype)
    bits = BITS.get(self.dtype, int(digits.group()) if digits else 0)
    return math.ceil(self.size * bits / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction; `arrays` are its results', with the tuples of a start flattened."""

  name: str
  opcode: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  attributes: str
  is_root: bool

  @property
  def nbytes(self) -> int:
    return sum(array.nbytes for array in self.arrays)

  @functools.cached_property
  def op_name(self) -> str:
    """The path of named scopes and primitives that jax gave it."""
    return self._match(r'op_name="([^"]*)"') or ""

  @functools.cached_property
  def collective(self) -> str | None:
    """ "all-gather" of an all-gather and of its start; None of anything else, a done included."""
    kind = self.opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else None

  @property
  def host_bytes(self) -> int:
    """What it moves between host and device, of a start that says so in its type; else 0."""
    if not any(array.on_host for array in self.arrays):
      return 0
    return max((a.nbytes for a in self.arrays if not a.on_host), default=0)

  @functools.cached_property
  def trip_count(self) -> int:
    """How often the body of a while loop runs; 1 where XLA could not tell."""
    return int(self._match(r'"known_trip_count":\{"n":"(\d+)"\}') or 1)

  @property
  def has_trip_count(self) -> bool:
    return "known_trip_count" in self.attributes

  def called(self, attribute: str) -> str | None:
    """The computation under an attribute: `calls`, `body`, `to_apply`."""
    return self._match(rf"\b{attribute}=%?([\w.\-]+)")

  @functools.cached_property
  def branches(self) -> tuple[str, ...]:
    """The computations of a conditional."""
    listed = self._match(r"branch_computations=\{([^}]*)\}")
    if listed is None:
      names = [self.called("true_computation"), self.called("false_computation")]
      return tuple(name for name in names if name)
    return tuple(name.strip().lstrip("%") for name in listed.split(","))

  @functools.cached_property
  def custom_target(self) -> str | None:
    return self._match(r'custom_call_target="([^"]*)"')

  def dimensions(self, attribute: str) -> tuple[int, ...]:
    """Integers of an attribute such as `lhs_contracting_dims={1,2}`, or, of cuBLAS, as in JSON."""
    listed = self._match(rf"\b{attribute}=\{{([0-9,]*)\}}")
    if listed is None:
      name = attribute.replace("_dims", "_dimensions")
      listed = (self._match(rf'"{name}":\[([0-9",]*)\]') or "").replace('"', "")
    return tuple(int(d) for d in listed.split(",") if d)

  def groups(self, devices: int) -> np.ndarray:
    """Partitions that communicate with each other, [groups, members]."""
    return parse_groups(self.attributes, devices)

  def _match(self, pattern: str) -> str | None:
    found = re.search(pattern, self.attributes)
    return found.group(1) if found else None


@dataclasses.dataclass(frozen=True)
class Computation:
  """Instructions by name, in the order of the schedule."""

  name: str
  instructions: Mapping[str, Instruction]

  def __iter__(self) -> Iterator[Instruction]:
    return iter(self.instructions.values())

  @functools.cached_property
  def root(self) -> Instruction:
    return next(i for i in self if i.is_root)

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """The instructions that read each one."""
    users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
    for instruction in self:
      for operand in dict.fromkeys(instruction.operands):
        if operand in users:
          users[operand].append(instruction)
    return users


@dataclasses.dataclass(frozen=True)
class Module:
  """A whole program; `frames` maps a stack frame's id to its (file, line, function, parent id)."""

  computations: Mapping[str, Computation]
  entry: Computation
  frames: Mapping[int, tuple[str, int, str, int]]

  def source(self, instruction: Instruction, within: str = "") -> str:
    """ "file.py:12", the innermost line whose path contains `within` and that no `HELPERS` is on.

    "" where none is known.
    """
    found = re.search(r"\bstack_frame_id=(\d+)", instruction.attributes)
    frame = int(found.group(1)) if found else 0
    while frame in self.frames:
      file, line, function, parent = self.frames[frame]
      if within in file and function not in HELPERS:
        return f"{'/'.join(file.split('/')[-2:])}:{line}"
      frame = parent
    return ""


def parse(text: str) -> Module:
  """Reads a module. Raises ValueError unless it has an entry computation."""
  computations: dict[str, Computation] = {}
  entry, current = None, None
  for line in text.split("\n"):
    if header := _COMPUTATION.match(line):
      current = {}
      name = header.group(2)
      computations[name] = Computation(name, current)
      entry = name if header.group(1) else entry
    elif line == "}":
      current = None
    elif current is not None and (found := _INSTRUCTION.match(line)):
      instruction = _instruction(*found.groups())
      current[instruction.name] = instruction
  if entry is None:
    raise ValueError("the text has no ENTRY computation; pass Compiled.as_text() as it is.")
  return Module(computations, computations[entry], _frames(text))


def _instruction(root: str | None, name: str, rest: str) -> Instruction:
  end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
  kind, rest = rest[:end], rest[end:].lstrip()
  opening = rest.index("(")
  closing = _closing(rest, opening)
  arrays = tuple(
    Array(dtype, tuple(int(d) for d in dims.split(",") if d), bool(space))
    for dtype, dims, space in _ARRAY.findall(kind)
  )
  inside = rest[opening + 1 : closing]
  operands = tuple(re.findall(r"%([\w.\-]+)", inside))
  if rest[:opening] in ("parameter", "constant"):
    operands = (inside,)  # a parameter's number
  return Instruction(name, rest[:opening], arrays, operands, rest[closing + 1 :], bool(root))


def _closing(text: str, opening: int) -> int:
  """Where the parenthesis that opens at `opening` closes."""
  depth = 0
  for found in re.compile(r"[()]").finditer(text, opening):
    depth += 1 if found.group() == "(" else -1
    if depth == 0:
      return found.start()
  return len(text)


def _frames(text: str) -> dict[int, tuple[str, int, str, int]]:
  """The tables of source lines that stand before the computations."""

  def section(name, pattern):
    found = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
    return re.findall(pattern, found.group(1), re.MULTILINE) if found else []

  files = dict(section("FileNames", r'^(\d+) "(.*)"$'))
  functions = dict(section("FunctionNames", r'^(\d+) "(.*)"$'))
  locations = {
    number: (files.get(file, ""), int(line), functions.get(function, ""))
    for number, file, function, line in section(
      "FileLocations", r"^(\d+) \{file_name_id=(\d+) function_name_id=(\d+) line=(\d+)"
    )
  }
  frames = section("StackFrames", r"^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)\}")
  # XLA writes the parent's id plus one, so that 1 says there is none.
  return {
    int(n): (*locations.get(where, ("", 0, "")), int(parent) - 1) for n, where, parent in frames
  }


def parse_groups(attributes: str, devices: int) -> np.ndarray:
  """Partition ids [groups, members] of any of XLA's notations of `replica_groups`.

  They are {{0,1},{2,3}}, iota's [2,2]<=[4] or [2,2]<=[2,2]T(1,0), and a mesh, its devices perhaps
  in another order, with the names of the axes that communicate. Pairs of a collective-permute
  are groups of two; {} is everybody.
  """
  mesh = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\[.*?)\))? \{([^}]*)\}"
  if found := re.search(mesh, attributes):
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found.group(1))}
    ids = _iota(found.group(2) or f"[{math.prod(sizes.values())}]").reshape(-1)
    axes, chosen = list(sizes), []
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", found.group(3)):
      chosen.append((axes.index(name), int(before or 1), int(size or sizes[name])))
    return ids[_mesh_groups(list(sizes.values()), chosen)]
  if found := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
    return _iota(found.group(2)).reshape([int(d) for d in found.group(1).split(",")])
  listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", attributes)
  if listed:
    groups = re.findall(r"\{([\d,]*)\}", listed.group(1))
    return np.array([[int(d) for d in group.split(",")] for group in groups])
  return np.arange(devices)[None]


def _iota(text: str) -> np.ndarray:
  """ "[2,8]" is 0 to 15 in that shape, and "[2,8]T(1,0)" its transpose."""
  shape, order = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
  ids = np.arange(math.prod(int(d) for d in shape.split(",")))
  ids = ids.reshape([int(d) for d in shape.split(",")])
  return ids.transpose([int(d) for d in order.split(",")]) if order else ids


def _mesh_groups(shape: list[int], chosen: list[tuple[int, int, int]]) -> np.ndarray:
  """Groups over (axis, parts before, size), the parts of an axis that communicate."""
  split, inside = [], []
  for axis, size in enumerate(shape):
    at = 1
    for _, before, part in sorted(c for c in chosen if c[0] == axis):
      if before > at:
        split.append(before // at)
      inside.append(len(split))
      split.append(part)
      at = before * part
    split.append(size // at)
  outside = [i for i in range(len(split)) if i not in inside]
  ids = np.arange(math.prod(split)).reshape(split).transpose(outside + inside)
  return ids.reshape(-1, math.prod(split[i] for i in inside))

"""A minute on every node before a long run: which GPU, link or disk is off the median?

  python -m train.preflight
  srun python -m train.preflight --storage /shared/runs

Measures, on each process, the rate of matrix products and of memory on each of its devices, an
all-reduce over its devices, an all-reduce with the next process, storage, and the clock against
process 0's. Process 0 prints a table and names what is slower than the median by more than
--tolerance. Start it as the run will be started: by Slurm, by a JobSet, or with --coordinator,
--processes and --process_id. Exit codes: 0 all alike, 2 bad input, 3 something is off.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train import distributed

DONE, BAD_INPUT, OFF = 0, 2, 3

_REPEATS = 5


@dataclasses.dataclass(frozen=True)
class Sizes:
  """How much work each measurement does.

  Attributes:
    matrix: rows and columns of the matrices that are multiplied.
    dtype: of them.
    memory: bytes that are read and written; collective: bytes that each device reduces.
    file: bytes that are written to storage and read back.
  """

  matrix: int
  dtype: str
  memory: int
  collective: int
  file: int


GPU = Sizes(matrix=8_192, dtype="float16", memory=2**32, collective=2**28, file=2**30)
CPU = Sizes(matrix=512, dtype="float32", memory=2**25, collective=2**20, file=2**24)


@dataclasses.dataclass(frozen=True)
class Reading:
  """One measurement of one thing.

  Attributes:
    what: the measurement; readings of the same kind are compared.
    where: the thing: "process 3 device 1", or "processes 3-4" for a link.
    value: in `unit`; larger is better, but for the clock's offset.
  """

  what: str
  where: str
  value: float
  unit: str


def _seconds(call: Callable[[], object]) -> float:
  """The median time of a call, after one that compiles."""
  jax.block_until_ready(call())
  times = []
  for _ in range(_REPEATS):
    began = time.perf_counter()
    jax.block_until_ready(call())
    times.append(time.perf_counter() - began)
  return float(np.median(times))


def device_readings(process: int, sizes: Sizes) -> list[Reading]:
  """Matrix products and memory of each local device, one device after another."""
  product = jax.jit(lambda x: x @ x)
  add = jax.jit(lambda x: x + 1)
  readings = []
  for number, device in enumerate(jax.local_devices()):
    where = f"process {process} device {number}"
    matrix = jax.device_put(jnp.ones((sizes.matrix, sizes.matrix), sizes.dtype), device)
    rate = 2 * sizes.matrix**3 / _seconds(lambda m=matrix: product(m)) / 1e12
    readings.append(Reading("matrix products", where, rate, "TFLOP/s"))
    array = jax.device_put(jnp.ones((sizes.memory // 2 // 4,), jnp.float32), device)
    rate = sizes.memory / _seconds(lambda a=array: add(a)) / 1e9
    readings.append(Reading("memory", where, rate, "GB/s"))
  return readings


def all_reduce_bandwidth(devices: Sequence[jax.Device], size: int) -> float:
  """GB/s a device of an all-reduce of `size` bytes over `devices`: 2 (n-1)/n size / time.

  All processes that own one of the devices call this together.
  """
  mesh = Mesh(np.array(devices), ("all",))
  shape = (len(devices), size // 4)
  sharding = NamedSharding(mesh, PartitionSpec("all"))
  mine = [
    jax.device_put(np.ones((1, shape[1]), np.float32), d)
    for d in devices
    if d.process_index == jax.process_index()
  ]
  array = jax.make_array_from_single_device_arrays(shape, sharding, mine)
  total = jax.jit(lambda x: jnp.sum(x, axis=0), out_shardings=NamedSharding(mesh, PartitionSpec()))
  count = len(devices)
  return 2 * (count - 1) / count * size / _seconds(lambda: total(array)) / 1e9


def link_readings(process: int, processes: int, sizes: Sizes) -> list[Reading]:
  """All-reduces inside this process, with each neighbour (all pairs in two rounds), of all."""
  readings = []
  if jax.local_device_count() > 1:
    rate = all_reduce_bandwidth(jax.local_devices(), sizes.collective)
    readings.append(Reading("all-reduce within", f"process {process}", rate, "GB/s"))
  by_process = {p: [d for d in jax.devices() if d.process_index == p] for p in range(processes)}
  for first in (0, 1):
    if processes > 1:
      multihost_utils.sync_global_devices(f"links {first}")
    low = process if (process - first) % 2 == 0 else process - 1
    if low >= 0 and low + 1 < processes:
      rate = all_reduce_bandwidth(by_process[low] + by_process[low + 1], sizes.collective)
      if process == low:
        readings.append(Reading("all-reduce between", f"processes {low}-{low + 1}", rate, "GB/s"))
  if processes > 1:
    rate = all_reduce_bandwidth(jax.devices(), sizes.collective)
    readings.append(Reading("all-reduce of all", f"process {process}", rate, "GB/s"))
  return readings


def storage_readings(process: int, folder: Path, size: int) -> list[Reading]:
  """Writes a file to the disk and reads it back, past the page cache where the system lets us."""
  path, block = folder / f".preflight-{process}", os.urandom(min(size, 2**24))
  try:
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
      for _ in range(size // len(block)):
        file.write(block)
      os.fsync(file.fileno())
      written = time.perf_counter() - began
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.perf_counter()
    with path.open("rb", buffering=0) as file:
      while file.read(len(block)):
        pass
    read = time.perf_counter() - began
  finally:
    path.unlink(missing_ok=True)
  where = f"process {process}"
  return [
    Reading("storage write", where, size / written / 1e9, "GB/s"),
    Reading("storage read", where, size / read / 1e9, "GB/s"),
  ]


def clock_readings(process: int, processes: int) -> list[Reading]:
  """This clock against process 0's, read right after a barrier; GPU clocks by nvidia-smi."""
  readings = []
  if processes > 1:
    best = np.inf
    for attempt in range(_REPEATS):
      multihost_utils.sync_global_devices(f"clock {attempt}")
      # Seconds as two numbers: jax would make one float32 of it.
      now = time.time_ns()
      both = multihost_utils.process_allgather(np.array([now // 10**9, now % 10**9], np.int32))
      offset = (both[process] - both[0]).astype(np.float64) @ [1.0, 1e-9]
      best = min(best, offset, key=abs)
    readings.append(Reading("clock offset", f"process {process}", 1e3 * best, "ms"))
  if shutil.which("nvidia-smi"):
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm,clocks.sm", "--format=csv,noheader,nounits"]
    for number, line in enumerate(subprocess.check_output(query, text=True).splitlines()):
      clock = float(line.split(",")[1])
      readings.append(Reading("SM clock", f"process {process} GPU {number}", clock, "MHz"))
  return readings


def is_off(reading: Reading, median: float, tolerance: float) -> bool:
  """Whether a reading is worse than the median of its kind by more than `tolerance`, a share.

  A clock is off by 100 ms or more: logs of several nodes are then no longer in order.
  """
  if reading.what == "clock offset":
    return abs(reading.value) >= 100
  return reading.value < (1 - tolerance) * median


def table(readings: Sequence[Reading], tolerance: float) -> tuple[str, list[Reading]]:
  """A line a kind (least, median, most), then a line for each reading that is off; and those."""
  lines, off = [f"{'':20}{'least':>10}{'median':>10}{'most':>10}"], []
  for what in dict.fromkeys(reading.what for reading in readings):
    same = [reading for reading in readings if reading.what == what]
    values = [reading.value for reading in same]
    median = float(np.median(values))
    off += [reading for reading in same if is_off(reading, median, tolerance)]
    numbers = "".join(f"{value:>10.3g}" for value in (min(values), median, max(values)))
    lines.append(f"{what:20}{numbers}  {same[0].unit} of {len(same)}")
  for reading in off:
    lines.append(f"OFF: {reading.where}: {reading.what} {reading.value:.3g} {reading.unit}")
  if not off:
    lines.append("All alike.")
  return "\n".join(lines), off


def gather(readings: list[Reading]) -> list[Reading]:
  """The readings of all processes, in order of the processes."""
  if jax.process_count() == 1:
    return readings
  mine = np.frombuffer(json.dumps([dataclasses.astuple(r) for r in readings]).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(mine.size, np.int32))
  padded = np.pad(mine, (0, int(sizes.max()) - mine.size))
  rows = multihost_utils.process_allgather(padded)
  return [
    Reading(*fields)
    for row, size in zip(rows, sizes, strict=True)
    for fields in json.loads(row[: int(size)].tobytes())
  ]


def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m train.preflight",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--storage", type=Path, default=Path("."), help="the folder that runs are kept in")
  add("--tolerance", type=float, default=0.1, help="how far below the median is off (%(default)s)")
  add("--json", type=Path, help="where process 0 writes all readings")
  add("--coordinator", help="HOST:PORT of process 0")
  add("--processes", type=int)
  add("--process_id", type=int)
  arguments = parser.parse_args(argv)
  try:
    if not arguments.storage.is_dir():
      raise ValueError(f"--storage={arguments.storage} is no folder.")
    distributed.initialize(arguments.coordinator, arguments.processes, arguments.process_id)
    process, processes = jax.process_index(), jax.process_count()
    sizes = GPU if jax.default_backend() == "gpu" else CPU
    readings = [
      *device_readings(process, sizes),
      *link_readings(process, processes, sizes),
      *storage_readings(process, arguments.storage, sizes.file),
      *clock_readings(process, processes),
    ]
    everyone = gather(readings)
    text, off = table(everyone, arguments.tolerance)
    print(text)
    if arguments.json and process == 0:
      lines = [dataclasses.asdict(reading) for reading in everyone]
      arguments.json.write_text(json.dumps(lines, indent=2) + "\n")
  except (OSError, ValueError) as error:
    print(f"error: {error}", file=sys.stderr)
    return BAD_INPUT
  return OFF if off else DONE


if __name__ == "__main__":
  sys.exit(main())

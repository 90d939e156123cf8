"""Where the time and the memory go: a ledger of the wall-clock, device memory, MFU."""

import contextlib
import re
import resource
import time
from collections.abc import Iterator
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

CATEGORIES = ("compile", "data_wait", "rollout", "step", "checkpoint", "evaluation", "other")

# Dense FLOP/s of one device with half-precision inputs and fp32 accumulation, without sparsity.
# The first name that is a word of jax's `device_kind` counts.
PEAK_FLOPS = {
  "H100 PCIe": 756e12,  # NVIDIA H100 Tensor Core GPU Architecture (whitepaper), table 2
  "H100 NVL": 835e12,  # H100 datasheet: 1,671 TFLOPS with sparsity
  "H100": 989.4e12,  # SXM5; whitepaper, table 2
  "H200 NVL": 835e12,  # H200 datasheet: 1,671 TFLOPS with sparsity
  "H200": 989.4e12,  # SXM; H200 datasheet: the H100's 1,979 TFLOPS with sparsity
  "B200": 2250e12,  # DGX B200 datasheet: 36 PFLOPS of 8 GPUs with sparsity
  "A100": 312e12,  # A100 datasheet
  "L4": 121e12,  # L4 datasheet: 242 TFLOPS with sparsity
  "V100": 125e12,  # V100 datasheet, SXM2
  "T4": 65e12,  # T4 datasheet
}
WITHOUT_BFLOAT16 = ("V100", "T4")


class Ledger:
  """The wall-clock since it was made, each moment in one category; what is left is "other".

      with ledger("step"):
        ...

  A context within another takes its time from the outer one, so that the lines always add up.

  Attributes:
    moved: the `time.monotonic()` of the last change of category.
  """

  def __init__(self, clock=time.perf_counter_ns):
    self._clock = clock
    self._mark = clock()
    self.moved = time.monotonic()
    self._current = "other"
    self._spent = dict.fromkeys(CATEGORIES, 0)

  @contextlib.contextmanager
  def __call__(self, category: str) -> Iterator[None]:
    assert category in CATEGORIES, category
    outer = self._switch(category)
    try:
      yield
    finally:
      self._switch(outer)

  def _switch(self, category: str) -> str:
    now = self._clock()
    self.moved = time.monotonic()
    self._spent[self._current] += now - self._mark
    self._mark, previous, self._current = now, self._current, category
    return previous

  def seconds(self) -> dict[str, float]:
    """By category and in "total", to the millisecond; "other" takes what rounding leaves."""
    self._switch(self._current)
    total = round(sum(self._spent.values()) / 1e6)
    spent = {name: round(ns / 1e6) for name, ns in self._spent.items() if name != "other"}
    spent["other"] = total - sum(spent.values())
    return {name: ms / 1000 for name, ms in (spent | {"total": total}).items()}

  def table(self) -> str:
    """A line a category: seconds, and the share of the wall-clock."""
    seconds = self.seconds()
    total = max(seconds["total"], 1e-9)
    return "\n".join(
      f"{name.replace('_', ' '):<12}{value:>12,.3f} s{value / total:>8.1%}"
      for name, value in seconds.items()
    )


def device_memory() -> tuple[int, int, str]:
  """Bytes in use, the most so far, and who says so, of the fullest of this process's devices.

  A backend without memory statistics (CPU) is answered for by the process's resident set, which
  has the code and the host's buffers in it and lacks the data workers, who are other processes.
  """
  stats = [s for s in (device.memory_stats() for device in jax.local_devices()) if s]
  if stats:
    return (
      max(s["bytes_in_use"] for s in stats),
      max(s["peak_bytes_in_use"] for s in stats),
      "device",
    )
  try:
    with open("/proc/self/status", encoding="ascii", errors="replace") as f:
      kib = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", f.read(), re.MULTILINE))
    return int(kib["VmRSS"]) * 1024, int(kib["VmHWM"]) * 1024, "process"
  except (OSError, KeyError):  # no Linux; ru_maxrss is the peak alone, in bytes on macOS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak, peak, "process"


def mfu(tokens_per_sec: float, flops_per_token: float, peak: float) -> float:
  """Model FLOPs utilization: the model's FLOP/s over `peak`, that of all devices."""
  return tokens_per_sec * flops_per_token / peak


def peak_flops(dtype: str) -> tuple[float, str]:
  """FLOP/s that all devices of the run have together in `dtype`, and where the number is from.

  A known GPU in half precision has a constant; anything else is measured as its own speed in a
  large matrix product.
  """
  kind, count = jax.devices()[0].device_kind, jax.device_count()
  constant = known_peak_flops(kind, dtype)
  if constant is not None:
    return constant * count, f"{constant / 1e12:g} TFLOP/s x {count} {kind}"
  measured = measure_matmul_flops(dtype)
  if jax.default_backend() == "cpu":
    # One product runs on every core of its host, and virtual devices share those cores, so a
    # process counts once, however many devices it shows.
    count = jax.process_count()
  return measured * count, f"measured: {measured / 1e12:.3g} TFLOP/s in {dtype} x {count}"


def known_peak_flops(device_kind: str, dtype: str) -> float | None:
  """The constant for one device, or None where `PEAK_FLOPS` has none for it in `dtype`."""
  for name, flops in PEAK_FLOPS.items():
    if re.search(rf"\b{name}\b", device_kind):
      half = dtype == "float16" or (dtype == "bfloat16" and name not in WITHOUT_BFLOAT16)
      return flops if half else None
  return None


def measure_matmul_flops(dtype: str, seconds: float = 0.5) -> float:
  """FLOP/s of the first local device in square matrix products, the best of those that fit.

  Doubles the size until one product takes a tenth of `seconds`, and repeats the largest. The
  numbers are random, since a GPU's power, and so its clock, depends on the bits that flip.
  """
  matmul = jax.jit(lambda a: jnp.matmul(a, a))
  block = np.random.default_rng(0).standard_normal((256, 256), np.float32)
  best, size, spent = 0.0, 256, 0.0
  while spent < seconds:
    a = jnp.asarray(np.tile(block, (size // 256, size // 256)), dtype)
    matmul(a).block_until_ready()  # compiles
    start = time.perf_counter()
    matmul(a).block_until_ready()
    took = time.perf_counter() - start
    best = max(best, 2 * size**3 / took)
    spent += took
    if took < seconds / 10 and size < 16_384:
      size *= 2
  return best


class AttentionShape(Protocol):
  """What of `model.config.ModelConfig` the FLOPs of attention depend on."""

  num_layers: int
  num_heads: int
  head_dim: int
  sliding_window: int | None


def segment_attention_flops(segment_ids_BL: np.ndarray, config: AttentionShape) -> float:
  """Training FLOPs of attention in a packed batch, where no token sees another document.

  A query-key pair costs 12 * layers * heads * head_dim FLOPs, forward and backward. A document
  of s tokens has s^2/2 pairs, or w * s - w^2/2 in a window of w < s: the convention of
  `model.params.flops_per_token`, which is this for one document a row. Padding costs nothing.
  """
  ids_BL = np.asarray(segment_ids_BL, np.int64)
  width = ids_BL.max(initial=0) + 1
  rows = np.arange(len(ids_BL))[:, None] * width
  lengths = np.bincount((ids_BL + rows).ravel(), minlength=len(ids_BL) * width)
  lengths = lengths.reshape(len(ids_BL), width)[:, 1:].astype(np.float64)
  window = np.minimum(lengths, config.sliding_window or np.inf)
  pairs = (window * lengths - window**2 / 2).sum()
  return float(12 * config.num_layers * config.num_heads * config.head_dim * pairs)

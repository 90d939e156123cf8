"""Seconds of communication in a step, and how many of them nothing hid, from a GPU's profile."""

import contextlib
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.profiler import ProfileData

# NCCL's kernels by their own name; copies between peers, and XLA's one-shot kernels, by the HLO.
COLLECTIVE = re.compile(
  r"nccl|(ragged-)?all-to-all|all-reduce|all-gather|reduce-scatter|collective-(permute|broadcast)",
  re.IGNORECASE,
)
COPY = re.compile(r"mem(cpy|set)", re.IGNORECASE)


class Event(NamedTuple):
  """What a stream of a device did from `start` to `end`, in ns; `op` is the HLO it belongs to."""

  device: str
  name: str
  op: str
  start: float
  end: float


class Profiler:
  """Profiles one step in `every`, on GPU, and keeps what it says of communication.

      with profiler.around(step):
        state, metrics = train_step(state, batch)
      log.write("train", ..., **profiler.fields)

  `fields` has the seconds of `comm_step`, the step profiled last, and a `comm_reason` where there
  are none: another backend, no profile yet, or one that failed, which ends no run.

  Args:
    every: steps from one profile to the next; None for never.
  """

  def __init__(self, every: int | None):
    self._every = every
    self.fields = no_communication("no step was profiled yet")
    backend = jax.default_backend()
    if backend != "gpu":
      self._every = None
      self.fields = no_communication(f"a profile of {backend} does not show communication")
    elif every is None:
      self.fields = no_communication("log.profile_every is None")

  @contextlib.contextmanager
  def around(self, step: int) -> Iterator[None]:
    """When `step` is due, the devices are waited for on both sides, and profiled in between."""
    if self._every is None or step % self._every:
      yield
      return
    with tempfile.TemporaryDirectory(prefix="profile-", ignore_cleanup_errors=True) as folder:
      jax.block_until_ready(jax.live_arrays())  # or the end of the step before would be in it
      error = _failure(jax.profiler.start_trace, folder, profiler_options=_options())
      try:
        yield
        jax.block_until_ready(jax.live_arrays())
      finally:
        error = error or _failure(jax.profiler.stop_trace)
      found = None if error else communication(read_profile(Path(folder)))
    if found is None:
      reason = error or "it shows nothing of this process's devices"
      self.fields = no_communication(f"the profile of step {step} failed: {reason}")
    else:
      seconds, exposed = found
      self.fields = {
        "comm_seconds": seconds,
        "comm_exposed": exposed,
        "comm_reason": None,
        "comm_step": step,
      }


def no_communication(reason: str) -> dict[str, Any]:
  return {"comm_seconds": None, "comm_exposed": None, "comm_reason": reason, "comm_step": None}


def communication(events: Iterable[Event]) -> tuple[float, float] | None:
  """Seconds in which collectives ran, and the exposed part, in which nothing was computed.

  Both are means over the devices that have events; without any, None. Collectives that overlap
  each other count once. A collective's kernel also waits for its peers, so that time is in it.
  Copies to and from the host are neither computation nor communication.
  """
  devices = {}
  for event in events:
    collectives, compute = devices.setdefault(event.device, ([], []))
    if COLLECTIVE.match(event.name) or COLLECTIVE.match(event.op):
      collectives.append((event.start, event.end))
    elif not COPY.match(event.name):
      compute.append((event.start, event.end))
  if not devices:
    return None
  seconds = exposed = 0.0
  for collectives, compute in devices.values():
    seconds += covered(collectives)
    exposed += covered(collectives + compute) - covered(compute)
  scale = 1e-9 / len(devices)
  return seconds * scale, exposed * scale


def covered(intervals: Iterable[tuple[float, float]]) -> float:
  """The length of the union of (start, end) intervals."""
  total, until = 0.0, float("-inf")
  for start, end in sorted(intervals):
    if end > until:
      total += end - max(start, until)
      until = end
  return total


def read_profile(folder: Path) -> Iterator[Event]:
  """The events on the streams of this process's GPUs, from the trace that jax wrote to `folder`."""
  for path in folder.rglob("*.xplane.pb"):
    yield from device_events(ProfileData.from_file(str(path)))


def device_events(profile: ProfileData) -> Iterator[Event]:
  """The events of XLA's planes "/device:GPU:n", lines "Stream #n(...)", which are the raw ones."""
  with warnings.catch_warnings():
    # jaxlib's binding, under Python 3.12: "builtin type event_stats has no __module__ attribute".
    warnings.simplefilter("ignore", DeprecationWarning)
    for plane in profile.planes:
      if not plane.name.startswith("/device:GPU:"):
        continue
      for line in plane.lines:
        if line.name.startswith("Stream #"):
          for event in line.events:
            op = dict(event.stats).get("hlo_op", "")
            yield Event(plane.name, event.name, str(op), event.start_ns, event.end_ns)


def _failure(action: Callable, *args, **kwargs) -> Exception | None:
  """What went wrong in tracing (a profile by someone else, a full disk), which ends no run."""
  try:
    action(*args, **kwargs)
  except (OSError, RuntimeError) as error:
    return error
  return None


def _options() -> jax.profiler.ProfileOptions:
  """Devices only: what the host does would make the trace large and the step slow."""
  options = jax.profiler.ProfileOptions()
  options.host_tracer_level = 0
  options.python_tracer_level = 0
  return options

"""metrics.jsonl, the record of a run, and the progress line that a person watches.

A line is one JSON object with a `kind`. "NaN", "Infinity" and "-Infinity" stand for the floats that
JSON lacks; `read` turns them back. A float32 is written with all its digits, so that its bits can
be compared.

    train   step               batches that the run has seen
            tokens             targets that counted in the loss, since the start of the run
            loss, z_loss       mean nats a target, and what z-loss adds to them; of a reward
                               model or DPO the mean over comparisons, and their accuracy
            margin, chosen_reward, rejected_reward     of DPO: beta times a log-ratio to the
                               reference, of both answers and their difference
            grad_norm          before clipping
            lr, loss_scale     as this step used them
            skipped            steps so far that were not finite and changed nothing
            tokens_per_sec     positions that went through the model a second, on all devices
            step_time          seconds from the end of the step before to the end of this one
            data_wait          seconds of those in which the loop waited for a batch
            mfu, mfu_full      model FLOP/s over the peak, with causal and with full attention
            mfu_segments       the same with attention inside documents only, and no padding
            device_memory_bytes, _peak, _source     see `train.monitor.device_memory`
            epoch/<source>, documents_split     see `data.streams.progress`
            comm_seconds, comm_exposed, comm_reason, comm_step     see `train.profiler.Profiler`
            epoch              of the examples of post-training
    eval    step, set, weights ("raw" or "average"), loss, bits_per_byte; of a reward model
            accuracy by dimension; of DPO accuracy and margin; of a benchmark metrics
    sample  step, answers, ended (the share that stopped by themselves), tokens (mean)
    skip    step, loss, grad_norm, loss_scale, batch (a file): a step that was not finite
    config  step, key, old, new: what a restart was allowed to change
    peak_flops  value, source: what MFU is relative to; device (its kind), devices
    done    step               the run came to its end
    resume  step               where the run was taken up again
    ledger                     seconds of wall-clock by category, see `train.monitor.Ledger`
"""

import collections
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from train.workdir import write_atomically

NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsLog:
  """Appends to metrics.jsonl, a line at a time, each handed to the system before the next step.

  Args:
    path: the file.
    resume_step: the step of the checkpoint from which the run goes on. What was logged after it
      is cut off, and a "resume" line added. None starts the file anew.

  Only process 0 writes; on the others every method does nothing.

  Raises:
    OSError: the disk is full, say; the message names the file and the remedy.
    ValueError: a line to keep is no JSON.
  """

  def __init__(self, path: Path, *, resume_step: int | None = None):
    self.path = Path(path)
    self._file = None
    if jax.process_index() != 0:
      return
    try:
      if resume_step is not None and self.path.exists():
        write_atomically(self.path, "".join(_lines_until(self.path, resume_step)))
      # Unbuffered: a line that did not fit must not come back as a second error when closing.
      self._file = open(self.path, "wb" if resume_step is None else "ab", buffering=0)  # noqa: SIM115
    except OSError as error:
      raise self._explained(error) from error
    if resume_step is not None:
      self.write("resume", step=resume_step)

  def write(self, kind: str, **fields) -> None:
    """Adds one line; numpy and jax scalars become numbers."""
    if self._file is None:
      return
    line = json.dumps({"kind": kind} | to_json(fields), allow_nan=False) + "\n"
    rest = line.encode()
    try:
      while rest:
        rest = rest[self._file.write(rest) :]
    except OSError as error:
      raise self._explained(error) from error

  def sync(self) -> None:
    """Waits until the disk has every line: before a checkpoint, which must not outlive them."""
    if self._file is not None:
      os.fsync(self._file.fileno())

  def close(self) -> None:
    if self._file is not None:
      self._file.close()
      self._file = None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def _explained(self, error: OSError) -> OSError:
    return OSError(
      error.errno,
      f"can't write {self.path}: {error.strerror}. Free some space, or make the folder writable, "
      "and start the same command again: it goes on from the last checkpoint, which is intact",
    )


def to_json(value: Any) -> Any:
  """The same value of JSON's types: scalars of numpy and jax as numbers, NaN and Inf as strings."""
  if isinstance(value, Mapping):
    return {name: to_json(item) for name, item in value.items()}
  if isinstance(value, (np.generic, np.ndarray, jax.Array)):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
  return value


def read(path: Path) -> list[dict[str, Any]]:
  """The lines of a metrics file; one that a kill cut short, at the end, is left out.

  Raises:
    ValueError: another line is no JSON object.
  """
  return [
    {k: NONFINITE.get(v, v) if isinstance(v, str) else v for k, v in line.items()}
    for _, line in _parsed(path)
  ]


def _parsed(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Every whole line, as text and as an object."""
  with open(path, encoding="utf-8", errors="replace") as f:
    for number, text in enumerate(f, 1):
      if not text.endswith("\n"):
        return
      try:
        line = json.loads(text)
      except json.JSONDecodeError:
        line = None
      if not isinstance(line, dict):
        raise ValueError(f"{path}:{number} is no JSON object: {text[:80]!r}; remove that line.")
      yield text, line


def _lines_until(path: Path, step: int) -> Iterator[str]:
  """The lines of at most `step`; one without a step counts as of the step before it."""
  current = 0
  for text, line in _parsed(path):
    current = line.get("step", current)
    if current <= step:
      yield text


class Pending:
  """Metrics of the last `depth` steps on their way to the host, so that no fetch stalls a device.

  The host runs at most `depth` steps ahead of the devices.
  """

  def __init__(self, depth: int = 2):
    self._depth = depth
    self._steps = collections.deque()

  def push(self, step: int, metrics: Mapping[str, jax.Array]) -> Iterator[tuple[int, dict]]:
    """Takes the metrics of `step`; yields (step, numpy scalars) of those that fall out."""
    for value in metrics.values():
      value.copy_to_host_async()
    self._steps.append((step, metrics))
    return self._pop(self._depth)

  def drain(self) -> Iterator[tuple[int, dict]]:
    """Yields all the rest: before a checkpoint, and at the end."""
    return self._pop(0)

  def _pop(self, keep: int) -> Iterator[tuple[int, dict]]:
    """One at a time, as each arrives, so that the caller can tell when its step ended."""
    while len(self._steps) > keep:
      step, metrics = self._steps.popleft()
      yield step, jax.device_get(metrics)


class Progress:
  """One line about a long run: rewritten in place on a terminal, else printed now and then.

  Args:
    total_steps: where the run ends.
    every: steps between two lines where the output is no terminal (a file, a notebook).
    stream: where to write, stderr by default; only process 0 does.
    text: makes the line, as `progress_text` does.
  """

  REWRITE_SECONDS = 0.2

  def __init__(
    self,
    total_steps: int,
    every: int,
    stream: TextIO | None = None,
    clock=time.time,
    text: Callable[..., str] | None = None,
  ):
    self._text = text or progress_text
    self._total = total_steps
    self._every = every
    self._stream = sys.stderr if stream is None else stream
    self._silent = jax.process_index() != 0
    self._terminal = self._stream.isatty()
    self._clock = clock
    self._first = None
    self._shown = -math.inf
    self._open = False
    self._window = []

  def update(self, line: Mapping[str, Any]) -> None:
    """Takes every training line, in order; shows what those since the last shown come to."""
    if self._silent:
      return
    now = self._clock()
    self._first = self._first or (line["step"], now)
    self._window.append(line)
    last = line["step"] >= self._total
    if self._terminal:
      due = now - self._shown >= self.REWRITE_SECONDS
    else:
      due = line["step"] % self._every == 0
    if not (due or last):
      return
    text = self._text(self._window, self._total, self._seconds_left(line["step"], now))
    if self._terminal:
      self._stream.write(f"\r\x1b[K{text[: _columns(self._stream) - 1]}")
      self._open = True
    else:
      self._stream.write(text + "\n")
    self._stream.flush()
    self._shown, self._window = now, []
    if last:
      self.close()

  def close(self) -> None:
    """Ends the line, so that what is printed next starts on a fresh one."""
    if self._open:
      self._stream.write("\n")
      self._stream.flush()
      self._open = False

  def _seconds_left(self, step: int, now: float) -> float | None:
    """From the mean since the first step seen, so evaluations and checkpoints are in it."""
    first_step, first_time = self._first
    if step == first_step:
      return None
    return (now - first_time) / (step - first_step) * (self._total - step)


def progress_text(lines: list[Mapping[str, Any]], total: int, seconds_left: float | None) -> str:
  """One line about the training lines since the last: the newest values, the mean speeds."""
  newest = lines[-1]
  seconds = max(sum(line["step_time"] for line in lines), 1e-9)

  def mean(key):
    return sum(line[key] * line["step_time"] for line in lines) / seconds

  parts = [
    f"step {newest['step']:,}/{total:,}",
    f"loss {newest['loss']:.4f}",
    f"lr {newest['lr']:.2e}",
    f"{mean('tokens_per_sec'):,.0f} tok/s",
    f"MFU {mean('mfu'):.1%}",
    f"data wait {sum(line['data_wait'] for line in lines) / seconds:.1%}",
    f"scale {newest['loss_scale']:g}",
    f"skipped {newest['skipped']}",
  ]
  if seconds_left is not None:
    parts.append(f"{duration(seconds_left)} left")
  return "  ".join(parts)


def duration(seconds: float) -> str:
  """Seconds for people: 48s, 3m12s, 5h07m, 12d03h."""
  seconds = round(seconds)
  for unit, smaller, size in (("d", "h", 86_400), ("h", "m", 3_600), ("m", "s", 60)):
    if seconds >= size:
      of_smaller = {"h": 3_600, "m": 60, "s": 1}[smaller]
      return f"{seconds // size}{unit}{seconds % size // of_smaller:02d}{smaller}"
  return f"{seconds}s"


def _columns(stream: TextIO) -> int:
  try:
    return os.get_terminal_size(stream.fileno()).columns or 80
  except (OSError, ValueError):
    return 80

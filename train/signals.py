"""SIGTERM and Ctrl-C as a wish to stop, which the loop grants between two steps."""

import signal
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils


class StopRequest:
  """While entered, the first SIGTERM or SIGINT sets a flag; the second acts as it always does."""

  def __init__(self):
    self._signal: int | None = None
    self._previous = {}

  def __enter__(self):
    for number in (signal.SIGTERM, signal.SIGINT):
      try:
        self._previous[number] = signal.signal(number, self._handle)
      except ValueError:  # not the main thread, as in a notebook's executor
        return self
    return self

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _handle(self, number, _frame):
    self._signal = number
    signal.signal(number, self._previous[number])
    print(
      f"\n{signal.Signals(number).name}: saving after this step; once more stops at once.",
      file=sys.stderr,
      flush=True,
    )

  def wanted(self) -> bool:
    """Whether any process was asked to stop; all processes call this after the same step."""
    mine = self._signal is not None
    if jax.process_count() == 1:
      return mine
    return bool(multihost_utils.process_allgather(np.array(mine)).any())

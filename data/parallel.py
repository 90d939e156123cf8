"""Work in processes that end with the run, whatever ends it."""

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any


class Stopped(BaseException):
  """SIGTERM or Ctrl-C; no `except Exception` on the way takes it for an error."""


class StopSignals:
  """While entered, SIGTERM and SIGINT raise `Stopped` in the main thread, once."""

  def __enter__(self) -> "StopSignals":
    self._previous = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    for number in self._previous:
      signal.signal(number, self._stop)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _stop(self, number, _frame):
    for each in self._previous:
      signal.signal(each, signal.SIG_IGN)
    raise Stopped(signal.Signals(number).name)


class Workers:
  """Processes that share out calls of one function; with `count` 0 they are made in this process.

  As a context it ends the processes, at once if an exception leaves it: what they were at is lost.
  """

  def __init__(self, count: int):
    self._executor = None
    if count:
      context = multiprocessing.get_context("spawn")
      alive, self._life = context.Pipe(duplex=False)
      self._executor = concurrent.futures.ProcessPoolExecutor(
        count, context, initializer=_start_worker, initargs=(alive,)
      )

  def __enter__(self) -> "Workers":
    return self

  def __exit__(self, kind, *_) -> None:
    if self._executor is not None:
      if kind is not None:
        self._life.close()
      self._executor.shutdown(cancel_futures=True)
      self._life.close()

  def map(self, function: Callable[..., Any], calls: Iterable[tuple]) -> Iterator[Any]:
    """Yields what the calls return, in the order in which they end.

    Raises:
      OSError: a process died, for example because the system ran out of memory.
      Exception: what a call raises; the others are not waited for.
    """
    if self._executor is None:
      yield from (function(*arguments) for arguments in calls)
      return
    futures = [self._executor.submit(function, *arguments) for arguments in calls]
    try:
      for future in concurrent.futures.as_completed(futures):
        yield future.result()
    except BrokenProcessPool as error:
      raise OSError(
        "a worker process died, perhaps because memory ran out; what is finished is kept: start "
        "again, with fewer workers or a smaller shard_bytes."
      ) from error


def _start_worker(alive: multiprocessing.connection.Connection) -> None:
  """Runs first in each process: signals are the run's to handle, and with it this ends."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  threading.Thread(target=_end_with_run, args=(alive,), daemon=True).start()


def _end_with_run(alive):
  multiprocessing.connection.wait([alive, multiprocessing.parent_process().sentinel])
  os._exit(1)

"""Global batches, in worker processes, the same for any number of hosts, workers and restarts."""

import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator, Mapping

import grain
import numpy as np
from absl import flags

from data.batch import Batch, stack_rows
from data.config import DataConfig
from data.mixture import Mixture
from data.streams import Cursor, Stream
from data.tokenizer import Tokenizer

Cursors = dict[str, Cursor]

_NO_SHARED_MEMORY = 2**62


class Loader:
  """This host's rows of each global batch, with the cursors of its streams after that batch.

  Batch n is a pure function of the config, the seed and n. Stream v fills the rows
  [v * B / V, (v + 1) * B / V) of the global batch, so host h of H has the rows and the streams
  [h * V / H, (h + 1) * V / H); hosts that share rows pass the same `host_index`.

  Iterating yields (batch, cursors): arrays as of `data.batch`, [B / H, seq_len], and the state of
  this host's streams after the last of these rows, to be saved once the batch was trained on. The
  cursors of all hosts, merged, start a loader on any number of hosts. Close it after use.

  Args:
    config: of the data.
    mixture: as of `mixture.make_mixture`.
    tokenizer: of the run.
    host_index, host_count: which part of the rows; host_count divides config.streams.
    cursors: of all streams, by the stream's number as a string; None starts at batch 0.

  Raises:
    ValueError: an indivisible host count, cursors of other streams, or of other documents.
  """

  def __init__(
    self,
    config: DataConfig,
    mixture: Mixture,
    tokenizer: Tokenizer,
    *,
    host_index: int = 0,
    host_count: int = 1,
    cursors: Mapping[str, Cursor] | None = None,
  ):
    if config.streams % host_count:
      raise ValueError(
        f"data.streams={config.streams} is not divisible by the {host_count} hosts that read "
        "different rows; use a multiple."
      )
    if cursors is not None:
      _check_cursors(cursors, config, mixture)
    share = config.streams // host_count
    streams = list(range(host_index * share, (host_index + 1) * share))
    # More processes than streams would have nothing to do.
    workers = min(config.workers, share)
    self._parts = max(workers, 1)
    rows = _Rows(config, mixture, tokenizer, streams, cursors or {})
    if workers:
      if not flags.FLAGS.is_parsed():  # in a notebook or a test; grain reads flags of its own
        flags.FLAGS.mark_as_parsed()
      options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=config.prefetch)
      # Through pipes: blocks of shared memory would outlive a killed run.
      piped = grain.experimental.DatasetOptions(min_shm_size=_NO_SHARED_MEMORY)
      dataset = grain.experimental.WithOptionsIterDataset(rows, piped)
      dataset = dataset.mp_prefetch(options, worker_init_fn=_start_worker)
    else:
      dataset = grain.experimental.ThreadPrefetchIterDataset(
        rows, prefetch_buffer_size=config.prefetch
      )
    self._iterator = iter(dataset)

  def __iter__(self) -> Iterator[tuple[Batch, Cursors]]:
    return self

  def __next__(self) -> tuple[Batch, Cursors]:
    # An element of each worker in turn; worker w has every self._parts-th stream from the w-th on.
    parts = [next(self._iterator) for _ in range(self._parts)]
    cursors = {str(v): cursor for part in parts for v, cursor in part["cursors"].value.items()}
    order = np.argsort(np.concatenate([part["streams"] for part in parts]), kind="stable")
    batch = {
      key: np.concatenate([part["batch"][key] for part in parts])[order]
      for key in parts[0]["batch"]
    }
    return batch, cursors

  def close(self) -> None:
    """Ends the worker processes or the thread; iterating then stops."""
    if hasattr(self._iterator, "close"):
      self._iterator.close()
    # Freed now, because grain's finalizers fail noisily when Python ends.
    self._iterator = iter(())


def _check_cursors(cursors: Mapping[str, Cursor], config: DataConfig, mixture: Mixture) -> None:
  if set(cursors) != {str(v) for v in range(config.streams)}:
    raise ValueError(
      f"the checkpoint has the data position of the streams {sorted(cursors, key=int)}, but "
      f"data.streams={config.streams}; continue with the value that the run began with."
    )
  for cursor in cursors.values():
    if "rows" not in cursor:
      raise ValueError(
        "the checkpoint has the data position of an earlier release, which can't be continued; "
        "start in a new workdir with train.init_from set to this run."
      )
    if cursor["fingerprint"] != mixture.fingerprint:
      raise ValueError(
        f"the data position was saved with documents/tokenizer {cursor['fingerprint']}, but the "
        f"sources now give {mixture.fingerprint}; restore the files, or start in a new workdir."
      )


class _Opaque:
  """A leaf for grain, which would take a dict for a tree of arrays."""

  def __init__(self, value):
    self.value = value


class _Rows(grain.IterDataset):
  """Elements of grain: the rows of one batch that a set of streams fills, and their cursors."""

  def __init__(self, config, mixture, tokenizer, streams, cursors):
    super().__init__()
    self._config, self._mixture, self._tokenizer = config, mixture, tokenizer
    self._streams, self._cursors = streams, cursors

  def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
    """Keeps a worker's share of the streams; grain calls this in the worker."""
    assert not sequential_slice
    self._streams = self._streams[sl]

  def __iter__(self):
    shared = (self._mixture, self._tokenizer, self._config)
    streams = {v: Stream(*shared, v, self._cursors.get(str(v))) for v in self._streams}
    return _RowsIterator(self._config, streams)


class _RowsIterator(grain.DatasetIterator):
  def __init__(self, config: DataConfig, streams: dict[int, Stream]):
    super().__init__()
    self._config, self._streams = config, streams

  def __next__(self):
    each = self._config.batch_size // self._config.streams
    rows = [[next(stream) for _ in range(each)] for stream in self._streams.values()]
    return {
      "batch": stack_rows([row for chunk in rows for row in chunk], self._config.seq_len),
      "streams": np.repeat(list(self._streams), each),
      "cursors": _Opaque({v: stream.cursor() for v, stream in self._streams.items()}),
    }

  def get_state(self):
    return {}  # the position travels with the rows, as cursors

  def set_state(self, state):
    raise NotImplementedError("a Loader starts from cursors")


def _start_worker(index: int, count: int) -> None:
  """Runs first in each worker process."""
  # The processes are the parallelism: threads within each would fight for the same cores.
  os.environ["TOKENIZERS_PARALLELISM"] = "false"
  # Signals for the whole process group are the run's to handle; it closes its workers itself.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
  """Ends this worker when the run is gone, killed for example; grain's would wait for ever."""
  multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
  os._exit(1)

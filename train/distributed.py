"""Many processes as one run: how they find each other, and how they end when one is gone."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

PEER_LOST = 75  # the checkpoints are there, and a restart goes on from them

_HEARTBEAT_SECONDS = 60


def initialize(coordinator: str | None, processes: int | None, process_id: int | None) -> bool:
  """Joins this process to the run that it is part of, before any device is used.

  Standard output is process 0's from then on; errors are everyone's.

  By flags, or by what Slurm or the launch file of a Kubernetes JobSet put into the environment;
  see `settings`. On CPU the processes talk by gloo, on GPU by NCCL.

  Returns:
    whether the run has more than one process.

  Raises:
    ValueError: only some of the flags are given, or the others did not come in time.
  """
  found = settings(coordinator, processes, process_id, os.environ)
  if found is None:
    return False
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  try:
    jax.distributed.initialize(**found, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
  except RuntimeError as error:
    raise ValueError(
      f"the processes of the run did not find each other by {found or 'the environment'}: {error}"
    ) from error
  if jax.process_index():
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  process 0 tells what all of them do
  return True


def settings(
  coordinator: str | None,
  processes: int | None,
  process_id: int | None,
  environment: Mapping[str, str],
) -> dict[str, Any] | None:
  """What `jax.distributed.initialize` is called with; None for a run of one process.

  - All three flags: as they say.
  - STRAITS_COORDINATOR, STRAITS_PROCESSES and JOB_COMPLETION_INDEX: a Kubernetes JobSet, whose
    launch file sets the first two.
  - Slurm with more than one task: by jax's own reading of Slurm's variables; a node's one task has
    all of its GPUs, of several tasks each has one.

  Raises:
    ValueError: only some of the flags are given, or the process is not one of them.
  """
  flags = {"coordinator": coordinator, "processes": processes, "process_id": process_id}
  given = {name for name, value in flags.items() if value is not None}
  if not given and "STRAITS_COORDINATOR" in environment:
    try:
      coordinator = environment["STRAITS_COORDINATOR"]
      processes = int(environment["STRAITS_PROCESSES"])
      process_id = int(environment["JOB_COMPLETION_INDEX"])
    except (KeyError, ValueError) as error:
      raise ValueError(
        f"STRAITS_COORDINATOR is set, but of STRAITS_PROCESSES and JOB_COMPLETION_INDEX: {error!r}."
      ) from error
    given = set(flags)
  if given:
    if given != set(flags):
      missing = ", ".join(f"--{name}" for name in sorted(set(flags) - given))
      raise ValueError(
        f"{missing} is missing; --coordinator, --processes, --process_id go together."
      )
    if not 0 <= process_id < processes:
      raise ValueError(f"process_id={process_id} must be from 0 to {processes - 1}.")
    return {
      "coordinator_address": coordinator,
      "num_processes": processes,
      "process_id": process_id,
    }
  if int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in environment:
    one_a_node = environment["SLURM_NTASKS"] == environment.get("SLURM_NNODES")
    gpus = int(environment.get("SLURM_GPUS_ON_NODE", "0"))
    found: dict[str, Any] = {"cluster_detection_method": "slurm"}
    if one_a_node and gpus:
      found["local_device_ids"] = list(range(gpus))
    return found
  return None


class HangWatch:
  """Ends a process that has come no further for a time: a hang costs more than a crash.

  A peer that died, a link that is down or a file system that does not answer leave a collective or
  a read waiting for ever. Then every thread's stack goes to standard error and to the run's folder,
  and the process ends with the code that asks for a restart.

  Args:
    last_moved: the `time.monotonic()` at which the run last came to another phase.
    seconds: how long a phase may take; the longest good one is a compilation or an evaluation. 0
      watches nothing.
  """

  def __init__(self, last_moved: Callable[[], float], seconds: float, workdir: Path):
    self._last_moved, self._seconds, self._workdir = last_moved, seconds, workdir
    self._ended = threading.Event()

  def __enter__(self):
    if self._seconds > 0:
      threading.Thread(target=self._watch, name="hang-watch", daemon=True).start()
    return self

  def __exit__(self, *_):
    self._ended.set()

  def _watch(self) -> None:
    while not self._ended.wait(min(self._seconds / 4, 5)):
      if time.monotonic() - self._last_moved() > self._seconds:
        end_without_peers(
          f"nothing has moved for {self._seconds:g} s (--hang_minutes): a process, a link or a "
          "file system does not answer",
          self._workdir,
        )


def end_without_peers(reason: str, workdir: Path) -> None:
  """Says why, keeps every thread's stack, and ends this process at once.

  Not by an exception: the clean end of a distributed run waits for all of its processes.
  """
  index = jax.process_index() if jax.distributed.is_initialized() else 0
  path = workdir / f"stacks-process{index}.txt"
  try:
    with path.open("w") as file:
      faulthandler.dump_traceback(file, all_threads=True)
    kept = f"the stacks are in {path}"
  except OSError as error:
    kept = f"the stacks could not be kept: {error}"
  print(
    f"\nerror: process {index}: {reason}. It ends here; {kept}.\nStarted again, the run goes on "
    "from its newest checkpoint.",
    file=sys.stderr,
    flush=True,
  )
  sys.stdout.flush()
  os._exit(PEER_LOST)

"""The data log of a run: which weights its sources had, from which step on."""

import dataclasses
import json
import os
from pathlib import Path

from data.mixture import DataLog, Weights

NAME = "data_log.json"


def read(workdir: Path) -> DataLog:
  """The entries of a run's data log, in order of their steps; () if it has none.

  Raises:
    ValueError: the file is none.
  """
  path = workdir / NAME
  if not path.exists():
    return ()
  try:
    return tuple(
      Weights(
        int(entry["step"]),
        {name: tuple((at, w) for at, w in knots) for name, knots in entry["weights"].items()},
      )
      for entry in json.loads(path.read_text())
    )
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(f"{path} can't be read: {error!r}. Restore it from a copy.") from error


def continued(log: DataLog, weights: Weights) -> DataLog:
  """The log of a run that goes on at the batch `weights.step` with these weights.

  Entries of later steps, which were never reached or are done again, are dropped if the weights
  differ from those that the log has for this step; where they don't, the log stays as it is.
  """
  if not log:
    return (dataclasses.replace(weights, step=0),)
  if log[-1].knots == weights.knots:
    return log
  before = tuple(entry for entry in log if entry.step < weights.step)
  if before and before[-1].knots == weights.knots:
    return before
  return (*before, weights)


def write(workdir: Path, log: DataLog) -> None:
  """Writes a run's data log, whole or not at all."""
  entries = [{"step": entry.step, "weights": dict(entry.knots)} for entry in log]
  temporary = workdir / f".{NAME}.{os.getpid()}"
  with temporary.open("w") as file:
    json.dump(entries, file, indent=2)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(workdir / NAME)

"""The mean of the weights over the final window of a run, from the checkpoints on disk.

    python -m train.average RUN                  # the window of the run's own config
    python -m train.average RUN --steps 600,900

The first needs a checkpoint at every snapshot, so that `checkpoint.every` divides `average.every`.

It writes `RUN/average/<last step>/`, a checkpoint of weights alone. The training step keeps the
same mean in its state (`train/step.py`) and takes from here which steps are in it.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def is_snapshot_step(step, total_steps: int, fraction: float, every: int):
  """Whether the weights after `step` batches enter the mean; `step` may be a traced integer.

  The snapshots are at multiples of `every` in ((1 - fraction) * total_steps, total_steps], and
  at total_steps itself.
  """
  return (step > window_start(total_steps, fraction)) & (
    (step % every == 0) | (step == total_steps)
  )


def snapshot_steps(total_steps: int, fraction: float, every: int) -> list[int]:
  """The steps for which `is_snapshot_step` holds, in order; none for a fraction of 0."""
  return [
    step
    for step in range(window_start(total_steps, fraction) + 1, total_steps + 1)
    if is_snapshot_step(step, total_steps, fraction, every)
  ]


def window_start(total_steps: int, fraction: float) -> int:
  """The last step before the window, free of the rounding of decimal fractions (10 * 0.7 is 7)."""
  return math.floor(total_steps - total_steps * fraction + 1e-6)


def average_checkpoints(run: Path, steps: Sequence[int]) -> Path:
  """Writes the mean of the weights of `steps` as `run/average/<last step>`, and returns that path.

  The mean is the streaming one of the training step, mean += (weights - mean) / n in fp32, so
  that one snapshot and the mean are in memory at a time. A snapshot whose step was skipped as
  non-finite counts here, with the weights it left untouched, and does not in the training state.

  Raises:
    ValueError: no step, or one without a checkpoint.
    OSError: a checkpoint is corrupt, or the result cannot be written.
  """
  import numpy as np

  from train.checkpoint import Checkpointer

  source = Checkpointer(run / "checkpoints")
  steps, present = sorted(set(steps)), source.steps()
  missing = [step for step in steps if step not in present]
  if missing or not steps:
    raise ValueError(
      f"steps {missing or steps} have no checkpoint in {source.directory}, which holds {present}; "
      "name steps that it holds with --steps."
    )
  mean = None
  for count, step in enumerate(steps, start=1):
    weights = source.restore_weights(source.abstract_weights(step), step)
    if mean is None:
      mean = {
        name: {path: w.astype(np.float32) for path, w in tree.items()}
        for name, tree in weights.items()
      }
      continue
    for name, tree in weights.items():
      for path, w in tree.items():
        m = mean[name][path]
        m += (w.astype(np.float32) - m) / np.float32(count)
  result = Checkpointer(run / "average")
  result.save_weights(steps[-1], mean, {"steps": steps})
  return result.directory / str(steps[-1])


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit code: 0 done, 2 bad input."""
  parser = argparse.ArgumentParser(
    prog="python -m train.average", description=__doc__.split("\n")[0]
  )
  parser.add_argument("run", type=Path, help="the --workdir of a run")
  parser.add_argument("--steps", metavar="A,B,..", help="instead of the window of the run's config")
  args = parser.parse_args(argv)
  os.environ.setdefault("JAX_PLATFORMS", "cpu")  # host work: leave the accelerators alone
  try:
    steps = _parse_steps(args.steps) if args.steps else _window(args.run)
    path = average_checkpoints(args.run, steps)
  except (ValueError, OSError) as error:
    print(f"train.average: {error}", file=sys.stderr)
    return 2
  print(f"The mean of {len(steps)} snapshots, steps {steps[0]} to {steps[-1]}, is in {path}.")
  return 0


def _parse_steps(text: str) -> list[int]:
  try:
    return sorted({int(part) for part in text.split(",")})
  except ValueError:
    raise ValueError(f"--steps={text!r} is not a list of integers like 900,950,1000.") from None


def _window(run: Path) -> list[int]:
  """The snapshots of the window that the run was configured with."""
  config = json.loads((run / "config.json").read_text(encoding="utf-8"))
  try:
    steps, average = config["train"]["steps"], config["average"]
    window = snapshot_steps(steps, average["fraction"], average["every"])
  except KeyError as key:
    raise ValueError(f"{run}/config.json has no {key}; name the steps with --steps.") from None
  if not window:
    raise ValueError(f"{run} was run with average.fraction=0; name the steps with --steps.")
  return window


if __name__ == "__main__":
  sys.exit(main())

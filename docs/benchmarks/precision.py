"""Trains the quickstart in fp32, bf16 and fp16 with the same batches, and plots the losses.

    python docs/benchmarks/precision.py --steps 400

Writes docs/precision.png, and prints each run's held-out bits per byte, skipped steps and the
largest distance of its smoothed training loss from that of fp32. fp16 runs with dynamic loss
scaling from 2^16, as the reference run does. A CPU emulates half precision, so its speed says
nothing here.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np

from configs import quickstart
from train import main
from train.metrics import read

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SMOOTHING = 20


def train(dtype: str, steps: int, workdir: Path) -> list[dict]:
  """The metrics of the quickstart computed in `dtype`."""
  config = quickstart.get_config()
  config.compute.dtype = dtype
  config.train.steps = steps
  config.checkpoint.every = config.eval.every = steps
  if dtype == "float16":
    config.loss_scale.dynamic, config.loss_scale.initial = True, 2.0**16
  code = main.run(config.to_dict(), workdir)
  if code != main.DONE:
    sys.exit(code)
  return read(workdir / "metrics.jsonl")


def smooth(losses: np.ndarray) -> np.ndarray:
  return np.convolve(losses, np.ones(SMOOTHING) / SMOOTHING, mode="valid")


def plot(steps: int, output: Path) -> None:
  figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
  reference = None
  for dtype in ("float32", "bfloat16", "float16"):
    with tempfile.TemporaryDirectory() as folder:
      lines = train(dtype, steps, Path(folder))
    training = [line for line in lines if line["kind"] == "train"]
    curve = smooth(np.array([line["loss"] for line in training]))
    reference = curve if reference is None else reference
    bits = [line["bits_per_byte"] for line in lines if line["kind"] == "eval"]
    axes.plot(np.arange(len(curve)) + SMOOTHING, curve, label=dtype, linewidth=1)
    print(
      f"{dtype}: {bits[-1]:.4f} bits per byte (average weights), "
      f"{training[-1]['skipped']} skipped, "
      f"at most {np.abs(curve - reference).max():.4f} nats from fp32"
    )
  axes.set(xlabel="step", ylabel=f"training loss, mean of {SMOOTHING} steps (nats a token)")
  axes.legend()
  figure.savefig(output, dpi=150)


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--steps", type=int, default=400)
  parser.add_argument("--output", type=Path, default=Path("docs/precision.png"))
  arguments = parser.parse_args()
  plot(arguments.steps, arguments.output)

"""Temperature scaling (https://arxiv.org/abs/1706.04599): one number, for honest probabilities.

p = softmax(logits / T), with the T of the least NLL on one part of the data, and measured on
another. What is likeliest does not change. In b = 1 / T the NLL is convex, so Newton's method finds
it. It calibrates what is reported; the temperature of sampling is another knob.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

FILE = "calibration.json"
SCORES = "heldout_scores.jsonl"  # of a reward model's held-out pairs, in its run
BINS = 15
LOWEST, HIGHEST = 0.02, 50.0  # of the temperatures that are looked at


@dataclasses.dataclass(frozen=True)
class Sums:
  """What choices under softmax(b * logits) add up to.

  Attributes:
    count: choices.
    nll, slope, curve: the sum of -log p, in nats, and its derivatives in b.
    brier: the sum of squared distances of the probabilities from what was right.
    bins: [15, 3]: how many have a largest probability in a bin, the sum of it, how often it was
      right.
  """

  count: float
  nll: float
  slope: float
  curve: float
  brier: float
  bins: np.ndarray

  def report(self) -> dict[str, float]:
    """NLL in nats, Brier score, and expected calibration error in 15 bins of equal width."""
    gaps = np.abs(self.bins[:, 2] - self.bins[:, 1])
    return {
      "nll": self.nll / self.count,
      "brier": self.brier / self.count,
      "ece": float(gaps.sum()) / self.count,
      "accuracy": float(self.bins[:, 2].sum()) / self.count,
    }


def add(parts: Iterable[Sums]) -> Sums:
  """The sums of several parts together."""
  names = [field.name for field in dataclasses.fields(Sums)]
  rows = [[getattr(part, name) for name in names] for part in parts]
  return Sums(*(sum(column) for column in zip(*rows, strict=True)))


def fit(sums: Callable[[float], Sums]) -> float:
  """The temperature of the least NLL, within [0.02, 50].

  Args:
    sums: of the data at an inverse temperature.

  Raises:
    ValueError: the NLL is not finite.
  """
  low, high, b = 1 / HIGHEST, 1 / LOWEST, 1.0
  for _ in range(60):
    found = sums(b)
    if not np.isfinite(found.nll):
      raise ValueError("the log-likelihood of what was right is not finite; a score is infinite.")
    low, high = (b, high) if found.slope < 0 else (low, b)
    newton = b - found.slope / found.curve if found.curve > 0 else 0.0
    # Where Newton's step leaves what is known to hold the minimum, the middle in its place.
    following = newton if low < newton < high else (low * high) ** 0.5
    if abs(following - b) < 1e-6 * b:
      return 1 / following
    b = following
  return 1 / b


def choice_sums(scores: list[np.ndarray], right: list[int], b: float) -> Sums:
  """The sums of choices with any number of options each: a score an option, and which is right."""
  return add(_one(np.asarray(s, np.float64), r, b) for s, r in zip(scores, right, strict=True))


def _one(scores: np.ndarray, right: int, b: float) -> Sums:
  scaled = b * (scores - scores.max())
  log_p = scaled - np.log(np.exp(scaled).sum())
  p = np.exp(log_p)
  mean = float(p @ scores)
  wanted = np.eye(len(scores))[right]
  best = int(np.argmax(scores))
  bins = np.zeros((BINS, 3))
  bins[bin_of(p[best])] = 1, p[best], best == right
  return Sums(
    count=1,
    nll=-float(log_p[right]),
    slope=mean - float(scores[right]),
    curve=float(p @ np.square(scores - mean)),
    brier=float(np.square(p - wanted).sum()),
    bins=bins,
  )


def bin_of(confidence):
  """The bin ((i) / 15, (i + 1) / 15] of a probability, as in the paper."""
  return np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)


def read_temperature(folder: Path, step: int, which: str, name: str) -> float | None:
  """The temperature that is kept with a model for these very weights, or None."""
  try:
    kept = json.loads((folder / FILE).read_text(encoding="utf-8"))
    same = (kept["step"], kept["weights"]) == (step, which)
    return float(kept[name]["temperature"]) if same and name in kept else None
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{folder / FILE} can't be read: {error}; remove it.") from error

"""What a reward model is worth on held-out comparisons, from differences of scores."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.pairs import Pair

BINS = 15


def nll(difference: np.ndarray, sign: np.ndarray, temperature: float) -> float:
  """Mean -log sigmoid(sign * difference / temperature), in nats."""
  return float(np.mean(np.logaddexp(0.0, -sign * difference / temperature)))


def calibration_error(difference: np.ndarray, sign: np.ndarray, temperature: float) -> float:
  """Expected calibration error in 15 bins (https://arxiv.org/abs/1706.04599, equation 3).

  A prediction is the side with the higher score, its confidence sigmoid(|difference|), without a
  margin; it does not depend on which side is called chosen.
  """
  confidence = 1 / (1 + np.exp(-np.abs(difference) / temperature))
  right = sign * difference > 0
  bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
  error = 0.0
  for b in range(BINS):
    here = bins == b
    if here.any():
      error += here.mean() * abs(right[here].mean() - confidence[here].mean())
  return float(error)


def fit_temperature(difference: np.ndarray, sign: np.ndarray) -> float:
  """The temperature with the least NLL, between 0.01 and 100, by golden section over its log."""
  low, high = np.log(0.01), np.log(100.0)
  ratio = (np.sqrt(5) - 1) / 2
  while high - low > 1e-4:
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    # Convex in 1 / T, so unimodal in log T.
    if nll(difference, sign, np.exp(a)) < nll(difference, sign, np.exp(b)):
      high = b
    else:
      low = a
  return float(np.exp((low + high) / 2))


def accuracy(right: np.ndarray) -> dict[str, float]:
  """The mean of booleans with its standard error; a score of 1/2 is a coin's."""
  mean = float(np.mean(right)) if len(right) else float("nan")
  return {"n": len(right), "accuracy": mean, "standard_error": standard_error(right)}


def standard_error(values: np.ndarray) -> float:
  return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def length_baseline(train: Sequence[Pair], dimension: str) -> int:
  """1 where training pairs prefer the longer answer, -1 where they prefer the shorter one."""
  votes = [
    pair.signs[dimension] * np.sign(pair.lengths[0] - pair.lengths[1])
    for pair in train
    if pair.signs.get(dimension)
  ]
  return 1 if sum(votes) >= 0 else -1


def dimension_report(
  pairs: Sequence[Pair],
  difference: np.ndarray,
  dimension: str,
  temperature: float,
  longer_is_better: int,
  fitting: np.ndarray,
) -> dict[str, Any]:
  """Of one dimension: accuracy, calibration and ties, and what length alone would tell.

  Args:
    pairs: that are held out.
    difference: chosen minus rejected, [N], as normalised.
    temperature: that was fitted on the pairs of `fitting`.
    longer_is_better: of `length_baseline`.
    fitting: bool [N]; NLL and calibration error are of the other pairs. Accuracies are of all: no
      temperature changes them.
  """
  sign = np.array([pair.signs.get(dimension, 2) for pair in pairs])
  decided, ties = np.abs(sign) == 1, sign == 0
  d, s = difference[decided], sign[decided].astype(float)
  lengths = np.array([pair.lengths[0] - pair.lengths[1] for pair in pairs])[decided]
  by_length = np.where(lengths == 0, 0.5, s * longer_is_better * lengths > 0)
  right = np.where(d == 0, 0.5, s * d > 0)
  report: dict[str, Any] = accuracy(right)
  report["above_chance_in_standard_errors"] = _in_errors(right - 0.5)
  report["length_baseline"] = accuracy(by_length) | {
    "prefers": "longer" if longer_is_better > 0 else "shorter",
    "model_above_it_in_standard_errors": _in_errors(right - by_length),
  }
  report["ties"] = {
    "n": int(ties.sum()),
    "mean_difference": float(np.mean(np.abs(difference[ties]))) if ties.any() else None,
  }
  tested = ~fitting[decided]
  report["calibration"] = {"fitted_on": int(np.sum(~tested)), "n": int(np.sum(tested))}
  if tested.any():
    report["mean_difference"] = float(np.mean(np.abs(d)))
    report["temperature"] = temperature
    for name, t in (("before", 1.0), ("after", temperature)):
      report[f"nll_{name}"] = nll(d[tested], s[tested], t)
      report[f"calibration_error_{name}"] = calibration_error(d[tested], s[tested], t)
  return report


def _in_errors(values: np.ndarray) -> float | None:
  error = standard_error(values)
  return float(np.mean(values) / error) if error > 0 else None


def between_dimensions(
  pairs: Sequence[Pair], difference: np.ndarray, dimensions: Sequence[str]
) -> dict[str, Any]:
  """For every two dimensions: how often labels agree, scores agree, and accuracy in conflicts."""
  report = {}
  for (i, one), (j, two) in itertools.combinations(enumerate(dimensions), 2):
    both = [n for n, pair in enumerate(pairs) if pair.signs.get(one) and pair.signs.get(two)]
    if not both:
      continue
    first, second = (np.array([pairs[n].signs[name] for n in both]) for name in (one, two))
    a, b = difference[both, i], difference[both, j]
    conflict = first != second
    report[f"{one}/{two}"] = {
      "n": len(both),
      "labels_agree": float(np.mean(~conflict)),
      "scores_agree": float(np.mean(np.sign(a) == np.sign(b))),
      "in_conflict": {
        one: accuracy(first[conflict] * a[conflict] > 0),
        two: accuracy(second[conflict] * b[conflict] > 0),
      },
    }
  return report


def annotator_agreement(pairs: Sequence[Pair], dimensions: Sequence[str]) -> dict[str, Any]:
  """How often two annotators of the same pair say the same, beyond chance too (Cohen's kappa)."""
  same: dict[tuple, list[Pair]] = {}
  for pair in pairs:
    if pair.annotator is not None:
      key = (pair.group, pair.chosen.ids.tobytes(), pair.rejected.ids.tobytes())
      same.setdefault(key, []).append(pair)
  report = {}
  for dimension in dimensions:
    couples = [
      (a.signs[dimension], b.signs[dimension])
      for group in same.values()
      for a, b in itertools.combinations(group, 2)
      if dimension in a.signs and dimension in b.signs and a.annotator != b.annotator
    ]
    if not couples:
      continue
    agreed = float(np.mean([a == b for a, b in couples]))
    said = np.array(couples).reshape(-1)
    chance = float(sum(np.mean(said == sign) ** 2 for sign in (-1, 0, 1)))
    kappa = (agreed - chance) / (1 - chance) if chance < 1 else None
    report[dimension] = {"n": len(couples), "agreement": agreed, "kappa": kappa}
  return report


def table(dimensions: Mapping[str, Mapping[str, Any]]) -> str:
  """The report of each dimension, a line each, for people."""
  lines = [f"{'':16}{'pairs':>7}{'accuracy':>18}{'length alone':>18}{'ECE':>8}{'scaled':>8}"]
  for name, one in dimensions.items():
    base = one["length_baseline"]
    shown = [f"{x['accuracy']:.3f} +- {x['standard_error']:.3f}" for x in (one, base)]
    errors = [f"{one.get(f'calibration_error_{w}', float('nan')):.3f}" for w in ("before", "after")]
    lines.append(f"{name:16}{one['n']:>7}{shown[0]:>18}{shown[1]:>18}{errors[0]:>8}{errors[1]:>8}")
  return "\n".join(lines)

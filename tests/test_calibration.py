"""Temperature scaling: the fit against a scan, the measures against their definitions."""

import itertools

import numpy as np
import pytest

from train import calibration
from train.calibration import choice_sums, fit


def softmax(scores):
  mass = np.exp(scores - scores.max())
  return mass / mass.sum()


def items(count: int, temperature: float, seed: int = 0):
  """Choices whose right option is drawn from softmax(scores / temperature)."""
  rng = np.random.default_rng(seed)
  scores = [3 * rng.standard_normal(rng.integers(2, 6)) for _ in range(count)]
  right = [int(rng.choice(len(s), p=softmax(s / temperature))) for s in scores]
  return scores, right


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_fit_finds_the_temperature_that_made_the_data(temperature):
  scores, right = items(800, temperature)
  found = fit(lambda b: choice_sums(scores, right, b))
  np.testing.assert_allclose(found, temperature, rtol=0.2)
  nll = [choice_sums(scores, right, 1 / t).nll for t in (found, found * 1.01, found / 1.01)]
  assert nll[0] == min(nll)


def test_derivatives_are_those_of_the_nll():
  scores, right = items(50, 2.0)
  b, step = 0.7, 1e-5
  below, at, above = (choice_sums(scores, right, x) for x in (b - step, b, b + step))
  np.testing.assert_allclose(at.slope, (above.nll - below.nll) / (2 * step), rtol=1e-6)
  np.testing.assert_allclose(at.curve, (above.slope - below.slope) / (2 * step), rtol=1e-6)


def test_measures_are_their_definitions():
  scores, right = items(200, 1.0)
  report = choice_sums(scores, right, 0.8).report()
  p = [softmax(0.8 * s) for s in scores]
  best = np.array([q.max() for q in p])
  hit = np.array([q.argmax() == r for q, r in zip(p, right, strict=True)])
  np.testing.assert_allclose(
    report["nll"], -np.mean([np.log(q[r]) for q, r in zip(p, right, strict=True)])
  )
  brier = [((q - np.eye(len(q))[r]) ** 2).sum() for q, r in zip(p, right, strict=True)]
  np.testing.assert_allclose(report["brier"], np.mean(brier))
  edges = np.linspace(0, 1, 16)
  inside = [(best > low) & (best <= high) for low, high in itertools.pairwise(edges)]
  ece = sum(abs(hit[m].mean() - best[m].mean()) * m.mean() for m in inside if m.any())
  np.testing.assert_allclose(report["ece"], ece)
  assert report["accuracy"] == hit.mean()


def test_a_fit_of_what_is_always_right_ends_at_the_lowest_temperature():
  scores, right = [np.array([1.0, 0.0])] * 5, [0] * 5
  assert fit(lambda b: choice_sums(scores, right, b)) < 0.05
  assert fit(lambda b: choice_sums(scores, [1] * 5, b)) > 20


def test_parts_add_up():
  scores, right = items(40, 1.0)
  whole = choice_sums(scores, right, 1.0).report()
  halves = [choice_sums(scores[i::2], right[i::2], 1.0) for i in range(2)]
  for name, value in calibration.add(halves).report().items():
    np.testing.assert_allclose(value, whole[name])

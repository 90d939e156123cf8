"""Metrics of items, means with errors, and the comparison of two evaluations."""

import math

import numpy as np
import pytest

from data import prompts, scores
from data.benchmarks import Item
from train import compare_evaluations as compare

MC2 = {"mc2": (("a", "b", "c"), (1, 0, 1))}


def test_length_normalisation_divides_by_characters_or_bytes():
  item = Item("x", "q", ("aaaa", "éé"), 1)
  form = prompts.FORMS["hellaswag"]
  assert scores.score_choices(form, item, [-4.0, -4.4]) == {
    "acc": 0.0,  # -4 > -4.4
    "acc_norm": 0.0,  # -4/4 > -4.4/2
    "acc_bytes": 0.0,  # -4/4 > -4.4/4
  }
  assert scores.score_choices(form, item, [-8.0, -3.9]) == {
    "acc": 1.0,
    "acc_norm": 1.0,
    "acc_bytes": 1.0,
  }
  assert scores.score_choices(form, item, [-4.4, -4.3])["acc_norm"] == 0.0
  assert scores.score_choices(form, item, [-4.4, -4.3])["acc_bytes"] == 1.0


def test_mc2_is_the_mass_of_true_choices_and_does_not_underflow():
  item = Item("x", "q", ("a", "b"), 0, fields=MC2)
  lls = np.log([0.2, 0.5, 0.1]) - 3000
  assert scores.score_mc2(prompts.FORMS["truthfulqa_mc2"], item, lls)["acc"] == pytest.approx(0.375)


def test_equal_mc1_choices_are_broken_by_chance():
  form = prompts.FORMS["truthfulqa_mc1"]
  right = [
    scores.score_mc1(form, Item(str(i), "q", ("a", "b"), 0), [-1.0, -1.0])["acc"]
    for i in range(200)
  ]
  assert 70 < sum(right) < 130
  with pytest.raises(AssertionError):
    scores.score_mc1(form, Item("x", "q", ("a", "b"), 0), [math.nan, -1.0])


def test_a_tie_of_crows_pairs_is_no_stereotype():
  assert scores.score_pair(None, None, [-2.0, -2.0])["pct_stereotype"] == 0.0


def test_errors_are_those_of_the_sample():
  values = [0.0, 1.0, 1.0, 1.0]
  estimate = scores.mean(values)
  assert estimate.value == 0.75
  assert estimate.stderr == pytest.approx(np.std(values, ddof=1) / 2)
  assert scores.mean([1.0]).stderr is None


GROUPS = ([0.0, 1.0, 1.0, 1.0], [0.0, 0.0], [1.0])


def test_errors_of_groups_are_pooled():
  groups = [[{"acc": value} for value in group] for group in GROUPS]
  found = scores.summarize_groups("mmlu", groups)["acc"]
  assert (found.value, found.n) == (pytest.approx(4 / 7), 7)
  assert found.stderr == pytest.approx(math.sqrt(0.75 / (7 - 3) / 7))  # 0.75: squares within them
  assert scores.summarize_groups("mmlu", groups[:1]) == scores.summarize("mmlu", groups[0])
  assert scores.summarize_groups("mmlu", [groups[2], groups[2]])["acc"].stderr is None


@pytest.mark.peers
def test_pooled_errors_are_those_of_the_harness():
  from lm_eval.api.metrics import pooled_sample_stderr

  parts = [scores.mean(group) for group in GROUPS[:2]]
  expected = pooled_sample_stderr([part.stderr for part in parts], [part.n for part in parts])
  groups = [[{"acc": value} for value in group] for group in GROUPS[:2]]
  assert scores.summarize_groups("mmlu", groups)["acc"].stderr == pytest.approx(expected)


def test_bits_per_byte_is_of_all_texts_together():
  columns = [
    {"log_likelihood": -10.0 * math.log(2), "tokens": 5, "words": 2, "bytes": 10},
    {"log_likelihood": -90.0 * math.log(2), "tokens": 5, "words": 2, "bytes": 30},
  ]
  found = scores.summarize("heldout", columns)
  assert found["bits_per_byte"].value == pytest.approx(100 / 40)
  assert found["word_perplexity"].value == pytest.approx(2 ** (100 / 4))


def test_refusals_are_told_from_answers_and_from_nothing():
  assert scores.score_refusal("I’m sorry, but no.") == {"refused": 1.0, "answered": 0.0}
  assert scores.score_refusal("Take two eggs.") == {"refused": 0.0, "answered": 1.0}
  assert scores.score_refusal(" \n") == {"refused": 0.0, "answered": 0.0}


def test_winobias_gap_is_pro_less_anti():
  items = [{"acc": acc, "pro": pro} for acc, pro in ((1, 1), (1, 1), (0, 0), (1, 0))]
  found = scores.summarize("winobias", items)
  assert found["gap"].value == 0.5
  assert found["acc"].value == 0.75


def test_truthfulqa_generation_prefers_the_true_reference():
  item = Item("x", "q", ("Pigs cannot fly at all.", "Pigs fly south in winter."), None)
  item = Item(**{**item.__dict__, "fields": {"right": 1}})
  found = scores.score_generation(item, "Pigs cannot fly at all.")
  assert found["bleu_max"] == pytest.approx(100)
  assert found["rouge1_max"] == pytest.approx(100)
  assert found["bleu_acc"] == found["rougeL_acc"] == 1.0
  # Words in common: 2 of 5 and 5: F = 0.4.
  assert found["rouge1_diff"] == pytest.approx(100 - 40)


def test_a_comparison_is_paired():
  """The error of the difference is that of the items' differences, not of two samples."""

  def side(values, groups=("",) * 4):
    items = [
      {"id": str(i), "group": group, "scores": {"acc": v}}
      for i, (v, group) in enumerate(zip(values, groups, strict=False))
    ]
    return {"tasks": {"piqa": {"items": items}}}

  table = compare.compare(side([0, 1, 1, 0]), side([0, 1, 1, 1]))
  assert "75.00" in table
  assert f"25.00 ± {100 * np.std([0, 0, 0, 1], ddof=1) / 2:.2f}" in table
  subjects = ("anatomy", "anatomy", "virology", "virology")  # within them nothing differs
  table = compare.compare(side([0, 0, 1, 1], subjects), side([0, 0, 0, 0], subjects))
  assert "50.00 ± 0.00" in table and "-50.00 ± 0.00" in table
  with pytest.raises(ValueError, match="no task in common"):
    compare.compare(side([1]), {"tasks": {}})

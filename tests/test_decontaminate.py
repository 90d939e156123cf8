"""Evaluation items inside documents: every verbatim run of n words, and nothing shorter."""

import json
import os

import numpy as np
import pytest

from data import benchmarks, decontaminate
from data.decontaminate import Decontamination, EvaluationSet

WIDTH = 13


def make(sets, width=WIDTH):
  return decontaminate.make_index(Decontamination(width, sets))


def index_of(tmp_path, texts, width=WIDTH):
  path = tmp_path / "items.jsonl"
  path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
  return make({"quiz": EvaluationSet("lines", str(path))}, width)


def numbered(rng, count):
  return [f"w{n}" for n in rng.integers(0, 10**9, count)]


@pytest.mark.parametrize("shared", [WIDTH - 1, WIDTH, WIDTH + 1, 40])
def test_a_run_of_n_words_is_a_leak_and_one_less_is_none(shared, tmp_path):
  rng = np.random.default_rng(shared)
  items = [numbered(rng, 40) for _ in range(50)]
  index = index_of(tmp_path, [" ".join(item) for item in items])
  for number, item in enumerate(items):
    first = int(rng.integers(0, 40 - shared + 1))
    before, after = numbered(rng, int(rng.integers(0, 30))), numbered(rng, 20)
    text = " ".join([*before, *item[first : first + shared], *after])
    leak = decontaminate.find(text, index)
    assert (leak is not None) == (shared >= WIDTH)
    if leak:
      assert leak.item == f"quiz/items/{number}"
      assert leak.words == " ".join(item[first : first + WIDTH])


def test_case_punctuation_and_white_space_hide_nothing(tmp_path):
  item = "When the boiler is cold, what should a careful engineer (in 1890) check before lighting?"
  index = index_of(tmp_path, [item])
  hidden = "Q.\n" + item.upper().replace(" ", "\n").replace(",", " -- ").replace("(", "[")
  assert decontaminate.find(hidden, index).item == "quiz/items/0"
  assert decontaminate.find(item.replace("boiler", "kettle").replace("1890", "1891"), index) is None


def test_short_items_are_counted_and_find_nothing(tmp_path):
  index = index_of(tmp_path, ["Twelve words are one less than what makes up a leak here."])
  assert index.short == {"quiz": 1}
  assert (
    decontaminate.find("Twelve words are one less than what makes up a leak here. " * 2, index)
    is None
  )


def test_no_sets_and_no_words_are_no_leak(tmp_path):
  assert decontaminate.find("some text", make({}, WIDTH)) is None
  assert decontaminate.find("", index_of(tmp_path, ["a " * 20])) is None


def test_errors_name_the_set(tmp_path):
  with pytest.raises(ValueError, match=r"no reader 'hellaswagg'"):
    EvaluationSet("hellaswagg", "x")
  with pytest.raises(ValueError, match=r"none\.txt' matches no file"):
    make({"a": EvaluationSet("lines", str(tmp_path / "none.txt"))}, WIDTH)
  (tmp_path / "bad.jsonl").write_text('{"texts": "x"}\n')
  with pytest.raises(ValueError, match=r"bad\.jsonl:1"):
    make({"a": EvaluationSet("lines", str(tmp_path / "*.jsonl"))}, WIDTH)


def test_every_long_item_of_a_real_set_is_found_in_a_document_with_its_text():
  folder = os.environ.get("STRAITS_TEST_DATA")
  if not folder:
    pytest.skip("STRAITS_TEST_DATA names no folder of real data")
  path = f"{folder}/eval/mmlu/test/high_school_p*_test.csv"
  index = make({"mmlu": EvaluationSet("mmlu", path)}, WIDTH)
  items = benchmarks.read("mmlu", path)
  found = [decontaminate.find(f"He asked: {item.question}", index) for item in items]
  long = [len(decontaminate.words_of(item.question)) >= WIDTH for item in items]
  assert sum(long) > 50
  assert [leak is not None for leak, is_long in zip(found, long, strict=True) if is_long] == [
    True
  ] * sum(long)

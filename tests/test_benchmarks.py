"""Evaluation sets: every form of a row gives the same item, and a damaged row its place."""

import json
import os
from pathlib import Path

import pytest

from data import benchmarks

HELLASWAG = {
  "activity_label": "Roof shingle removal",
  "ctx_a": "A man is sitting on a roof.  He",
  "ctx_b": "starts [title] pulling",
  "endings": ["[substeps] up  roofing.", "a rubik's cube."],
  "label": "1",
}


def write(path: Path, rows: list[dict]) -> str:
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def test_hellaswag_is_cleaned_as_the_harness_does(tmp_path):
  (item,) = benchmarks.read("hellaswag", write(tmp_path / "a.jsonl", [HELLASWAG]))
  assert item.question == "Roof shingle removal: A man is sitting on a roof. He Starts. pulling"
  assert item.choices == (" up roofing.", "a rubik's cube.")
  assert item.answer == 1


def test_mmlu_with_a_header_without_one_and_from_the_hub_are_the_same(tmp_path):
  question = 'Which, "if any"?\nSay.'
  quoted = '"Which, ""if any""?\nSay."'
  (tmp_path / "law_test.csv").write_text(f"{quoted},a,b,c,d,C\n")
  (original,) = benchmarks.read("mmlu", str(tmp_path))
  header = "question,choice0,choice1,choice2,choice3,answer\n"
  (tmp_path / "law_test.csv").write_text(f"{header}{quoted},a,b,c,d,2\n")
  assert benchmarks.read("mmlu", str(tmp_path)) == [original]
  row = {"question": question, "subject": "law", "choices": list("abcd"), "answer": 2}
  (hub,) = benchmarks.read("mmlu", write(tmp_path / "x.jsonl", [row]))
  assert (hub.question, hub.choices, hub.answer, hub.group) == (question, tuple("abcd"), 2, "law")
  assert (original.question, original.answer, original.group) == (question, 2, "law")


def test_truthfulqa_in_both_forms(tmp_path):
  own = {"mc1_targets": {"no": 0, "yes": 1}, "mc2_targets": {"yes": 1, "ja": 1, "no": 0}}
  hub = {
    name: {"choices": list(targets), "labels": list(targets.values())}
    for name, targets in own.items()
  }
  path = write(tmp_path / "mc.jsonl", [{"question": "Is it?"} | own, {"question": "Is it?"} | hub])
  first, second = benchmarks.read("truthfulqa", path)
  assert first.fields == second.fields
  assert (first.choices, first.answer) == (("no", "yes"), 1)
  assert first.fields["mc2"] == (("yes", "ja", "no"), (1, 1, 0))


def test_truthfulqa_answers_are_sentences_and_no_comment_is_right(tmp_path):
  (tmp_path / "t.csv").write_text(
    "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
    "A,Law, Why? ,x,Because; So it is.,Never; ,url\n"
  )
  (item,) = benchmarks.read("truthfulqa_gen", str(tmp_path / "t.csv"))
  assert item.choices == ("Because.", "So it is.", "I have no comment.", "Never.")
  assert (item.question, item.fields["right"], item.group) == ("Why?", 3, "Law")


def test_winobias_finds_the_other_person(tmp_path):
  (tmp_path / "pro_stereotyped_type1.txt.dev").write_text(
    "1 [The mechanic] gave the clerk a present because [he] won.\n"
    "2 The mechanic gave [the clerk] a present because [she] cut [her] hair.\n"
  )
  first, second = benchmarks.read("winobias", str(tmp_path))
  assert first.question == "The mechanic gave the clerk a present because he won."
  assert (first.choices, first.answer) == (("mechanic", "clerk"), 0)
  assert (second.answer, second.fields) == (1, {"pro": True, "pronoun": "she"})


def test_an_item_without_answer_is_kept_and_says_so(tmp_path):
  path = write(tmp_path / "a.jsonl", [HELLASWAG | {"label": ""}])
  assert benchmarks.read("hellaswag", path)[0].answer is None


@pytest.mark.parametrize(
  "row, said",
  [
    ({"question": "x"}, "a/0 has no column 'choice0'"),
    ({"question": "x", "choices": ["a", "b"], "answer": 5}, "the answer 5 is none of its 2"),
  ],
)
def test_a_damaged_row_is_named(tmp_path, row, said):
  with pytest.raises(ValueError, match=said):
    benchmarks.read("mmlu", write(tmp_path / "a.jsonl", [row]))


def test_missing_files_sets_and_packages_are_named(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="no evaluation set 'mlmu'"):
    benchmarks.read("mlmu", "x")
  with pytest.raises(ValueError, match="matches no file"):
    benchmarks.read("mmlu", str(tmp_path / "nothing"))
  monkeypatch.setitem(__import__("sys").modules, "datasets", None)
  with pytest.raises(ValueError, match="needs the package `datasets`"):
    benchmarks.read("mmlu", "hf:cais/mmlu:all:test")


def test_texts_hold_the_question_with_its_right_answer(tmp_path):
  path = write(tmp_path / "a.jsonl", [HELLASWAG])
  ((name, text),) = benchmarks.texts("hellaswag", path)
  assert name == "a/0"
  assert text.split("\n")[0].endswith("pulling a rubik's cube.")
  assert text.split("\n")[1] == " up roofing."


def test_real_sets_are_read_whole():
  folder = os.environ.get("STRAITS_TEST_DATA")
  if not folder:
    pytest.skip("STRAITS_TEST_DATA names no folder of real data")
  expected = {
    ("hellaswag", "hellaswag"): 1000,
    ("mmlu", "mmlu/test"): 7926,
    ("truthfulqa", "truthfulqa/mc_task.json"): 500,
    ("truthfulqa_gen", "truthfulqa/TruthfulQA.csv"): 500,
    ("piqa", "extra/piqa.jsonl"): 1838,
    ("lambada", "extra/lambada_openai_small.jsonl"): 8,
    ("crows_pairs", "crows_pairs"): 1000,
    ("bbq", "bbq"): 2776,
    ("winobias", "winobias"): 1584,
    ("advbench", "advbench"): 520,
  }
  for (name, path), count in expected.items():
    items = benchmarks.read(name, f"{folder}/eval/{path}")
    assert len(items) == len({item.id for item in items}) == count, name

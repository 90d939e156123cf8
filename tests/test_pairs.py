"""Comparisons: their forms, labels and refusals; rows that hold both answers, prompts that stay."""

import functools
import json

import numpy as np
import pytest

from data.chat import TEMPLATES, ChatTemplate
from data.conversations import Row
from data.curate import refuse
from data.pair_batches import PairLoader, plan_epoch, to_batch
from data.pairs import PairSource, encode_answer, read_pairs
from tests.fixtures import make_chat

TEMPLATE = ChatTemplate(
  TEMPLATES["chatml"],
  json.loads(make_chat.FILE.read_text())["tokenizer"].encode(),
  make_chat.NAMES,
)
DIMENSIONS = ("harmlessness", "helpfulness", "honesty")
USER = {"role": "user", "content": "q"}
ROW = {"prompt": "q", "chosen": "good", "rejected": "bad"}


def judge(*rows, dimension="helpfulness", max_tokens=60, exclude=()):
  source = PairSource([Row(f"f:{i}", row) for i, row in enumerate(rows)], dimension)
  return read_pairs(
    {"f": source},
    TEMPLATE,
    dimensions=DIMENSIONS,
    scale=(1.0, 5.0),
    max_tokens=max_tokens,
    exclude=frozenset(exclude),
  )


def said(example):
  return TEMPLATE.decode(example.ids[example.mask])


@pytest.mark.parametrize(
  "row",
  [
    ROW,
    {"prompt": [USER], "chosen": [{"role": "assistant", "content": "good"}], "rejected": "bad"},
    {"chosen": [USER, {"role": "assistant", "content": "good"}],
     "rejected": [USER, {"role": "assistant", "content": "bad"}]},
    {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "good"},
     "rejected": {"from": "gpt", "value": "bad"}},
    {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
  ],
)  # fmt: skip
def test_every_form_gives_the_same_pair(row):
  (pair,) = judge(row).kept
  assert pair.prompt == [USER]
  assert (said(pair.chosen), said(pair.rejected)) == ("good<|im_end|>", "bad<|im_end|>")
  assert TEMPLATE.decode(pair.chosen.ids[-1:]) == "<|im_end|>"
  assert pair.signs == {"helpfulness": 1} and pair.strengths == {"helpfulness": 0.0}


def test_earlier_answers_of_a_dialogue_are_prompt():
  start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
  (pair,) = judge({"chosen": f"{start} good", "rejected": f"{start} bad"}).kept
  assert [m["content"] for m in pair.prompt] == ["a", "b", "c"]
  assert said(pair.chosen) == "good<|im_end|>"


def test_labels_ratings_ties_and_missing_dimensions():
  labels = {
    "helpfulness": {"label": "rejected", "strength": 2},
    "honesty": "tie",
    "harmlessness": None,
  }
  ratings = {
    "chosen": {"helpfulness": 5, "honesty": 2, "harmlessness": 3},
    "rejected": {"helpfulness": 1, "honesty": 2.5},
  }
  first, second = judge(ROW | {"labels": labels}, ROW | {"ratings": ratings, "annotator": 7}).kept
  assert first.signs == {"helpfulness": -1, "honesty": 0}
  assert first.strengths == {"helpfulness": 2.0, "honesty": 0.0}
  assert second.signs == {"helpfulness": 1, "honesty": -1}
  assert second.strengths == {"helpfulness": 4.0, "honesty": 0.5} and second.annotator == "7"


@pytest.mark.parametrize(
  ("row", "reason"),
  [
    (ROW | {"rejected": "good "}, "identical_pair"),
    (ROW | {"rejected": " "}, "empty_answer"),
    ({"prompt": "q", "chosen": "good"}, "broken_row"),
    ({"chosen": "no prompt", "rejected": "none"}, "broken_row"),
    ({"chosen": "\n\nHuman: q", "rejected": "\n\nHuman: q"}, "no_answer"),
    ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"},
     "broken_row"),
    (ROW | {"prompt": [{"role": "robot", "content": "x"}]}, "unknown_role"),
    (ROW | {"labels": {"helpfulness": "better"}}, "bad_rating"),
    (ROW | {"labels": {"beauty": "chosen"}}, "bad_rating"),
    (ROW | {"labels": {"helpfulness": {"label": "chosen", "strength": 9}}}, "bad_rating"),
    (ROW | {"ratings": {"chosen": {"honesty": 6}, "rejected": {"honesty": 1}}}, "bad_rating"),
    (ROW | {"ratings": {"chosen": {"honesty": True}, "rejected": {"honesty": 1}}}, "bad_rating"),
    (ROW | {"ratings": {"chosen": {"honesty": float("nan")}, "rejected": {"honesty": 1}}},
     "bad_rating"),
    (ROW | {"ratings": [1, 2]}, "bad_rating"),
    (ROW | {"labels": {}}, "no_label"),
    ({"prompt": "word " * 60, "chosen": "a", "rejected": "b"}, "too_long"),
    ({"prompt": "q", "chosen": "a " * 60 + "a", "rejected": "a " * 60 + "b"}, "identical_pair"),
  ],
)  # fmt: skip
def test_bad_rows_have_their_reason_and_can_be_refused(row, reason):
  curated = judge(ROW, row)
  assert [(drop.place, drop.reason) for drop in curated.dropped] == [("f:1", reason)]
  with pytest.raises(ValueError, match=f"f:1: {reason}"):
    refuse(curated, (reason,))
  assert curated.report()["dropped"] == {reason: 1}
  with pytest.raises(ValueError, match=r"data\.refuse has 'ugly'"):
    refuse(curated, ("ugly",))


def test_duplicates_overlaps_and_rows_without_a_dimension():
  assert [d.reason for d in judge(ROW, ROW).dropped] == ["duplicate"]
  assert judge(ROW | {"annotator": "a"}, ROW | {"annotator": "b"}).dropped == []
  assert judge(ROW, dimension=None).dropped[0].reason == "no_label"
  (pair,) = judge(ROW).kept
  assert judge(ROW, exclude=[pair.group]).dropped[0].reason == "overlap"


def test_an_answer_that_is_cut_ends_like_any_other():
  prompt = [USER]
  whole, cut = encode_answer(TEMPLATE, prompt, "word " * 20, 200)
  assert not cut
  short, cut = encode_answer(TEMPLATE, prompt, "word " * 20, len(whole.ids) - 7)
  assert cut and len(short.ids) == len(whole.ids) - 7
  assert short.ids[-1] == whole.ids[-1] == TEMPLATE.end_id
  np.testing.assert_array_equal(short.ids[:-1], whole.ids[: len(short.ids) - 1])
  assert short.mask[-1] and short.mask.sum() == whole.mask.sum() - 7


def many(prompts=9, answers=3):
  rows = [
    {"prompt": f"question {p}", "chosen": f"good {'so ' * (a + p % 4)}", "rejected": f"bad {a}"}
    for p in range(prompts)
    for a in range(answers)
  ]
  return judge(*rows, max_tokens=80).kept


def test_a_row_holds_both_answers_and_says_where_they_end():
  pairs = many(2, 2)
  pairs[1].signs["honesty"], pairs[1].strengths["honesty"] = -1, 3.0
  batch = to_batch([pairs[:2], pairs[2:3]], DIMENSIONS, 160, 3)
  tokens = batch["tokens"]
  for r, p, pair in ((0, 0, pairs[0]), (0, 1, pairs[1]), (1, 0, pairs[2])):
    for name, side in (("chosen_at", pair.chosen), ("rejected_at", pair.rejected)):
      end = batch[name][r, p]
      np.testing.assert_array_equal(tokens[r, end + 1 - len(side.ids) : end + 1], side.ids)
      segment = batch["segment_ids"][r, end]
      assert batch["positions"][r, end] == len(side.ids) - 1
      at = batch["segment_ids"][r] == segment
      targets = batch["targets"][r, at][batch["loss_weights"][r, at] > 0]
      np.testing.assert_array_equal(targets, side.ids[side.mask])
  np.testing.assert_array_equal(batch["real"], [[1, 1, 0], [1, 0, 0]])
  np.testing.assert_array_equal(batch["rated"][0], [[0, 1, 0], [0, 1, 1], [0, 0, 0]])
  assert batch["sign"][0, 1].tolist() == [0, 1, -1] and batch["strength"][0, 1, 2] == 3


def test_all_pairs_of_a_prompt_are_in_one_batch_and_each_epoch_has_them_all():
  pairs = many()
  sizes = {"batch_size": 4, "seq_len": 100, "max_pairs": 4}
  plans = [plan_epoch(pairs, 5, epoch, **sizes) for epoch in (0, 1)]
  for plan in plans:
    places = [[pair.place for row in batch for pair in row] for batch in plan]
    assert sorted(p for batch in places for p in batch) == sorted(pair.place for pair in pairs)
    homes = {}
    for number, batch in enumerate(plan):
      assert len(batch) <= 4
      for row in batch:
        assert sum(pair.size for pair in row) <= 100
        for pair in row:
          assert homes.setdefault(pair.group, number) == number
  assert plans[0] != plans[1]
  with pytest.raises(ValueError, match="the 3 pairs of the prompt of f:"):
    plan_epoch(pairs, 5, 0, batch_size=1, seq_len=75, max_pairs=1)


def test_batches_of_pairs_do_not_depend_on_hosts_or_restarts():
  pairs = many()
  make_batch = functools.partial(to_batch, dimensions=DIMENSIONS, seq_len=100, max_pairs=4)

  def loader(cursors=None, index=0, count=1):
    return PairLoader(
      pairs, make_batch, 5, batch_size=4, seq_len=100, max_pairs=4,
      host_index=index, host_count=count, cursors=cursors,
    )  # fmt: skip

  straight = loader()
  batches = [next(straight) for _ in range(2 * straight.batches_an_epoch + 1)]
  parts = [loader(index=i, count=2) for i in range(2)]
  for batch, _ in batches:
    halves = [next(part)[0] for part in parts]
    for name, array in batch.items():
      np.testing.assert_array_equal(np.concatenate([h[name] for h in halves]), array)
  resumed = loader(cursors=batches[2][1])
  for batch, cursors in batches[3:]:
    again, there = next(resumed)
    assert there == cursors
    np.testing.assert_array_equal(again["tokens"], batch["tokens"])

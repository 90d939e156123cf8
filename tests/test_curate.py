"""Every row is kept or has a reason, and the report adds up."""

import json

import pytest

from data.chat import TEMPLATES, ChatTemplate
from data.conversations import Row, RowError, read
from data.curate import LeakFinder, curate, refuse, write_report
from tests.fixtures import make_chat

TEMPLATE = ChatTemplate(
  TEMPLATES["chatml"],
  json.loads(make_chat.FILE.read_text())["tokenizer"].encode(),
  make_chat.NAMES,
)
OPTIONS = {"max_tokens": 200, "too_long": "drop", "dedup_threshold": None, "leaks": {}}
LONG = "word " * 30


def judge(*rows, **options):
  places = [Row(f"f:{i}", row) for i, row in enumerate(rows)]
  return curate({"f": places}, TEMPLATE, **OPTIONS | options)


def talk(*contents):
  return {"messages": make_chat.turns(*contents)}


@pytest.mark.parametrize(
  ("row", "reason"),
  [
    (RowError("broken_row", "no JSON"), "broken_row"),
    ({"messages": [{"role": "robot", "content": "x"}, *make_chat.turns("q", "a")]}, "unknown_role"),
    (talk("only a question"), "no_answer"),
    (talk("q", " \n"), "empty_answer"),
    (talk("q", "a", "q2", ""), "empty_answer"),
    (talk("q", "lost \ufffd"), "broken_answer"),
    (talk("q", "```python\nprint(1)"), "broken_answer"),
    (talk("q", "same\n" * 8), "broken_answer"),
    (talk(LONG.strip(), LONG), "broken_answer"),
    (talk("q", "ends <|im_end|> early"), "template"),
    (talk("q", LONG * 9), "too_long"),
  ],
)
def test_bad_rows_have_their_reason_and_can_be_refused(row, reason):
  curated = judge(talk("q", "a"), row)
  assert [drop.reason for drop in curated.dropped] == [reason] and len(curated.kept) == 1
  refuse(curated, ())
  with pytest.raises(ValueError, match=f"f:1: {reason}: .*1 such rows"):
    refuse(curated, (reason,))


def test_what_is_not_answered_is_cut_off_and_long_talks_end_with_a_turn():
  curated = judge(talk("q", "a", "unanswered"), talk("q", "b", "q2", LONG * 9), too_long="truncate")
  assert [one.messages for one in curated.kept] == [
    make_chat.turns("q", "a"),
    make_chat.turns("q", "b"),
  ]
  assert [one.truncated for one in curated.kept] == [False, True]
  assert judge(talk("q", LONG * 9), too_long="truncate").dropped[0].reason == "too_long"


def test_a_conversation_of_exactly_the_room_is_kept():
  row = talk("q", "a")
  size = len(TEMPLATE.encode(row["messages"]).ids)
  assert judge(row, max_tokens=size).kept
  assert judge(row, max_tokens=size - 1).dropped[0].reason == "too_long"


def test_duplicates_and_near_duplicates():
  text = "one two three four five six seven eight nine ten eleven twelve"
  rows = [talk("q", text), talk("q", text), talk("q", text + " thirteen"), talk("other", "answer")]
  curated = judge(*rows)
  assert [drop.reason for drop in curated.dropped] == ["duplicate"]
  curated = judge(*rows, dedup_threshold=0.7)
  assert sorted(drop.reason for drop in curated.dropped) == ["duplicate", "near_duplicate"]
  assert len(curated.kept) == 2


def test_leaks_of_evaluation_items_are_found(tmp_path):
  finder = LeakFinder(["What IS the capital city, of France?", "too short"])
  assert finder.short == 1
  assert finder.find("so: what is the capital city of france, then").startswith("What IS")
  assert finder.find("what is the capital of France") is None
  long = " ".join(f"w{i}" for i in range(30))
  finder = LeakFinder([long])
  assert finder.find("x " + " ".join(f"w{i}" for i in range(9, 22)) + " y") is not None
  assert finder.find("x " + " ".join(f"w{i}" for i in range(9, 21)) + " y") is None


def test_the_report_adds_up_and_names_every_row(tmp_path):
  file = tmp_path / "rows.jsonl"
  rows = [talk("q", "a"), talk("q", "a"), talk("q"), {"nothing": 1}]
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  curated = curate({"mine": read(str(file))}, TEMPLATE, **OPTIONS)
  report = write_report(curated, tmp_path / "run")
  assert report == json.loads((tmp_path / "run" / "curation.json").read_text())
  assert report["rows"] == 4 == report["kept"] + sum(report["dropped"].values())
  assert report["dropped"] == {"broken_row": 1, "no_answer": 1, "duplicate": 1}
  assert report["sources"]["mine"]["kept"] == 1
  lines = [json.loads(x) for x in (tmp_path / "run" / "dropped.jsonl").read_text().splitlines()]
  assert [line["place"] for line in lines] == [f"{file}:{i}" for i in (2, 3, 4)]

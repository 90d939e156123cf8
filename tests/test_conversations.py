"""Rows of every form, files of every kind, and what is no conversation."""

import json

import pytest

from data.conversations import RowError, prompt_text, read, to_messages

PAIR = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
  "row",
  [
    {"messages": PAIR},
    {"prompt": "q", "completion": "a"},
    {"prompt": "q", "response": "a"},
    {"prompt": PAIR[:1], "completion": PAIR[1:]},
    {"instruction": "q", "input": "", "output": "a"},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {"messages": None, "conversations": [{"from": "user", "value": "q"}, PAIR[1]]},
  ],
)
def test_every_form_gives_the_same_messages(row):
  assert to_messages(row) == PAIR


def test_an_input_follows_its_instruction_and_the_prompt_ends_at_the_answer():
  row = {"instruction": "Add.", "input": "1 2", "output": "3"}
  assert to_messages(row)[0]["content"] == "Add.\n\n1 2"
  assert (
    prompt_text([{"role": "system", "content": " s\n t"}, *PAIR, *PAIR]) == "system: s t\nuser: q"
  )


@pytest.mark.parametrize(
  ("row", "reason", "message"),
  [
    ({"text": "x"}, "broken_row", "its keys are text"),
    ({}, "broken_row", "its keys are none"),
    ({"messages": []}, "broken_row", "no list of messages"),
    ({"messages": ["hi"]}, "broken_row", "message 1 is no object"),
    ({"messages": [{"content": "x"}]}, "broken_row", "neither `role` nor `from`"),
    ({"messages": [{"role": "user", "content": 3}]}, "broken_row", "`message 1` is int"),
    ({"prompt": "q", "completion": None}, "broken_row", "`assistant` is NoneType"),
    ({"conversations": [{"from": "narrator", "value": "x"}]}, "unknown_role", "'narrator'"),
  ],
)
def test_what_is_no_conversation_has_a_reason(row, reason, message):
  with pytest.raises(RowError, match=message) as error:
    to_messages(row)
  assert error.value.reason == reason


def test_files_of_every_kind_are_read_with_the_place_of_each_row(tmp_path):
  import pyarrow
  import pyarrow.parquet

  rows = [{"messages": PAIR}, {"messages": PAIR * 2}]
  (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]) + "\n\n{no json\n[1]\n")
  (tmp_path / "b.json").write_text(json.dumps(rows))
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
  found = list(read(str(tmp_path / "*")))
  places = [row.place.removeprefix(f"{tmp_path}/") for row in found]
  assert places == ["a.jsonl:1", "a.jsonl:3", "a.jsonl:4", "b.json:1", "b.json:2",
                    "c.parquet:1", "c.parquet:2"]  # fmt: skip
  assert [isinstance(row.value, RowError) for row in found] == [False, True, True] + [False] * 4
  assert [to_messages(row.value) for row in found[3:]] == [PAIR, PAIR * 2] * 2
  (tmp_path / "d.txt").write_text("")
  with pytest.raises(ValueError, match=r"d\.txt must end in"):
    list(read(str(tmp_path / "d.txt")))
  (tmp_path / "e.parquet").write_text("PAR1")
  with pytest.raises(ValueError, match="no Parquet file"):
    list(read(str(tmp_path / "e.parquet")))

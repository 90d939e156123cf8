"""Rows of instruction data to conversations: messages, prompt and completion, Alpaca, ShareGPT.

  {"messages": [{"role": "user", "content": "..."}, ...]}
  {"prompt": "..." or messages, "completion": "..." or messages}    ("response" does as well)
  {"instruction": "...", "input": "...", "output": "..."}
  {"conversations": [{"from": "human", "value": "..."}, ...]}

The form is told by the keys of each row. Files are JSONL, a JSON list, or Parquet.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from data.documents import find

SPEAKERS = {
  "human": "user",
  "user": "user",
  "gpt": "assistant",
  "assistant": "assistant",
  "chatgpt": "assistant",
  "system": "system",
  "tool": "tool",
}


class RowError(ValueError):
  """A row that is no conversation; `reason` is a word to count it by."""

  def __init__(self, reason: str, message: str):
    super().__init__(message)
    self.reason = reason


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of a file.

  Attributes:
    place: file and line (or row) to name it by.
    value: what it holds, or the error of reading it.
  """

  place: str
  value: dict[str, Any] | RowError


def read(pattern: str) -> Iterator[Row]:
  """The rows of files, in order of their names.

  Raises:
    ValueError: no file matches, or one is neither JSONL, JSON nor Parquet.
  """
  files = find(pattern)
  for path in files.paths:
    suffix = PurePath(path).suffix
    if suffix == ".parquet":
      rows = _parquet(files.fs, path)
    elif suffix in (".jsonl", ".ndjson"):
      rows = _jsonl(files.fs, path)
    elif suffix == ".json":
      rows = _json(files.fs, path)
    else:
      raise ValueError(f"{path} must end in .jsonl, .json (a list) or .parquet.")
    for number, value in rows:
      yield Row(f"{path}:{number}", value)


def _jsonl(fs, path: str) -> Iterator[tuple[int, Any]]:
  with fs.open(path, "rb") as file:
    for number, line in enumerate(file, start=1):
      if line.strip():
        yield number, _parsed(line)


def _json(fs, path: str) -> Iterator[tuple[int, Any]]:
  with fs.open(path, "rb") as file:
    first = file.read(1024).lstrip()[:1]
  if first != b"[":
    yield from _jsonl(fs, path)
    return
  with fs.open(path, "rb") as file:
    try:
      rows = json.load(file)
    except (ValueError, RecursionError) as error:
      raise ValueError(f"{path} is no JSON list: {error}") from error
  for number, row in enumerate(rows, start=1):
    yield number, _object(row)


def _parquet(fs, path: str) -> Iterator[tuple[int, Any]]:
  try:
    import pyarrow.parquet
  except ImportError:
    raise ValueError(
      f"{path}: to read Parquet, install the extra: pip install -e '.[corpus]'"
    ) from None
  with fs.open(path, "rb") as file:
    try:
      number = 0
      for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
        for row in batch.to_pylist():
          number += 1
          yield number, _object(row)
    except pyarrow.ArrowException as error:
      raise ValueError(f"{path} is no Parquet file, or is damaged: {error}") from error


def _parsed(line: bytes) -> dict[str, Any] | RowError:
  try:
    return _object(json.loads(line))
  except (ValueError, RecursionError) as error:
    return RowError("broken_row", f"no JSON: {error}")


def _object(row: Any) -> dict[str, Any] | RowError:
  if not isinstance(row, dict):
    return RowError("broken_row", f"a {type(row).__name__}, and no object")
  return row


def to_messages(row: Mapping[str, Any]) -> list[dict[str, str]]:
  """The messages of a row, of any of the forms.

  Raises:
    RowError: the keys are those of no form, a value is of another kind, or a speaker is unknown.
  """
  if row.get("messages") is not None:
    return messages_of(row["messages"], "messages")
  if row.get("conversations") is not None:
    return messages_of(row["conversations"], "conversations")
  if row.get("prompt") is not None:
    answer = row.get("completion") if row.get("completion") is not None else row.get("response")
    return [*turns(row["prompt"], "user"), *turns(answer, "assistant")]
  if row.get("instruction") is not None and "output" in row:
    question = _text(row["instruction"], "instruction")
    if row.get("input"):
      question += "\n\n" + _text(row["input"], "input")
    return [*turns(question, "user"), *turns(row["output"], "assistant")]
  raise RowError(
    "broken_row",
    f"its keys are {', '.join(map(str, row)) or 'none'}; they must be messages, conversations, "
    "prompt and completion, or instruction and output",
  )


def turns(value: Any, role: str) -> list[dict[str, str]]:
  """Messages as they are, or a text as one message of `role`."""
  if isinstance(value, list):
    return messages_of(value, role)
  return [{"role": role, "content": _text(value, role)}]


def messages_of(value: Any, key: str) -> list[dict[str, str]]:
  """Messages of {"role", "content"} or of ShareGPT's {"from", "value"}."""
  if not isinstance(value, list) or not value:
    raise RowError("broken_row", f"`{key}` is no list of messages")
  return [_message(message, number) for number, message in enumerate(value, start=1)]


def _message(message: Any, number: int) -> dict[str, str]:
  if not isinstance(message, dict):
    raise RowError("broken_row", f"message {number} is no object")
  if "from" in message:
    speaker = message["from"]
    if speaker not in SPEAKERS:
      raise RowError("unknown_role", f"message {number} is from {speaker!r}")
    return {"role": SPEAKERS[speaker], "content": _text(message.get("value"), f"message {number}")}
  if "role" not in message:
    raise RowError("broken_row", f"message {number} has neither `role` nor `from`")
  content = _text(message.get("content"), f"message {number}")
  return {"role": str(message["role"]), "content": content}


def _text(value: Any, what: str) -> str:
  if not isinstance(value, str):
    raise RowError("broken_row", f"`{what}` is {type(value).__name__}, and no text")
  return value.encode("utf-8", "replace").decode("utf-8")  # JSON can spell half a surrogate pair


def prompt_text(messages: list[dict[str, str]]) -> str:
  """What is said before the first answer: by it a conversation is held out, and overlaps."""
  said = []
  for message in messages:
    if message["role"] == "assistant":
      break
    said.append(f"{message['role']}: {' '.join(message['content'].split())}")
  return "\n".join(said)

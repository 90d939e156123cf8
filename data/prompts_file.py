"""Prompts to continue or to answer, from a file: text with a prompt a line, or JSONL."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt of a file.

  Attributes:
    name: where it is, for messages: its "id", or file and line.
    text: to continue, or to answer where there is a chat template.
    messages: a conversation to answer, in place of the text.
    source: the line as it was, for what comes back.
  """

  name: str
  text: str
  messages: tuple[Mapping[str, str], ...]
  source: Mapping[str, Any]


def read_prompts(path: Path) -> list[Prompt]:
  """The prompts of a file, one a line; empty lines are none.

  A .jsonl file has an object a line with "prompt", a text, or "messages", a list of {"role",
  "content"}; "id" names it, and all else comes back as it is. Any other file is text.

  Raises:
    ValueError: the file cannot be read or has no prompts, or a line is none.
  """
  try:
    lines = path.read_text(encoding="utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f"prompts={str(path)!r} cannot be read: {error}") from error
  found = []
  for number, line in enumerate(lines, start=1):
    if line.strip():
      place = f"{path}:{number}"
      found.append(_of_json(line, place) if path.suffix == ".jsonl" else of_text(line, place))
  if not found:
    raise ValueError(f"prompts={str(path)!r} has no prompt.")
  return found


def of_text(text: str, name: str) -> Prompt:
  return Prompt(name, text, (), {"prompt": text})


def _of_json(line: str, place: str) -> Prompt:
  try:
    source = json.loads(line)
  except ValueError as error:
    raise ValueError(f"{place} is no JSON: {error}") from error
  if not isinstance(source, dict) or ("prompt" in source) == ("messages" in source):
    raise ValueError(f'{place} must be an object with either "prompt" or "messages".')
  text, messages = source.get("prompt", ""), source.get("messages", [])
  if not isinstance(text, str) or not isinstance(messages, list) or not (text or messages):
    raise ValueError(f'{place}: "prompt" must be a text and "messages" a list, and not empty.')
  if not all(isinstance(message, dict) for message in messages):
    raise ValueError(f'{place}: a message must be an object with "role" and "content".')
  return Prompt(str(source.get("id", place)), text, tuple(messages), source)

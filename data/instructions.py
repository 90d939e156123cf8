"""Instructions that the project makes itself: from CPython's documentation, and small exercises.

A conversation asks what a function or a module is for and answers by the first sentence of its
documentation, where something is found, what a sum or the larger of two numbers is, or the like.
Nothing is downloaded; the same Python gives the same conversations.
"""

import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

from data import embedded

EXERCISES = 3_000
_SENTENCE = re.compile(r"(.{20,200}?[.!?])(?:\s|$)", re.DOTALL)
_IDENTIFIER = re.compile(r"[A-Za-z_][\w.]*")


def write(path: Path) -> Path:
  """Writes the conversations as JSONL of {"messages"}, unless the file is there; returns `path`."""
  if path.exists():
    return path
  lines = [json.dumps({"messages": messages}) + "\n" for messages in conversations()]
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f"{path.name}.{os.getpid()}")
  partial.write_text("".join(lines), encoding="utf-8")
  partial.replace(path)
  return path


def conversations() -> Iterator[list[dict[str, str]]]:
  """Every conversation, of one to three questions with their answers."""
  rng = random.Random(0)
  pairs = [*_from_documentation(), *(_exercise(rng) for _ in range(EXERCISES))]
  rng.shuffle(pairs)
  while pairs:
    taken = [pairs.pop() for _ in range(min(len(pairs), rng.choice((1, 1, 1, 2, 3))))]
    messages = []
    for question, answer in taken:
      messages.append({"role": "user", "content": question})
      messages.append({"role": "assistant", "content": answer})
    yield messages


def _from_documentation() -> Iterator[tuple[str, str]]:
  for name, text in embedded.documents():
    head, _, body = text.partition("\n\n")
    if name.startswith("topic/") or head != name or not _IDENTIFIER.fullmatch(name):
      continue
    found = _SENTENCE.match(" ".join(body.split()))
    if not found or name.rpartition(".")[2].startswith("_"):
      continue
    module, _, short = name.rpartition(".")
    if module and body.count("\n") < 40:
      yield f"What is {short} of the module {module} for?", found[1]
    elif not module:
      yield f"What is the module {name} about?", found[1]
    if module and len(name) % 3 == 0:
      yield f"Where do I find {short}?", f"{short} is in the module {module}."


def _exercise(rng: random.Random) -> tuple[str, str]:
  a, b = rng.randrange(100), rng.randrange(100)
  kind = rng.randrange(5)
  if kind == 0:
    return f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."
  if kind == 1:
    answer = f"{max(a, b)} is larger." if a != b else "They are equal."
    return f"Which is larger, {a} or {b}?", answer
  if kind == 2:
    return f"Is {a} even or odd?", f"{a} is {'odd' if a % 2 else 'even'}."
  words = rng.sample(_WORDS, 2)
  if kind == 3:
    return f"Repeat: {words[0]} {words[1]}", f"{words[0]} {words[1]}"
  first = min(words)
  return f"Which comes first in the alphabet, {words[0]} or {words[1]}?", f"{first} comes first."


_WORDS = re.findall(
  r"\w+",
  """
  argument array bytes class code context default dict element encoding error event exception
  expression field file filter format function handler header index input instance integer item
  iterator key language length level line list loop message method module name number object
  operator option output package parameter path pattern process program queue record reference
  result sequence server set signal socket source stack state stream string table task text thread
  time token tuple type value variable version window word
  """,
)

"""Comparisons that the project makes itself: what a pipeline without data learns rewards from.

Of the instructions of `data.instructions`: the answer that belongs to a question is more helpful
than one to another question, and more honest than one whose number or name is another; a polite one
is less harmful than the same with an insult. Each pair speaks of one or two dimensions.
"""

import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

from data import instructions

_NUMBER = re.compile(r"\d+")
_INSULTS = ("you fool", "you idiot", "stupid question")


def write(path: Path, count: int = 4_000) -> Path:
  """Writes the comparisons as JSONL, unless the file is there; returns `path`."""
  if path.exists():
    return path
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f"{path.name}.{os.getpid()}")
  rows = (row for row, _ in zip(comparisons(), range(count), strict=False))
  partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
  partial.replace(path)
  return path


def comparisons() -> Iterator[dict]:
  """Rows as `data.pairs` reads them, the same for the same Python."""
  rng = random.Random(1)
  pairs = [
    (messages[0]["content"], messages[1]["content"]) for messages in instructions.conversations()
  ]
  for number, (question, answer) in enumerate(pairs):
    kind = number % 3
    if kind == 0:
      rejected = pairs[rng.randrange(len(pairs))][1]
      labels = {"helpfulness": {"label": "chosen", "strength": 2}}
    elif kind == 1:
      rejected = f"{answer.rstrip('.')}, {rng.choice(_INSULTS)}."
      labels = {
        "harmlessness": {"label": "chosen", "strength": 2},
        "helpfulness": {"label": "tie", "strength": 0},
      }
    else:
      rejected = _false(answer, rng)
      labels = {"honesty": {"label": "chosen", "strength": 2}}
    if rejected != answer:
      yield {"prompt": question, "chosen": answer, "rejected": rejected, "labels": labels}


def _false(answer: str, rng: random.Random) -> str:
  """The answer with another last number, or with its words in another order."""
  numbers = list(_NUMBER.finditer(answer))
  if numbers:
    last = numbers[-1]
    return f"{answer[: last.start()]}{int(last[0]) + rng.randrange(1, 20)}{answer[last.end() :]}"
  words = answer.rstrip(".").split()
  rng.shuffle(words)
  return " ".join(words) + "."

"""What of instruction data is kept: every row is a conversation to train on, or has a reason.

  broken_row       no JSON object, keys of no known form, or a value of another kind
  unknown_role     a speaker that is none
  no_answer        the assistant says nothing in it
  empty_answer     an answer is empty
  broken_answer    an answer has characters that were lost, repeats a line over and over, leaves a
                   code block open, or is the question again
  template         the chat template refuses it, or leaves a message out
  too_long         it has more tokens than a row, and too_long is "drop", or its first answer does
  duplicate        the same conversation is there before
  near_duplicate   most of its runs of 5 words are those of another one
  leak             it holds a run of words of an evaluation item

Rows are judged in this order; what the assistant does not answer, at the end, is cut off before.
"""

import collections
import dataclasses
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data import dedup
from data.benchmarks import texts
from data.chat import Chat, ChatError, ChatTemplate
from data.conversations import Row, RowError, prompt_text, to_messages

REASONS = (
  *("broken_row", "unknown_role", "no_answer", "empty_answer", "broken_answer", "template"),
  *("too_long", "duplicate", "near_duplicate", "leak"),
  *("identical_pair", "bad_rating", "no_label", "overlap", "tie"),  # of comparisons
)
# Characters that stand for lost ones, and controls that no text holds.
_LOST = re.compile("[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f]")
_REPEATED_LINES = 8
# Runs of words by which an item is found: 13 as in https://arxiv.org/abs/2005.14165, or all of an
# item that is shorter, but for items of so few words that any text may hold them.
LEAK_WORDS, LEAST_LEAK_WORDS = 13, 6
_EXAMPLES_A_REASON = 5


@dataclasses.dataclass(frozen=True)
class Kept:
  """A conversation to train or evaluate on.

  Attributes:
    source, place: its source's name, and where in it.
    messages: of it.
    chat: its ids and mask.
    truncated: whether turns at its end were cut off.
  """

  source: str
  place: str
  messages: list[dict[str, str]]
  chat: Chat
  truncated: bool


@dataclasses.dataclass(frozen=True)
class Dropped:
  source: str
  place: str
  reason: str
  detail: str


@dataclasses.dataclass(frozen=True)
class Curated:
  """What became of the rows; `short_items` of the evaluation were too short to look for."""

  kept: list[Kept]
  dropped: list[Dropped]
  short_items: int

  def report(self) -> dict:
    """Counts, overall and by source and reason, with some places of each."""
    by_source: dict[str, collections.Counter] = {}
    for kept in self.kept:
      by_source.setdefault(kept.source, collections.Counter())["kept"] += 1
    examples: dict[str, list[str]] = {}
    for drop in self.dropped:
      by_source.setdefault(drop.source, collections.Counter())[drop.reason] += 1
      seen = examples.setdefault(drop.reason, [])
      if len(seen) < _EXAMPLES_A_REASON:
        seen.append(f"{drop.place}: {drop.detail}")
    counts = collections.Counter(drop.reason for drop in self.dropped)
    return {
      "rows": len(self.kept) + len(self.dropped),
      "kept": len(self.kept),
      "truncated": sum(kept.truncated for kept in self.kept),
      "dropped": {reason: counts[reason] for reason in REASONS if counts[reason]},
      "sources": {name: dict(count) for name, count in sorted(by_source.items())},
      "examples": examples,
      "evaluation_items_too_short": self.short_items,
    }


def curate(
  sources: Mapping[str, Iterable[Row]],
  template: ChatTemplate,
  *,
  max_tokens: int,
  too_long: str,
  dedup_threshold: float | None,
  leaks: Mapping[str, str],
) -> Curated:
  """Judges every row.

  Args:
    sources: name -> rows; in order of the names.
    template: to render and tokenize by.
    max_tokens: of a conversation.
    too_long: "drop", or "truncate" at the end of a turn.
    dedup_threshold: similarity of 5-word shingles from which one of two goes; None: the same only.
    leaks: name of an evaluation set -> where it is, for `data.benchmarks.texts`.
  """
  kept, dropped, seen = [], [], set()
  finder = LeakFinder(text for name, path in leaks.items() for _, text in texts(name, path))
  for name in sorted(sources):
    for row in sources[name]:
      try:
        one = _judge(name, row, template, max_tokens, too_long)
        key = dedup.content_hash(json.dumps(one.messages))
        if key in seen:
          raise RowError("duplicate", "it is there before")
        if (found := finder.find(_said(one.messages))) is not None:
          raise RowError("leak", f"{found!r}")
      except RowError as error:
        dropped.append(Dropped(name, row.place, error.reason, str(error)))
        continue
      seen.add(key)
      kept.append(one)
  if dedup_threshold is not None and kept:
    stays = _unique(kept, dedup_threshold)
    for one, stay in zip(kept, stays, strict=True):
      if not stay:
        dropped.append(Dropped(one.source, one.place, "near_duplicate", "like another one"))
    kept = [one for one, stay in zip(kept, stays, strict=True) if stay]
  return Curated(kept, dropped, finder.short)


def _judge(source: str, row: Row, template: ChatTemplate, max_tokens: int, too_long: str) -> Kept:
  if isinstance(row.value, RowError):
    raise row.value
  messages = _until_last_answer(to_messages(row.value))
  check_answers(messages)
  whole = len(messages)
  while True:
    chat = encode(template, messages)
    if len(chat.ids) <= max_tokens:
      break
    shorter = _until_last_answer(messages[:-1])
    if too_long == "drop" or not shorter:
      raise RowError("too_long", f"{len(chat.ids)} tokens, and {max_tokens} fit")
    messages = shorter
  if not chat.mask[1:].any():
    raise RowError("template", "no token of an answer is a target")
  return Kept(source, row.place, messages, chat, len(messages) < whole)


def encode(template: ChatTemplate, messages: Sequence[Mapping[str, str]]) -> Chat:
  """`template.encode`, whose refusals are reasons."""
  try:
    return template.encode(messages)
  except ChatError as error:
    raise RowError(
      "unknown_role" if "has the role" in str(error) else "template", str(error)
    ) from (error)


def _until_last_answer(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
  answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
  return list(messages[: answers[-1] + 1]) if answers else []


def check_answers(messages: Sequence[Mapping[str, str]]) -> None:
  """Raises RowError where there is no answer, or one is empty or broken."""
  if not any(message["role"] == "assistant" for message in messages):
    raise RowError("no_answer", "the assistant says nothing")
  for number, message in enumerate(messages, start=1):
    if message["role"] != "assistant":
      continue
    answer = message["content"].strip()
    if not answer:
      raise RowError("empty_answer", f"message {number} is empty")
    if (why := _broken(answer)) is not None:
      raise RowError("broken_answer", f"message {number} {why}")
    if number > 1 and len(answer) > 40 and answer == messages[number - 2]["content"].strip():
      raise RowError("broken_answer", f"message {number} is the question again")


def _broken(answer: str) -> str | None:
  if lost := _LOST.search(answer):
    return f"has the character {lost[0]!r}"
  if answer.count("```") % 2:
    return "leaves a code block open"
  lines = [line.strip() for line in answer.splitlines() if line.strip()]
  run = 1
  for before, line in itertools.pairwise(lines):
    run = run + 1 if line == before else 1
    if run >= _REPEATED_LINES:
      return f"repeats the line {line[:40]!r}"
  return None


def _unique(kept: Sequence[Kept], threshold: float) -> np.ndarray:
  said = [_said(one.messages) for one in kept]
  hashes = [dedup.content_hash(text) for text in said]
  return dedup.unique(hashes, [dedup.shingles(text) for text in said], threshold)


def _said(messages: Sequence[Mapping[str, str]]) -> str:
  return "\n".join(message["content"] for message in messages)


class LeakFinder:
  """Looks for runs of words of evaluation items in texts.

  Attributes:
    short: how many items have too few words to be looked for.
  """

  def __init__(self, items: Iterable[str]):
    self._runs: dict[int, dict[tuple[str, ...], str]] = {}
    self.short = 0
    for item in items:
      words = _words(item)
      if len(words) < LEAST_LEAK_WORDS:
        self.short += 1
        continue
      size = min(LEAK_WORDS, len(words))
      runs = self._runs.setdefault(size, {})
      for start in range(len(words) - size + 1):
        runs.setdefault(tuple(words[start : start + size]), item)

  def find(self, text: str) -> str | None:
    """The beginning of an item of which the text holds a run of words, or None."""
    if not self._runs:
      return None
    words = _words(text)
    for size, runs in self._runs.items():
      for start in range(len(words) - size + 1):
        if (item := runs.get(tuple(words[start : start + size]))) is not None:
          return item[:80]
    return None


def _words(text: str) -> list[str]:
  return re.findall(r"\w+", text.lower())


def write_report(curated: Curated, folder: Path) -> dict:
  """Writes `curation.json`, what it returns, and `dropped.jsonl`: every row that went."""
  report = curated.report()
  folder.mkdir(parents=True, exist_ok=True)
  lines = (json.dumps(dataclasses.asdict(drop)) + "\n" for drop in curated.dropped)
  _replace(folder / "dropped.jsonl", lines)
  _replace(folder / "curation.json", [json.dumps(report, indent=2, ensure_ascii=False) + "\n"])
  return report


def _replace(path: Path, lines: Iterable[str]) -> None:
  partial = path.with_name(f"{path.name}.{os.getpid()}")
  with open(partial, "w", encoding="utf-8") as file:
    file.writelines(lines)
  partial.replace(path)


def refuse(curated: Curated, reasons: Sequence[str]) -> None:
  """Raises ValueError, naming its place, at the first row that was dropped for one of `reasons`."""
  for reason in reasons:
    if reason not in REASONS:
      raise ValueError(f"data.refuse has {reason!r}; reasons are {', '.join(REASONS)}.")
  for drop in curated.dropped:
    if drop.reason in reasons:
      count = sum(other.reason == drop.reason for other in curated.dropped)
      raise ValueError(
        f"{drop.place}: {drop.reason}: {drop.detail} ({count} such rows). Mend the data, or take "
        f"{drop.reason!r} out of data.refuse, and they are dropped and counted."
      )


def prompt_keys(kept: Iterable[Kept]) -> Iterator[str]:
  """A hash of what each conversation asks, by which those of other runs are compared."""
  for one in kept:
    yield dedup.content_hash(prompt_text(one.messages)).hex()

"""Comparisons of two answers to one prompt, rated on one or several dimensions.

  {"prompt": "..." or messages, "chosen": "..." or messages, "rejected": ...}
  {"conversations": [...], "chosen": {"from": "gpt", "value": "..."}, "rejected": {...}}
  {"chosen": whole conversation, "rejected": the other one}

of which the last holds messages, or text with "\\n\\nHuman: " and "\\n\\nAssistant: " before turns;
and beside them, where there is more than one dimension, or more to say of one:

  "labels": {"helpfulness": {"label": "chosen" | "rejected" | "tie", "strength": 2}, ...}
  "ratings": {"chosen": {"helpfulness": 4, ...}, "rejected": {"helpfulness": 2, ...}}
  "annotator": "..."

Of ratings the higher one is preferred, by a strength that is their difference. A dimension that is
not there, or null, was not rated.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from data import dedup
from data.chat import ChatTemplate
from data.conversations import Row, RowError, messages_of, prompt_text, turns
from data.curate import Curated, Dropped, encode
from data.examples import Example

_SPEAKERS = {"\n\nHuman:": "user", "\n\nAssistant:": "assistant"}
_SIGNS = {"chosen": 1, "rejected": -1, "tie": 0}


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two answers to a prompt.

  Attributes:
    source, place: its source's name, and where in it.
    prompt: the messages before the answer.
    chosen, rejected: the answers' ids, with the prompt before them and the end of the turn last,
      and a mask of the answer.
    signs: {dimension: 1 where `chosen` is better, -1 where `rejected` is, 0 for a tie}.
    strengths: {dimension: how much better}, at least 0.
    annotator: who said so, or None.
    lengths: of both answers, in tokens.
    truncated: whether an answer was cut to fit.
  """

  source: str
  place: str
  prompt: list[dict[str, str]]
  chosen: Example
  rejected: Example
  signs: dict[str, int]
  strengths: dict[str, float]
  annotator: str | None
  truncated: bool

  @property
  def lengths(self) -> tuple[int, int]:
    return int(self.chosen.mask.sum()), int(self.rejected.mask.sum())

  @property
  def size(self) -> int:
    """The places that both take in a row; here the last token is an input too."""
    return len(self.chosen.ids) + len(self.rejected.ids)

  @property
  def group(self) -> str:
    """What pairs of the same prompt have in common."""
    return dedup.content_hash(prompt_text(self.prompt)).hex()


@dataclasses.dataclass(frozen=True)
class PairSource:
  """Rows, and the dimension of which those that have neither labels nor ratings speak."""

  rows: Iterable[Row]
  dimension: str | None


def read_pairs(
  sources: Mapping[str, PairSource],
  template: ChatTemplate,
  *,
  dimensions: Sequence[str],
  scale: tuple[float, float],
  max_tokens: int,
  exclude: frozenset[str],
) -> Curated:
  """Judges every row; what is kept are `Pair`s.

  Args:
    sources: by name; read in order of the names.
    template: to render and tokenize by.
    dimensions: that a pair may be rated on.
    scale: the lowest and highest rating, and 0 and the highest strength is their difference.
    max_tokens: of a prompt with an answer; a longer answer is cut and ends all the same.
    exclude: prompts, by `Pair.group`, that another stage has seen.
  """
  kept, dropped, seen = [], [], set()
  for name in sorted(sources):
    for row in sources[name].rows:
      try:
        pair = _judge(name, row, sources[name].dimension, template, dimensions, scale, max_tokens)
        said = (pair.chosen.ids.tobytes(), pair.rejected.ids.tobytes(), pair.annotator)
        if said in seen:
          raise RowError("duplicate", "it is there before")
        if pair.group in exclude:
          raise RowError("overlap", "its prompt is one of data.exclude_prompts_of")
      except RowError as error:
        dropped.append(Dropped(name, row.place, error.reason, str(error)))
        continue
      seen.add(said)
      kept.append(pair)
  return Curated(kept, dropped, 0)


def _judge(source, row, dimension, template, dimensions, scale, max_tokens) -> Pair:
  if isinstance(row.value, RowError):
    raise row.value
  prompt, answers = split_pair(row.value)
  if answers[0].strip() == answers[1].strip():
    raise RowError("identical_pair", "both answers are the same")
  for name, answer in zip(("chosen", "rejected"), answers, strict=True):
    if not answer.strip():
      raise RowError("empty_answer", f"`{name}` is empty")
  signs, strengths = read_labels(row.value, dimension, dimensions, scale)
  encoded = [encode_answer(template, prompt, answer, max_tokens) for answer in answers]
  (chosen, cut), (rejected, also) = encoded
  if np.array_equal(chosen.ids, rejected.ids):
    raise RowError("identical_pair", f"both answers are the same up to {max_tokens} tokens")
  annotator = row.value.get("annotator")
  return Pair(
    source,
    row.place,
    prompt,
    chosen,
    rejected,
    signs,
    strengths,
    None if annotator is None else str(annotator),
    cut or also,
  )


def split_pair(row: Mapping[str, Any]) -> tuple[list[dict[str, str]], tuple[str, str]]:
  """The messages of the prompt, and the two answers.

  Raises:
    RowError: the row is none, or the conversations differ before their last answer.
  """
  sides = []
  for name in ("chosen", "rejected"):
    value = row.get(name)
    if value is None:
      raise RowError("broken_row", f"it has no `{name}`")
    sides.append(_messages(value, name))
  before: list[dict[str, str]] = []
  if row.get("prompt") is not None:
    before = turns(row["prompt"], "user")
  elif row.get("conversations") is not None:
    before = messages_of(row["conversations"], "conversations")
  for side in sides:
    if not side or side[-1]["role"] != "assistant":
      raise RowError("no_answer", "it does not end with an answer of the assistant")
  prompts = [before + side[:-1] if side[:-1] != before else before for side in sides]
  if prompts[0] != prompts[1]:
    raise RowError("broken_row", "the two differ before their last answer")
  if not prompts[0]:
    raise RowError("broken_row", "it has no prompt")
  return prompts[0], (sides[0][-1]["content"], sides[1][-1]["content"])


def _messages(value: Any, name: str) -> list[dict[str, str]]:
  if isinstance(value, str) and value.startswith(tuple(_SPEAKERS)):
    return _dialogue(value)
  if isinstance(value, dict):
    return messages_of([value], name)
  return turns(value, "assistant")


def _dialogue(text: str) -> list[dict[str, str]]:
  """The turns of "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
  messages: list[dict[str, str]] = []
  while text:
    start = next(s for s in _SPEAKERS if text.startswith(s))
    rest = text[len(start) :]
    ends = [at for at in (rest.find(s) for s in _SPEAKERS) if at >= 0]
    end = min(ends, default=len(rest))
    messages.append({"role": _SPEAKERS[start], "content": rest[:end].strip()})
    text = rest[end:]
  return messages


def read_labels(
  row: Mapping[str, Any],
  dimension: str | None,
  dimensions: Sequence[str],
  scale: tuple[float, float],
) -> tuple[dict[str, int], dict[str, float]]:
  """Signs and strengths by dimension; a row that only says "chosen" speaks of `dimension`."""
  low, high = scale
  signs: dict[str, int] = {}
  strengths: dict[str, float] = {}
  if row.get("labels") is not None:
    for name, value in _entries(row["labels"], "labels", dimensions):
      entry = {"label": value} if isinstance(value, str) else value
      if not isinstance(entry, dict) or entry.get("label") not in _SIGNS:
        raise RowError("bad_rating", f"the label of {name!r} is {value!r}; {', '.join(_SIGNS)} are")
      signs[name] = _SIGNS[entry["label"]]
      strength = entry.get("strength", 0.0)
      strengths[name] = _number(strength, f"the strength of {name!r}", 0.0, high - low)
  elif row.get("ratings") is not None:
    ratings = row["ratings"]
    sides = [ratings.get(side) if isinstance(ratings, dict) else None for side in _SIGNS][:2]
    first, second = (dict(_entries(side, "ratings", dimensions)) for side in sides)
    for name in first.keys() & second.keys():
      a, b = (_number(side[name], f"the rating of {name!r}", low, high) for side in (first, second))
      signs[name], strengths[name] = (a > b) - (a < b), abs(a - b)
  elif dimension is not None:
    signs[dimension], strengths[dimension] = 1, 0.0
  if not signs:
    raise RowError("no_label", "no dimension is rated, and its source names none")
  return signs, strengths


def _entries(value: Any, key: str, dimensions: Sequence[str]) -> Iterable[tuple[str, Any]]:
  if not isinstance(value, dict):
    raise RowError("bad_rating", f"`{key}` is no object of dimensions")
  for name, entry in value.items():
    if name not in dimensions:
      raise RowError("bad_rating", f"{name!r} is none of {', '.join(dimensions)}")
    if entry is not None:
      yield name, entry


def _number(value: Any, what: str, low: float, high: float) -> float:
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
    raise RowError("bad_rating", f"{what} is {value!r}, and no number")
  if not low <= value <= high:
    raise RowError("bad_rating", f"{what} is {value}, outside of {low:g} to {high:g}")
  return float(value)


def encode_answer(
  template: ChatTemplate, prompt: Sequence[Mapping[str, str]], answer: str, max_tokens: int
) -> tuple[Example, bool]:
  """A prompt with its answer up to the end of the turn, and whether the answer was cut for it.

  What the template puts after the end of the turn is left out; an answer that was cut ends by the
  same token as one that was not. The mask is of this last answer alone.

  Raises:
    RowError: the template refuses it, or the prompt alone is too long.
  """
  chat = encode(template, [*prompt, {"role": "assistant", "content": answer}])
  ends = np.flatnonzero(chat.mask)
  if not len(ends):
    raise RowError("template", "no token of the answer is a target")
  last = int(ends[-1])
  breaks = np.flatnonzero(~chat.mask[:last])
  first = int(breaks[-1]) + 1 if len(breaks) else 0
  ids, cut = chat.ids[: last + 1], last + 1 > max_tokens
  if cut:
    if first + 2 > max_tokens:
      raise RowError("too_long", f"the prompt has {first} tokens, and {max_tokens} fit with answer")
    ids = np.concatenate([ids[: max_tokens - 1], ids[-1:]])
  return Example(ids, np.arange(len(ids)) >= first), cut

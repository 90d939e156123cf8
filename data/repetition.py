"""Text that repeats itself: Gopher's rules on lines, paragraphs and runs of words."""

import dataclasses
import re

import numpy as np

from data import words as words_lib
from data.verdict import Verdict, above
from data.words import Words


def duplicates(parts: list[str]) -> tuple[int, int]:
  """How many parts are equal to an earlier one, and the characters in them."""
  distinct = set(parts)
  if len(distinct) == len(parts):
    return 0, 0
  return len(parts) - len(distinct), sum(map(len, parts)) - sum(map(len, distinct))


@dataclasses.dataclass(frozen=True)
class GopherRepetition:
  """Rae et al. 2021, table A1; names as in datatrove.

  Attributes:
    dup_line_frac, dup_para_frac: lines and paragraphs that occurred before.
    dup_line_char_frac, dup_para_char_frac: characters in them.
    top_n_grams: characters in all occurrences of the most frequent run of n words, n = 2, 3, ...
    dup_n_grams: characters in repeated runs of n words, n = 5, 6, ...; none is counted twice.
  """

  dup_line_frac: float | None
  dup_para_frac: float | None
  dup_line_char_frac: float | None
  dup_para_char_frac: float | None
  top_n_grams: tuple[float, ...]
  dup_n_grams: tuple[float, ...]


_BLANK_LINES, _NEWLINES = re.compile(r"\n{2,}"), re.compile(r"\n+")


def gopher_repetition(text: str, words: Words, rules: GopherRepetition) -> Verdict:
  """Rejects texts that repeat their lines, paragraphs or runs of words.

  Args:
    text: the document.
    words: its words.
    rules: thresholds.
  """
  return Verdict(text, _gopher_repetition(text, words, rules))


def _gopher_repetition(text, words, rules):
  if not text:
    return "empty"
  paragraphs = _BLANK_LINES.split(text.strip())
  lines = _NEWLINES.split(text) if len(paragraphs) > 1 else text.split("\n")
  for name, parts, most, most_chars in (
    ("para", paragraphs, rules.dup_para_frac, rules.dup_para_char_frac),
    ("line", lines, rules.dup_line_frac, rules.dup_line_char_frac),
  ):
    count, chars = duplicates(parts)
    if above(count / len(parts), most):
      return f"dup_{name}_frac"
    if above(chars / len(text), most_chars):
      return f"dup_{name}_char_frac"
  return _repeated_runs(len(text), words, rules)


def _repeated_runs(size, words, rules):
  ends = np.concatenate([[0], words.lengths.cumsum(dtype=np.int64)])
  top, dup = dict(enumerate(rules.top_n_grams, 2)), dict(enumerate(rules.dup_n_grams, 5))
  # A run is repeated only where a shorter one begins that is: `places` become few with the width.
  places, runs = np.arange(len(words)), words_lib.runs_of(words.hashes, 1)
  for width in range(2, min(max((1, *top, *dup)), len(words)) + 1):
    places = places[: places.searchsorted(len(words) - width, side="right")]
    runs = words_lib.mix(runs[: len(places)] ^ words.hashes[places + (width - 1)])
    order = runs.argsort()
    ordered = runs[order]
    new = np.ones(len(places) + 1, bool)  # whether a run is not the one before it in that order
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:-1])
    if width in top and _top_chars(places[order], new, ends, width) > top[width] * size:
      return f"top_{width}_gram"
    again = order[~(new[1:] & new[:-1])]
    if not len(again):
      return _first_run(width + 1, ends, top, size)
    again.sort()
    places, runs = places[again], runs[again]
    if width in dup and _repeated_chars(places, runs, ends, width) > dup[width] * size:
      return f"duplicated_{width}_n_grams"
  return None


def _first_run(start, ends, top, size):
  """The rule that a text without repeated runs breaks: its first run is the most frequent one."""
  for width, most in top.items():
    if start <= width < len(ends) and ends[width] + width - 1 > most * size:
      return f"top_{width}_gram"
  return None


def _top_chars(places, new, ends, width):
  """Characters, spaces included, in every occurrence of the most frequent run (the first such).

  Args:
    places: where runs begin, equal ones together.
    new: whether a run differs from the one before it there; and a last True.
    ends: where words end, counted in characters.
    width: words in a run.
  """
  edges = new.nonzero()[0]
  counts = edges[1:] - edges[:-1]
  most = counts.max()
  # If no run is repeated, the text's first run is the one, which `places` may lack.
  first = np.minimum.reduceat(places, edges[:-1])[counts == most].min() if most > 1 else 0
  return int(most * (ends[first + width] - ends[first] + width - 1))


def _repeated_chars(places, runs, ends, width):
  """Characters in runs that occurred before, from left to right and none of them twice."""
  seen, free, total = set(), 0, 0
  for place, run in zip(places.tolist(), runs.tolist(), strict=True):
    if place < free:
      continue
    if run in seen:
      total += ends[place + width] - ends[place]
      free = place + width
    else:
      seen.add(run)
  return int(total)

"""The published quality rules of web text: C4, Gopher and FineWeb.

Each is a pure function of a document and its thresholds, which a recipe gives. Reasons and the
order in which they are tried are those of datatrove's filters, the code behind FineWeb, with which
`docs/benchmarks/filters.py` compares them document by document. None leaves a rule out.
"""

import collections
import dataclasses
import functools
import re

import numpy as np

from data import repetition
from data import words as words_lib
from data.verdict import Verdict, above, below
from data.words import Words


@dataclasses.dataclass(frozen=True)
class GopherQuality:
  """Rae et al. 2021 (arXiv:2112.11446), A1.1; names as in datatrove.

  Attributes:
    min_doc_words, max_doc_words: words that are not punctuation.
    min_avg_word_length, max_avg_word_length: characters, over those words.
    max_symbol_word_ratio: "#" to words, and likewise ellipses to words.
    max_bullet_lines_ratio: lines that start with "•" or "-".
    max_ellipsis_lines_ratio: lines that end in an ellipsis.
    max_non_alpha_words_ratio: the *least* share of words with a letter (datatrove's name).
    min_stop_words: how many different ones of `stop_words` a document has.
    stop_words: case matters.
  """

  min_doc_words: int | None
  max_doc_words: int | None
  min_avg_word_length: float | None
  max_avg_word_length: float | None
  max_symbol_word_ratio: float | None
  max_bullet_lines_ratio: float | None
  max_ellipsis_lines_ratio: float | None
  max_non_alpha_words_ratio: float | None
  min_stop_words: int | None
  stop_words: tuple[str, ...]


def gopher_quality(text: str, words: Words, rules: GopherQuality) -> Verdict:
  """Rejects texts whose length, words or lines are unlike prose.

  Args:
    text: the document.
    words: its words.
    rules: thresholds.
  """
  return Verdict(text, _gopher_quality(text, words, rules))


_hashes_of = functools.cache(words_lib.hashes_of)


def _gopher_quality(text, words, rules):
  symbols = (words.flags & np.uint64(words_lib.SYMBOL)).astype(bool)
  proper = len(words) - int(symbols.sum())
  if below(proper, rules.min_doc_words):
    return "gopher_short_doc"
  if above(proper, rules.max_doc_words):
    return "gopher_long_doc"
  if not proper:
    return "empty"
  mean = int(words.lengths.sum() - words.lengths[symbols].sum()) / proper
  if below(mean, rules.min_avg_word_length):
    return "gopher_below_avg_threshold"
  if above(mean, rules.max_avg_word_length):
    return "gopher_above_avg_threshold"
  if above(text.count("#") / len(words), rules.max_symbol_word_ratio):
    return "gopher_too_many_hashes"
  ellipses = text.count("...") + text.count("…")
  if above(ellipses / len(words), rules.max_symbol_word_ratio):
    return "gopher_too_many_ellipsis"
  lines = text.splitlines()
  bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines)
  if above(bullets / len(lines), rules.max_bullet_lines_ratio):
    return "gopher_too_many_bullets"
  ends = sum(line.rstrip().endswith(("...", "…")) for line in lines)
  if above(ends / len(lines), rules.max_ellipsis_lines_ratio):
    return "gopher_too_many_end_ellipsis"
  alphabetic = np.count_nonzero(words.flags & np.uint64(words_lib.ALPHABETIC))
  if below(alphabetic / len(words), rules.max_non_alpha_words_ratio):
    return "gopher_below_alpha_threshold"
  if rules.min_stop_words is not None:
    stops = _hashes_of(rules.stop_words)
    if (words.hashes == stops[:, None]).any(axis=1).sum() < rules.min_stop_words:
      return "gopher_enough_stop_words"
  return None


@dataclasses.dataclass(frozen=True)
class C4:
  """Raffel et al. 2020 (JMLR 21/140), section 2.2, and tensorflow_datasets' c4_utils.

  Names are datatrove's.

  Not here: the list of bad words, and the removal of repeated spans of three sentences.

  Attributes:
    remove_citations: "[1]", "[edit]" and "[citation needed]" go.
    filter_no_terminal_punct: lines that do not end in . ? ! " or ', or end in "...", go.
    min_num_sentences: of what is left; a document with fewer is rejected.
    min_words_per_line: lines with fewer words (by white space) go.
    max_word_length: lines with a longer word go.
    filter_lorem_ipsum: documents that contain it in a line that was not dropped yet are rejected.
    filter_javascript: lines that mention it go.
    filter_curly_bracket: documents with "{" in a line that was not dropped yet are rejected.
    filter_policy: lines that mention cookies, terms of use and privacy policies go.
  """

  remove_citations: bool
  filter_no_terminal_punct: bool
  min_num_sentences: int | None
  min_words_per_line: int | None
  max_word_length: int | None
  filter_lorem_ipsum: bool
  filter_javascript: bool
  filter_curly_bracket: bool
  filter_policy: bool


_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_POLICY = (
  "terms of use",
  "privacy policy",
  "cookie policy",
  "uses cookies",
  "use of cookies",
  "use cookies",
)


def c4(text: str, rules: C4) -> Verdict:
  """Drops lines that are not prose, and documents of which too little is left.

  Args:
    text: the document.
    rules: thresholds.
  """
  kept, dropped, sentences = [], collections.Counter(), 0
  for line in map(str.strip, text.splitlines()):
    line, reason = _c4_line(line, rules)
    if reason in ("lorem_ipsum", "curly_bracket"):
      return Verdict(text, reason)
    if reason:
      dropped[reason] += 1
      continue
    kept.append(line)
    if rules.min_num_sentences is not None and sentences < rules.min_num_sentences:
      sentences += words_lib.sentences(line)
  if below(sentences, rules.min_num_sentences):
    return Verdict(text, "too_few_sentences")
  return Verdict("\n".join(kept).strip(), None, dict(dropped))


def _c4_line(line, rules):
  """A line as C4 keeps it, and why it or its whole document is dropped, or None."""
  words = line.split()
  longest = max(map(len, words), default=0) if len(line) > (rules.max_word_length or 0) else 0
  if above(longest, rules.max_word_length):
    return line, "too_long_word"
  if rules.remove_citations and "[" in line:
    line = _CITATION.sub("", line)
  if rules.filter_no_terminal_punct and (
    not line.endswith((".", "?", "!", '"', "'")) or line.endswith("...")
  ):
    return line, "no_terminal_punc"
  if below(len(words), rules.min_words_per_line):
    return line, "too_few_words"
  lower = line.lower()
  if rules.filter_lorem_ipsum and "lorem ipsum" in lower:
    return line, "lorem_ipsum"
  if rules.filter_javascript and "javascript" in lower:
    return line, "javascript"
  if rules.filter_curly_bracket and "{" in line:
    return line, "curly_bracket"
  if rules.filter_policy and any(phrase in lower for phrase in _POLICY):
    return line, "policy"
  return line, None


@dataclasses.dataclass(frozen=True)
class FineWeb:
  """Penedo et al. 2024 (arXiv:2406.17557), section 3.5; names as in datatrove.

  Attributes:
    line_punct_thr: the least share of lines that end in a terminal punctuation mark.
    line_punct_exclude_zero: documents where none does pass that rule.
    short_line_thr: the largest share of short lines.
    short_line_length: characters that a short line has at most.
    char_duplicates_ratio: the largest share of characters in lines that occurred before.
    new_line_ratio: line breaks to words.
  """

  line_punct_thr: float | None
  line_punct_exclude_zero: bool
  short_line_thr: float | None
  short_line_length: int
  char_duplicates_ratio: float | None
  new_line_ratio: float | None


def fineweb(text: str, words: Words, rules: FineWeb) -> Verdict:
  """Rejects lists, menus and texts of short or repeated lines.

  Args:
    text: the document.
    words: its words.
    rules: thresholds.
  """
  return Verdict(text, _fineweb(text, words, rules))


def _fineweb(text, words, rules):
  lines = [line for line in text.split("\n") if line and not line.isspace()]
  if not lines:
    return "empty"
  ended = sum(line[-1] in words_lib.TERMINAL for line in lines) / len(lines)
  if below(ended, rules.line_punct_thr) and not (ended == 0 and rules.line_punct_exclude_zero):
    return "line_punct_ratio"
  short = sum(len(line) <= rules.short_line_length for line in lines) / len(lines)
  if above(short, rules.short_line_thr):
    return "short_line_ratio"
  breaks = text.count("\n")
  if above(repetition.duplicates(lines)[1] / (len(text) - breaks), rules.char_duplicates_ratio):
    return "char_dup_ratio"
  if above(breaks / len(words), rules.new_line_ratio):
    return "list_ratio"
  return None

"""How much texts repeat themselves and one another: distinct-n and self-BLEU, on words."""

import collections
import math
from collections.abc import Sequence

_ORDER = 4
_SMALL = 0.1  # in place of no match at all: Chen and Cherry 2014, method 1


def ngrams(words: Sequence[str], n: int) -> collections.Counter:
  return collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def distinct(texts: Sequence[str], n: int) -> float:
  """Different n-grams over all n-grams of the texts (https://arxiv.org/abs/1510.03055)."""
  counts: collections.Counter = collections.Counter()
  for text in texts:
    counts += ngrams(text.split(), n)
  return len(counts) / max(1, counts.total())


def bleu(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
  """BLEU-4 of one text (https://aclanthology.org/P02-1040), smoothed by method 1."""
  if not words:
    return 0.0
  logs = []
  for n in range(1, _ORDER + 1):
    counts = ngrams(words, n)
    most: collections.Counter = collections.Counter()
    for reference in references:
      most |= ngrams(reference, n)
    matches = (counts & most).total()
    logs.append(math.log((matches or _SMALL) / max(1, counts.total())))
  closest = min((abs(len(r) - len(words)), len(r)) for r in references)[1]
  brevity = min(0.0, 1 - closest / len(words))
  return math.exp(brevity + sum(logs) / _ORDER)


def self_bleu(groups: Sequence[Sequence[str]]) -> float:
  """The mean BLEU-4 of each text against the others of its group (https://arxiv.org/abs/1802.01886).

  High means that a prompt's completions are alike. Groups of one text do not count.
  """
  scores = []
  for group in groups:
    words = [text.split() for text in group]
    if len(words) > 1:
      scores += [bleu(w, words[:i] + words[i + 1 :]) for i, w in enumerate(words)]
  return sum(scores) / max(1, len(scores))

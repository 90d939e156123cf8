"""Which evaluation item a document holds verbatim: a run of n words that is in both."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data import benchmarks, words

LINES = "lines"
_WORD = re.compile(r"\w+")
_MAX_REMEMBERED = 1 << 18


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
  """Where the texts of an evaluation set are.

  Attributes:
    reader: a set that `data.benchmarks` reads, or "lines": files with a text in each line, or with
      a JSON object that has it in the key `text` where the name ends in .jsonl.
    path: a file, a directory or a glob.
  """

  reader: str
  path: str

  def __post_init__(self):
    if self.reader != LINES and self.reader not in benchmarks.READERS:
      known = ", ".join([LINES, *benchmarks.READERS])
      raise ValueError(f"there is no reader {self.reader!r} of evaluation sets; known: {known}.")


@dataclasses.dataclass(frozen=True)
class Index:
  """The runs of words of all evaluation items.

  Attributes:
    width: words in a run.
    runs: the hashes of the runs, sorted and distinct: uint64 [N].
    items: for each, the index in `names` of the first item that has it: int32 [N].
    names: "set/item".
    short: {set: its items of fewer words than `width`, which can't be found}.
  """

  width: int
  runs: np.ndarray
  items: np.ndarray
  names: tuple[str, ...]
  short: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Leak:
  """What a document has in common with an evaluation item: the item, and the shared words."""

  item: str
  words: str


@dataclasses.dataclass(frozen=True)
class Decontamination:
  """Removal of documents with a run of words that an evaluation item has as well.

  Attributes:
    ngram_words: words in a run.
    sets: name -> EvaluationSet.
  """

  ngram_words: int
  sets: dict[str, EvaluationSet]

  def __post_init__(self):
    if self.ngram_words < 1:
      raise ValueError(f"decontamination.ngram_words={self.ngram_words} must be at least 1.")


def make_index(settings: Decontamination) -> Index:
  """Reads all evaluation sets.

  Raises:
    ValueError: there is no such file, or it is of another set.
  """
  width = settings.ngram_words
  names, short, all_runs, owners = [], {}, [], []
  for name in sorted(settings.sets):
    short[name] = 0
    for item, text in _texts(settings.sets[name]):
      runs = words.runs_of(hashes_of(words_of(text)), width)
      short[name] += not len(runs)
      all_runs.append(runs)
      owners.append(np.full(len(runs), len(names), np.int32))
      names.append(f"{name}/{item}")
  if not names:
    return Index(width, np.zeros(0, np.uint64), np.zeros(0, np.int32), (), short)
  runs, first = np.unique(np.concatenate(all_runs), return_index=True)
  return Index(width, runs, np.concatenate(owners)[first], tuple(names), short)


def words_of(text: str) -> list[str]:
  """The words of a text as they are compared: what `\\w+` matches, in lower case."""
  return _WORD.findall(text.lower())


def find(text: str, index: Index) -> Leak | None:
  """The first run of words of a text that an evaluation item has as well.

  Words are what `\\w+` matches, so that punctuation and white space make no difference.
  """
  runs = words.runs_of(hashes_of(words_of(text)), index.width)
  if not len(runs) or not len(index.runs):
    return None
  places = np.minimum(np.searchsorted(index.runs, runs), len(index.runs) - 1)
  shared = index.runs[places] == runs
  if not shared.any():
    return None
  first = int(shared.argmax())
  owner = index.names[index.items[places[first]]]
  return Leak(owner, " ".join(words_of(text)[first : first + index.width]))


def _texts(evaluation: EvaluationSet) -> Iterator[tuple[str, str]]:
  if evaluation.reader != LINES:
    yield from benchmarks.texts(evaluation.reader, evaluation.path)
    return
  path = Path(evaluation.path)
  files = sorted(path.parent.glob(path.name)) if not path.exists() else [path]
  if not files:
    raise ValueError(f"the evaluation set {evaluation.path!r} matches no file; check the path.")
  for file in files:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
      if file.suffix == ".jsonl" and line.strip():
        try:
          line = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError) as error:
          raise ValueError(f"{file}:{number + 1}: no object with a text: {error}") from error
      if line.strip():
        yield f"{file.stem}/{number}", line


class _Remembered(dict):
  """The hash of each word; forgets all when there are many."""

  def __missing__(self, word: str) -> bytes:
    if len(self) >= _MAX_REMEMBERED:
      self.clear()
    packed = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    self[word] = packed
    return packed


_HASHES = _Remembered()


def hashes_of(found: list[str]) -> np.ndarray:
  """The hash of each word, uint64 [N]."""
  return np.frombuffer(b"".join(map(_HASHES.__getitem__, found)), "<u8")

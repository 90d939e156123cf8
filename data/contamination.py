"""Which evaluation items a training corpus holds: a run of 13 words that both have."""

from collections.abc import Hashable, Mapping
from pathlib import Path

import numpy as np

from data import decontaminate, documents, words

WIDTH = 13  # words, as in https://arxiv.org/abs/2005.14165, appendix C


def open_corpus(path: str) -> documents.Files:
  """The documents of a corpus: the manifest.json that `data.corpus` wrote, or as `documents.find`.

  Raises:
    ValueError: there are none.
  """
  if Path(path).name == "manifest.json":
    if not Path(path).is_file():
      raise ValueError(f"the corpus manifest {path} does not exist.")
    path = str(Path(path).parent / "training" / "*")
  return documents.find(path)


def contaminated(
  texts: Mapping[Hashable, str], corpus: documents.Files, max_bad_lines: int = 0
) -> tuple[set, set]:
  """The names of the texts of which the corpus has a run of `WIDTH` words, and of those too short.

  Args:
    texts: name -> text.
    corpus: of `open_corpus`.
    max_bad_lines: as `documents.scan` has it.
  """
  runs = {
    name: words.runs_of(decontaminate.hashes_of(decontaminate.words_of(text)), WIDTH)
    for name, text in texts.items()
  }
  wanted = np.unique(np.concatenate([*runs.values(), np.zeros(0, np.uint64)]))
  seen = np.zeros(len(wanted), bool)
  for _, text in documents.scan(corpus, max_bad_lines):
    found = words.runs_of(decontaminate.hashes_of(decontaminate.words_of(text)), WIDTH)
    if len(found) and len(wanted):
      places = np.minimum(np.searchsorted(wanted, found), len(wanted) - 1)
      seen[places[wanted[places] == found]] = True
  dirty = {
    name for name, own in runs.items() if len(own) and seen[np.searchsorted(wanted, own)].any()
  }
  return dirty, {name for name, own in runs.items() if not len(own)}

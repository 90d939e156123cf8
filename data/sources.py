"""From the configured sources to documents to train on and documents held out."""

import dataclasses
import hashlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data import array_records, dedup, embedded, materialize, tiktoken_bpe, tokenizer
from data.config import DataConfig
from data.documents import Documents, find, scan
from data.heldout import is_held_out

EMBEDDED = "embedded"
SEQIO = "seqio:"
TRAIN = "train"
_SAMPLED = 256
_READ_TOGETHER = 256


@dataclasses.dataclass(frozen=True)
class Corpus:
  """The documents of a run.

  Attributes:
    train: name of the source -> its documents to train on, in order of the names.
    heldout: all sources' held-out documents, by name of the source.
    fingerprint: a hash of the training documents and their order.
    duplicates: how many near-duplicates were left out.
  """

  train: dict[str, Documents]
  heldout: dict[str, Documents]
  fingerprint: str
  duplicates: int


def open_corpus(config: DataConfig, workdir: Path) -> Corpus:
  """Reads all sources once: finds their documents, removes near-duplicates, splits by hash.

  Near-duplicates go first, across all sources, so that no held-out document has a double among
  those to train on.

  Args:
    workdir: the run's; sources without random access are written to its folder `corpus`.

  Raises:
    ValueError: a source matches no file, has too many bad lines, or has no document left.
  """
  scanned, hashes, shingles, heldout = {}, [], [], []
  for name in sorted(config.sources):
    path = _path(config.sources[name].path, workdir / "corpus", config.max_bad_lines)
    files = find(path)
    spans = []
    for span, text in scan(files, config.max_bad_lines):
      spans.append(span)
      hashes.append(dedup.content_hash(text))
      heldout.append(is_held_out(text, config.heldout_fraction))
      if config.dedup_threshold is not None:
        shingles.append(dedup.shingles(text))
    scanned[name] = Documents(files, np.array(spans, np.int64).reshape(-1, 3))
  if config.dedup_threshold is None:
    kept = np.ones(len(hashes), bool)
  else:
    kept = dedup.unique(hashes, shingles, config.dedup_threshold)
  return _split(config, scanned, hashes, kept, np.array(heldout, bool))


def _split(config, scanned, hashes, kept, heldout) -> Corpus:
  train, evaluate, first = {}, {}, 0
  digest = hashlib.blake2b(digest_size=8)
  for name, documents in scanned.items():
    here = slice(first, first + len(documents))
    first += len(documents)
    train[name] = documents.select(kept[here] & ~heldout[here])
    evaluate[name] = documents.select(kept[here] & heldout[here])
    if not len(train[name]):
      raise ValueError(
        f"data.sources.{name} ({config.sources[name].path!r}) has no document to train on: "
        f"{len(documents)} were read, {int(kept[here].sum())} are no near-duplicates, of which "
        f"{len(evaluate[name])} are held out."
      )
    digest.update(name.encode("utf-8"))
  for index in np.flatnonzero(kept & ~heldout):
    digest.update(hashes[index])
  duplicates = int((~kept).sum())
  logging.info(
    "%d documents: %d to train on, %d held out, %d near-duplicates left out",
    len(hashes),
    sum(map(len, train.values())),
    sum(map(len, evaluate.values())),
    duplicates,
  )
  return Corpus(train, evaluate, digest.hexdigest(), duplicates)


def open_files(pattern: str, max_bad_lines: int) -> Documents:
  """All the documents of further files, for evaluation: nothing is removed or split.

  Raises:
    ValueError: no file matches, there are too many bad lines, or no document.
  """
  files = find(pattern)
  spans = [span for span, _ in scan(files, max_bad_lines)]
  if not spans:
    raise ValueError(f"{pattern!r} has no document.")
  return Documents(files, np.array(spans, np.int64))


def open_tokenizer(config: DataConfig, corpus: Corpus, workdir: Path) -> tokenizer.Tokenizer:
  """Loads the configured tokenizer; "train" makes one from the training documents at the first run.

  A Hugging Face tokenizer encodes by the tiktoken engine where its ids are the same on a sample of
  the training documents.

  Raises:
    ValueError: the file is missing, of another kind, or has no end-of-text token of that name.
  """
  path = config.tokenizer
  if path == TRAIN:
    file = workdir / "tokenizer" / "tokenizer.json"
    path = str(file)
    if not file.exists():
      tokenizer.train(_texts(corpus), config.vocab_size, config.eot, file)
  exact = tokenizer.load(path, config.eot)
  if not isinstance(exact, tokenizer.HuggingFaceTokenizer):
    return exact
  fast, why = tiktoken_bpe.accelerate(exact, _sample(corpus))
  if fast is None:
    logging.warning("%s runs without the tiktoken engine, several times slower: %s", path, why)
  return fast or exact


def _sample(corpus: Corpus) -> Iterator[str]:
  """Training documents of every source, evenly spaced."""
  for documents in corpus.train.values():
    step = -(-len(documents) // _SAMPLED)
    yield from documents.read(range(0, len(documents), step))


def _texts(corpus: Corpus) -> Iterator[str]:
  for documents in corpus.train.values():
    for first in range(0, len(documents), _READ_TOGETHER):
      yield from documents.read(range(first, min(first + _READ_TOGETHER, len(documents))))


def _path(path: str, folder: Path, max_bad_lines: int) -> str:
  """Where a source's files are; what has no random access is written to `folder` first."""
  if path == EMBEDDED:
    return str(embedded.write(folder / "embedded.jsonl"))
  if path.startswith(SEQIO):
    from data import tasks  # only here: seqio takes seconds to import

    name = path.removeprefix(SEQIO)
    file = folder / f"{re.sub('[^A-Za-z0-9]+', '-', name)}{array_records.SUFFIX}"
    return str(tasks.write(name, "train", file))
  if materialize.needed(path):
    return str(materialize.write(path, folder, max_bad_lines))
  return path

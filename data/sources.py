"""From the configured sources to documents to train on and documents held out."""

import hashlib
import itertools
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from data import array_records, dedup, embedded, index, materialize, tiktoken_bpe, tokenizer
from data.config import DataConfig
from data.documents import Documents, Files, Records, find, records, scan
from data.heldout import is_held_out
from data.index import Corpus

EMBEDDED = "embedded"
SEQIO = "seqio:"
TRAIN = "train"
_SAMPLED = 256
_READ_TOGETHER = 256


def open_corpus(config: DataConfig, workdir: Path) -> Corpus:
  """Finds the documents of all sources, removes near-duplicates, splits by hash.

  Near-duplicates go first, across all sources, so that no held-out document has a double among
  those to train on. All of that reads every document once, and is kept in the folder `corpus` for
  the next start. ArrayRecord files of which nothing is to be removed or held out are not read at
  all: a record is a document, and the fingerprint is made of their sizes and a record of each.

  Args:
    workdir: the run's; sources without random access are written to its folder `corpus`.

  Raises:
    ValueError: a source matches no file, has too many bad lines, or has no document left.
  """
  folder, files = workdir / "corpus", {}
  for name in sorted(config.sources):
    files[name] = find(_path(config.sources[name].path, folder, config.max_bad_lines))
  unread = {}
  if config.dedup_threshold is None and not config.heldout_fraction:
    unread = {name: found for name in files if (found := records(files[name])) is not None}
  files = {name: source for name, source in files.items() if name not in unread}
  found = _read_once(config, files, folder / "index.npz")
  train: dict[str, Documents | Records] = found.train | unread
  fingerprint = found.fingerprint
  if unread:
    digest = hashlib.blake2b(fingerprint.encode(), digest_size=8)
    for name, source in unread.items():
      digest.update(_facts(name, source))
    fingerprint = digest.hexdigest()
  return Corpus(dict(sorted(train.items())), found.heldout, fingerprint, found.duplicates)


def open_saved_corpus(config: DataConfig, workdir: Path) -> Corpus:
  """The corpus of a run that is there, whoever made it: no module of its recipe is imported.

  Raises:
    ValueError: as `open_corpus`; or what a seqio source was written to is gone.
  """
  for name, source in config.sources.items():
    if source.path.startswith(SEQIO):
      file = _seqio_file(source.path, workdir / "corpus")
      if not file.exists():
        raise ValueError(
          f"{file} is gone, to which data.sources.{name} ({source.path!r}) was written. A saved "
          "recipe imports nothing to make it anew: restore the file."
        )
  return open_corpus(config, workdir)


def _facts(name: str, source: Records) -> bytes:
  """What the fingerprint has of documents that are not read: a record of each file, and counts."""
  ends = [0, *source.ends.tolist()]
  middles = source.read([(first + last) // 2 for first, last in itertools.pairwise(ends)])
  return json.dumps([name, ends, middles]).encode()


def _read_once(config: DataConfig, files: Mapping[str, Files], path: Path) -> Corpus:
  """What reading the files finds, or found before and kept at `path`."""
  key = index.key_of(config, files)
  found = index.read(path, key, files)
  if found is None:
    found = _scan(config, files)
    if key is not None and files:
      index.write(path, key, found)
  return found


def _scan(config: DataConfig, files: Mapping[str, Files]) -> Corpus:
  scanned, hashes, shingles, heldout = {}, [], [], []
  for name, source in files.items():
    spans = []
    for span, text in scan(source, config.max_bad_lines):
      spans.append(span)
      hashes.append(dedup.content_hash(text))
      heldout.append(is_held_out(text, config.heldout_fraction))
      if config.dedup_threshold is not None:
        shingles.append(dedup.shingles(text))
    scanned[name] = Documents(source, np.array(spans, np.int64).reshape(-1, 3))
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
  for number in np.flatnonzero(kept & ~heldout):
    digest.update(hashes[number])
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


def _seqio_file(path: str, folder: Path) -> Path:
  name = re.sub("[^A-Za-z0-9]+", "-", path.removeprefix(SEQIO))
  return folder / f"{name}{array_records.SUFFIX}"


def _path(path: str, folder: Path, max_bad_lines: int) -> str:
  """Where a source's files are; what has no random access is written to `folder` first."""
  if path == EMBEDDED:
    return str(embedded.write(folder / "embedded.jsonl"))
  if path.startswith(SEQIO):
    from data import tasks  # only here: seqio takes seconds to import

    return str(tasks.write(path.removeprefix(SEQIO), "train", _seqio_file(path, folder)))
  if materialize.needed(path):
    return str(materialize.write(path, folder, max_bad_lines))
  return path

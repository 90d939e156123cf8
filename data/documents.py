"""Random access to the documents of text, JSONL and ArrayRecord files, by path or fsspec URL."""

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import fsspec
import numpy as np

from data import array_records

_JSONL_SUFFIXES = (".jsonl", ".json", ".ndjson")
_COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz", ".zip")
_LOGGED_BAD_LINES = 20
_RECORDS_TOGETHER = 256

Span = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Files:
  """The files of a source, in order of their names, and the fsspec file system they are on."""

  fs: Any
  paths: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Documents:
  """Documents that are read by index, from any number of threads or processes at once.

  Attributes:
    files: where they are.
    spans: int64 [N, 3], for each document the index of its file and its first and last + 1 byte,
      or, in an ArrayRecord file, its first and last + 1 record, which is the next one.
  """

  files: Files
  spans: np.ndarray

  def __len__(self) -> int:
    return len(self.spans)

  def read(self, indices: Sequence[int] | np.ndarray) -> list[str]:
    """The texts of the documents at `indices`.

    Raises:
      ValueError: a file is no longer the one that they were found in.
    """
    spans = self.places(indices)
    payloads = _read(self.files, spans)
    return [_again(self.files.paths[f], p) for f, p in zip(spans[:, 0], payloads, strict=True)]

  def places(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where the documents at `indices` are, int64 [n, 3]: see `spans`."""
    return self.spans[np.asarray(indices, np.int64)]

  def select(self, keep: np.ndarray) -> "Documents":
    """The documents where the boolean mask `keep` [N] is true."""
    return dataclasses.replace(self, spans=self.spans[keep])


@dataclasses.dataclass(frozen=True)
class Records:
  """All records of ArrayRecord files, as `Documents`, in memory that no number of them changes.

  None was read beforehand, so bytes that are no UTF-8 are replaced, not refused.

  Attributes:
    files: where they are.
    ends: int64 [F], the number of the documents in the first files, up to each.
  """

  files: Files
  ends: np.ndarray

  def __len__(self) -> int:
    return int(self.ends[-1])

  def read(self, indices: Sequence[int] | np.ndarray) -> list[str]:
    """The texts of the documents at `indices`."""
    payloads = _read(self.files, self.places(indices))
    return [payload.decode("utf-8", errors="replace") for payload in payloads]

  def places(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where the documents at `indices` are, int64 [n, 3]: see `Documents.spans`."""
    indices = np.asarray(indices, np.int64)
    files = np.searchsorted(self.ends, indices, side="right")
    first = indices - np.where(files > 0, self.ends[files - 1], 0)
    return np.stack([files, first, first + 1], axis=1)


def records(files: Files) -> Records | None:
  """All records of `files`, unread; None where one of them is no ArrayRecord file."""
  if not all(path.endswith(array_records.SUFFIX) for path in files.paths):
    return None
  return Records(files, np.cumsum([array_records.count(path) for path in files.paths]))


def _read(files: Files, spans: np.ndarray) -> list[bytes]:
  """The bytes of the documents at `spans`, some of which may be records; one request a file."""
  numbers, starts, stops = spans.T.tolist()
  paths = [files.paths[number] for number in numbers]
  if not any(path.endswith(array_records.SUFFIX) for path in paths):
    return files.fs.cat_ranges(paths, starts, stops, on_error="raise")
  payloads = [b""] * len(paths)
  for path in dict.fromkeys(paths):
    places = [i for i, other in enumerate(paths) if other == path]
    first = [starts[i] for i in places]
    if path.endswith(array_records.SUFFIX):
      found = array_records.read(path, first)
    else:
      found = files.fs.cat_ranges(
        [path] * len(places), first, [stops[i] for i in places], on_error="raise"
      )
    for place, payload in zip(places, found, strict=True):
      payloads[place] = payload
  return payloads


def find(pattern: str) -> Files:
  """The files with random access that match a path, a glob or an fsspec URL.

  Raises:
    ValueError: none does, one has no random access, or the URL is of a kind that needs a package
      that is not installed.
  """
  files = _match(pattern)
  for path in files.paths:
    if path.endswith(_COMPRESSED_SUFFIXES):
      raise ValueError(
        f"{path} is compressed and has no random access; decompress it, or name it by a path that "
        "ends in the suffix of a source's compression: .gz, .zst, .bz2 or .xz."
      )
    if path.endswith(array_records.SUFFIX) and "file" not in np.atleast_1d(files.fs.protocol):
      raise ValueError(f"{path} is an ArrayRecord file, which is read from disks only; copy it.")
  return files


def _match(pattern: str) -> Files:
  """The files of any kind that match a path, a glob or an fsspec URL.

  Raises:
    ValueError: none does, or the URL is of a kind that needs a package that is not installed.
  """
  try:
    fs, path = fsspec.core.url_to_fs(pattern)
  except ImportError as error:
    raise ValueError(f"the source {pattern!r} needs another package: {error}") from error
  # A name with brackets in it is a name first, and a glob only if there is no such file.
  paths = [path] if fs.isfile(path) else [p for p in fs.glob(path) if fs.isfile(p)]
  if not paths:
    raise ValueError(f"the source {pattern!r} matches no file; check the path or the glob.")
  return Files(fs, tuple(sorted(paths)))


def scan(files: Files, max_bad_lines: int) -> Iterator[tuple[Span, str]]:
  """Yields the span and the text of every document of `files`, in order.

  A line of a `.jsonl`, `.json` or `.ndjson` file is a document, with its text in the key `text`;
  a record of an `.array_record` file is one, and any other file. Blank lines and empty
  texts are left out. A line that cannot be read is skipped, and logged with its file and number.

  Raises:
    ValueError: there are more than `max_bad_lines` such lines.
  """
  bad = 0
  for number, path in enumerate(files.paths):
    for line, start, stop, payload in _payloads(files.fs, path):
      try:
        text = _text(path, payload)
      except ValueError as error:
        bad += 1
        if bad <= _LOGGED_BAD_LINES:
          logging.warning("%s:%d: skipped: %s", path, line, error)
        if bad > max_bad_lines:
          raise ValueError(
            f"{path}:{line}: {error}; {bad} bad lines are more than "
            f"data.max_bad_lines={max_bad_lines}. Repair the file, or raise the limit."
          ) from error
        continue
      if text:
        yield (number, start, stop), text
  if bad:
    logging.warning("skipped %d bad lines in %d files", bad, len(files.paths))


def _payloads(fs, path: str) -> Iterator[tuple[int, int, int, bytes]]:
  """Yields the line number, the first and last + 1 byte and the bytes of each candidate document.

  Of an ArrayRecord file: the number of the record from 1 on, and its first and last + 1 record.
  """
  if path.endswith(array_records.SUFFIX):
    records = array_records.count(path)
    for first in range(0, records, _RECORDS_TOGETHER):
      numbers = range(first, min(first + _RECORDS_TOGETHER, records))
      for number, payload in zip(numbers, array_records.read(path, numbers), strict=True):
        yield number + 1, number, number + 1, payload
    return
  with fs.open(path, "rb") as file:
    if not path.endswith(_JSONL_SUFFIXES):
      payload = file.read()
      yield 1, 0, len(payload), payload
      return
    offset = 0
    for line, payload in enumerate(file, start=1):
      if payload.strip():
        yield line, offset, offset + len(payload), payload
      offset += len(payload)


def _again(path: str, payload: bytes) -> str:
  """The text of a document that could be read before."""
  try:
    return _text(path, payload)
  except ValueError as error:
    raise ValueError(
      f"{path} has changed since its documents were found: {error}. Restore the file."
    ) from error


def _text(path: str, payload: bytes) -> str:
  if not path.endswith(_JSONL_SUFFIXES):
    return payload.decode("utf-8")
  try:
    record = json.loads(payload)
  except RecursionError:
    raise ValueError("JSON nested too deeply") from None
  if not isinstance(record, dict) or not isinstance(record.get("text"), str):
    raise ValueError("no JSON object with a string in the key `text`")
  record["text"].encode("utf-8")  # JSON can spell half a surrogate pair, which is no text
  return record["text"]

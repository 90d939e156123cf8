"""Sources without random access, written once as ArrayRecord to the folder of a run."""

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path

import fsspec

from data import array_records, compression, files, readers
from data.record import Fault

_UNREADABLE_AT_RANDOM = (*compression.SUFFIXES, ".parquet")
_NOTHING = ("no_text", "no_documents")  # as blank lines, which are no bad ones
_LOGGED = 20


def needed(path: str) -> bool:
  """Whether a path, glob or URL is of files without random access: compressed, or Parquet."""
  return path.endswith(_UNREADABLE_AT_RANDOM)


def write(pattern: str, folder: Path, max_bad_lines: int) -> Path:
  """Writes the documents of such files to one ArrayRecord file, unless it is there; returns it.

  Rows of JSONL and Parquet are documents, with their text in the key `text`; any other file is one.
  The name of what is written changes with the files' names, sizes and times.

  Raises:
    ValueError: no file matches, one is of another kind, more than `max_bad_lines` rows or files
      can't be read, or no document is left.
  """
  paths = readers.files(pattern)
  path = folder / f"{_key(paths)}{array_records.SUFFIX}"
  if not path.exists():
    none = f"the source {pattern!r} has no document."
    try:
      write_texts(path, _texts(paths, max_bad_lines), none)
    except ImportError as error:
      raise ValueError(f"{pattern!r} needs {error.name}: pip install -e '.[corpus]'") from error
  return path


def write_texts(path: Path, texts: Iterable[str], none: str) -> None:
  """Writes texts to an ArrayRecord file, whole or not at all; ValueError(`none`) without any."""
  count = 0
  with files.whole(path) as partial:
    with array_records.Writer(str(partial)) as writer:
      for text in texts:
        writer.write(text)
        count += 1
    if not count:
      raise ValueError(none)


def _key(paths: list[str]) -> str:
  known = [files.facts(*fsspec.core.url_to_fs(path)) or path for path in paths]
  return hashlib.blake2b(json.dumps(known).encode(), digest_size=8).hexdigest()


def _texts(paths, max_bad_lines):
  bad = 0
  for path in paths:
    format = readers.guess(path)
    if format not in ("jsonl", "parquet", "text"):
      raise ValueError(f"{path} is of the format {format}: raw; make a corpus of it first.")
    for item in readers.read(path, format, ""):
      if not isinstance(item, Fault):
        yield item.text
      elif item.reason not in _NOTHING:
        bad += 1
        if bad <= _LOGGED:
          logging.warning("%s at %d: skipped: %s", path, item.offset, item.reason)
        if bad > max_bad_lines:
          raise ValueError(
            f"{path} at {item.offset}: {item.reason}; {bad} bad lines are more than "
            f"data.max_bad_lines={max_bad_lines}. Repair the file, or raise the limit."
          )

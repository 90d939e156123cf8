"""ArrayRecord files of texts: written once, read by record number from any thread or process."""

import functools
import os
from collections.abc import Sequence
from typing import Any

SUFFIX = ".array_record"
# One text a chunk, so that reading one decompresses one; as grain advises for random access.
_OPTIONS = "group_size:1,zstd:3"


class Writer:
  """Writes texts to an ArrayRecord file; as a context it closes it."""

  def __init__(self, path: str):
    from array_record.python import array_record_module

    self._path = path
    self._writer = _checked(path, array_record_module.ArrayRecordWriter, path, _OPTIONS)

  def write(self, text: str) -> None:
    """Appends a text as UTF-8.

    Raises:
      OSError: the file can't be written, for example because the disk is full.
    """
    _checked(self._path, self._writer.write, text.encode("utf-8"))

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, kind, *_) -> None:
    if kind is None:
      _checked(self._path, self._writer.close)


def count(path: str) -> int:
  """How many records a file has.

  Raises:
    ValueError: it is no ArrayRecord file, is cut short, or has none.
  """
  try:
    records = _reader(path, os.getpid()).num_records()
  except (RuntimeError, ValueError) as error:
    raise ValueError(f"{path} can't be read as ArrayRecord: {error}") from error
  if not records:  # what the reader says of a file of another kind
    raise ValueError(f"{path} has no records; is it an ArrayRecord file, and is it complete?")
  return records


def read(path: str, numbers: Sequence[int]) -> list[bytes]:
  """The records of these numbers, in the order that is asked for."""
  return _reader(path, os.getpid()).read(list(numbers)) if len(numbers) else []


@functools.lru_cache(maxsize=256)
def _reader(path: str, process: int) -> Any:
  """The reader of a file; of this process, because it has threads that a fork does not take."""
  del process
  from array_record.python import array_record_module

  return array_record_module.ArrayRecordReader(path)


def _checked(path, function, *arguments):
  try:
    return function(*arguments)
  except RuntimeError as error:  # what the library makes of every error of the system
    raise OSError(f"{path} can't be written: {error}") from error

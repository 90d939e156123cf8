"""Files that are there as a whole or not at all: JSON, arrays, zstd JSONL, Parquet."""

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# What file systems say of a file that changes with its content, beside its size.
_STAMPS = ("mtime", "LastModified", "last_modified", "updated", "ETag", "etag", "md5Hash")
_ZSTD_LEVEL = 3
_ROWS_TOGETHER = 512


# Of a disk or quota that is full; numpy's and zstandard's own errors have none.
_FULL = (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Full(OSError):
  """A file could not be written for want of room."""


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
  """A name to write to; the file gets `path` once it is complete and on the disk.

  Raises:
    OSError: it can't be written; Full, with its name, where the disk or a quota is full.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")
  try:
    yield partial
    with partial.open("rb+") as file:
      os.fsync(file.fileno())
    partial.replace(path)
  except OSError as error:
    if isinstance(error, Full) or error.errno not in _FULL:
      raise
    raise Full(f"{path} can't be written: {error}. Is the disk full?") from error
  finally:
    partial.unlink(missing_ok=True)


def facts(fs: Any, path: str) -> list[Any] | None:
  """What tells whether a file of an fsspec file system is another one than before, as JSON values.

  Its name, its size, and times and tags; None where the file system has none of these.
  """
  info = fs.info(path)
  stamps = [str(info[stamp]) for stamp in _STAMPS if info.get(stamp)]
  return [path, info.get("size"), *stamps] if stamps else None


def write_json(path: Path, value: Any) -> None:
  """Writes JSON values, for people to read as well."""
  with whole(path) as partial:
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
  return json.loads(path.read_text(encoding="utf-8"))


def write_array(path: Path, array: np.ndarray) -> None:
  with whole(path) as partial, partial.open("wb") as file:
    np.save(file, array)


def read_array(path: Path) -> np.ndarray:
  """An array that stays on the disk, as far as it is not used."""
  array = np.load(path, mmap_mode="r", allow_pickle=False)
  return array if array.size else np.empty(array.shape, array.dtype)


Writer = Callable[[Mapping[str, Any]], None]


@contextlib.contextmanager
def jsonl_writer(path: Path) -> Iterator[Writer]:
  """Writes JSON objects, one a line, compressed by zstd."""
  import zstandard

  compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
  with whole(path) as partial, partial.open("wb") as raw, compressor.stream_writer(raw) as out:

    def write(row):
      out.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")

    yield write


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
  """The objects of a file that `jsonl_writer` made, one after the other."""
  import zstandard

  with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
    for line in io.BufferedReader(stream, 1 << 20):
      yield json.loads(line)


@contextlib.contextmanager
def parquet_writer(path: Path, columns: Sequence[tuple[str, str]]) -> Iterator[Writer]:
  """Writes rows as Parquet, compressed by zstd.

  Args:
    path: of the file.
    columns: (name, a type of Arrow: "string" or "int64").
  """
  import pyarrow
  import pyarrow.parquet

  schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in columns])
  rows = []

  def flush():
    writer.write_table(pyarrow.Table.from_pylist(rows, schema))
    rows.clear()

  def write(row):
    rows.append(row)
    if len(rows) == _ROWS_TOGETHER:
      flush()

  open_parquet = functools.partial(pyarrow.parquet.ParquetWriter, compression="zstd")
  with whole(path) as partial, open_parquet(partial, schema) as writer:
    yield write
    flush()


def sha256(path: Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()

"""Compressed files as streams that notice where they are cut short."""

import bz2
import io
import lzma
import zlib

import fsspec

from data.record import Unreadable

SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
# The most bytes that are given to a decompressor at once. It bounds what a malicious file can grow
# to in memory: zstandard has no other limit, and turns 4 bytes into 128 KiB at most.
_CHUNK_BYTES = 4096


def stem(path: str) -> str:
  """`path` without the suffix of a compression."""
  return path.removesuffix(next((s for s in SUFFIXES if path.endswith(s)), ""))


def open_stream(path: str) -> io.BufferedIOBase:
  """Opens the file or fsspec URL `path` for reading, decompressed by its suffix.

  Reading it raises `Unreadable` where the compressed bytes are wrong or end too early, after all
  that could be read before.
  """
  file = fsspec.open(path, "rb").open()
  suffix = path.removeprefix(stem(path))
  return io.BufferedReader(_Decompressed(file, suffix), 1 << 17) if suffix else file


class _Decompressed(io.RawIOBase):
  """The decompressed bytes of `file` as a stream."""

  def __init__(self, file, suffix):
    self._file, self._chunks = file, _decompress(file, suffix)
    self._rest = memoryview(b"")

  def readable(self):
    return True

  def readinto(self, buffer):
    while not self._rest:
      try:
        self._rest = memoryview(next(self._chunks))
      except StopIteration:
        return 0
    size = min(len(buffer), len(self._rest))
    buffer[:size], self._rest = self._rest[:size], self._rest[size:]
    return size

  def close(self):
    self._file.close()
    super().close()


def _decompress(file, suffix):
  """Yields the decompressed bytes of `file`: of any number of members or frames."""
  stream = None
  compressed = file.read(_CHUNK_BYTES)
  while compressed:
    if stream is None:
      compressed = compressed.lstrip(b"\0")  # what pads members to blocks
      stream = _decompressor(suffix) if compressed else None
    if stream is not None:
      try:
        yield stream.decompress(compressed)
      except Exception as error:  # each library has its own
        raise Unreadable("broken_compression") from error
      compressed = b""
      if stream.eof:
        compressed, stream = stream.unused_data, None
    compressed = compressed or file.read(_CHUNK_BYTES)
  if stream is not None:
    raise Unreadable("truncated_compression")


def _decompressor(suffix):
  if suffix == ".gz":
    return zlib.decompressobj(wbits=31)
  if suffix == ".bz2":
    return bz2.BZ2Decompressor()
  if suffix == ".xz":
    return lzma.LZMADecompressor(memlimit=1 << 28)
  import zstandard

  return zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()

"""Web pages (WARC) and their texts (WET) of CommonCrawl and other archives.

A broken record costs itself and no other: reading goes on at the next one, which in a compressed
file is the next gzip member.
"""

import contextlib
import io
import re
import zlib
from collections.abc import Iterator

import fsspec

from data import extract
from data.record import Fault, Record

# The longest page, as stored and decoded. CommonCrawl cuts them at 1 MiB.
_MAX_PAGE_BYTES = 1 << 24
_BLOCK_BYTES = 1 << 20
_HEADER_BYTES = 1 << 15
_HEADER = re.compile(rb"WARC/\d+\.\d+\r?\n(?:[^\r\n]+\r?\n)*\r?\n")
_GZIP = b"\x1f\x8b\x08"
_MARK = re.compile(rb"WARC/\d|\x1f\x8b\x08")
_MARK_BYTES = 6
_HTML_TYPES = ("text/html", "application/xhtml+xml")


def read(path: str, source: str, wet: bool) -> Iterator[Record | Fault]:
  """Yields the text of every page in a WARC file, with its url, title and date, or of every text in
  a WET file, and a Fault for each record that is broken, no page, or without text.

  Requests, metadata and the like are not counted: nobody expects a document in them.
  """
  from fastwarc.warc import ArchiveIterator, WarcRecordType

  kinds = WarcRecordType.conversion if wet else WarcRecordType.response | WarcRecordType.resource
  with fsspec.open(path, "rb") as file:
    start, unexplained = 0, None
    while start is not None:
      file.seek(start)
      record, position, failed = None, start, False
      try:
        for record in ArchiveIterator(_Part(file), parse_http=False):
          if unexplained is not None:  # what was unreadable is before this record
            yield Fault(path, unexplained, "broken_record")
            unexplained = None
          position = start + record.stream_pos
          if "Content-Length" not in record.headers:
            yield Fault(path, position, "broken_record")
          elif record.record_type & kinds and not _is_log(record):
            payload = record.reader.read(_MAX_PAGE_BYTES + 1)
            yield _document(record, payload, source, path, position)
      except OSError as error:
        if error.errno:  # the file system's, not the format's
          raise
        failed = True
      if record is not None and failed:  # it is broken, or what comes after it
        unexplained = position
        start = _next_record(file, position + 1)
      elif record is not None:
        end = _end(file, position, record.content_length)
        start = None if end is None else _next_record(file, end + 1)
        if end is not None:
          yield Fault(path, end, "truncated_record")
      else:
        start = _next_record(file, position + 1)
        unexplained = None
        if failed or file.seek(0, io.SEEK_END):
          yield Fault(path, position, "broken_record" if position or start else "not_warc")
    if unexplained is not None:
      yield Fault(path, unexplained, "broken_record")


class _Part:
  """The rest of a file from where it stands, as a stream whose positions begin there."""

  def __init__(self, file):
    self._file, self._start = file, file.tell()

  def read(self, size=-1):
    return self._file.read(size)

  def seek(self, offset, whence=0):
    shift = self._start if whence == 0 else 0
    return self._file.seek(offset + shift, whence) - self._start

  def tell(self):
    return self._file.tell() - self._start

  def close(self):
    pass


def _is_log(record):
  """Whether a record holds what the crawler said, which wget stores like a page."""
  return (record.headers.get("WARC-Target-URI") or "").lstrip("<").startswith("metadata:")


def _next_record(file, start):
  """The first byte from `start` on where a record begins, or None."""
  file.seek(start)
  position, window = start, b""
  while block := file.read(_BLOCK_BYTES):
    position, window = position + len(window[:-_MARK_BYTES]), window[-_MARK_BYTES:] + block
    for found in _MARK.finditer(window):
      at = position + found.start()
      if at >= start and (_inflated if found[0] == _GZIP else _header)(file, at):
        return at
    file.seek(position + len(window))
  return None


def _end(file, start, length):
  """Where the last record's bytes end that begins at `start`; None if nothing comes after."""
  if _is_gzip(file, start):
    file.seek(start)
    member = zlib.decompressobj(wbits=31)
    while not member.eof and (block := file.read(_BLOCK_BYTES)):
      while block:
        member.decompress(block, _BLOCK_BYTES)
        block = member.unconsumed_tail
    end = file.tell() - len(member.unused_data)
  elif header := _header(file, start):
    end = start + len(header) + length
  else:
    return None
  file.seek(end)
  rest = file.read(_BLOCK_BYTES)
  padding = len(rest) - len(rest.lstrip(b"\r\n\0"))
  return end + padding if rest[padding:] else None


def _is_gzip(file, start):
  file.seek(start)
  return file.read(len(_GZIP)) == _GZIP


def _inflated(file, start):
  """The first bytes of the gzip member at `start` if it holds a record, else nothing."""
  file.seek(start)
  try:
    plain = zlib.decompressobj(wbits=31).decompress(file.read(512), 5)
  except zlib.error:
    return b""
  return plain if plain == b"WARC/" else b""


def _header(file, start):
  """The header of the record at `start` if there is one, else nothing."""
  file.seek(start)
  found = _HEADER.match(file.read(_HEADER_BYTES))
  return found[0] if found and b"warc-type:" in found[0].lower() else b""


def _document(record, payload, source, path, offset):
  """The document of a record, or the Fault that stands for it."""
  if len(payload) > _MAX_PAGE_BYTES:
    return Fault(path, offset, "too_large")
  if len(payload) < record.content_length:
    return Fault(path, offset, "truncated_record")
  headers = {name.lower(): value for name, value in record.headers.items()}
  meta = {
    name: " ".join(headers[header].split()).strip("<>")
    for name, header in (
      ("url", "warc-target-uri"),
      ("date", "warc-date"),
      ("record", "warc-record-id"),
      ("truncated", "warc-truncated"),
    )
    if headers.get(header)
  }
  kind = headers.get("content-type", "")
  if kind.replace(" ", "").startswith("application/http"):
    status, headers, payload = _http(payload)
    if status is None:
      return Fault(path, offset, "broken_http")
    if status != "200":
      return Fault(path, offset, "http_status")
    payload = _decoded(headers, payload)
    if payload is None:
      return Fault(path, offset, "broken_encoding")
    kind = headers.get("content-type", "")
  kind, _, parameters = kind.lower().partition(";")
  charset = parameters.partition("charset=")[2].split(";")[0].strip(" \"'") or None
  if kind.strip() in _HTML_TYPES or (not kind and b"<html" in payload[:2048].lower()):
    try:
      page = extract.extract(extract.decode(payload, charset))
    except ValueError:
      return Fault(path, offset, "invalid_html")
    text, meta = page.text, {**meta, **({"title": page.title} if page.title else {})}
  elif kind.strip() == "text/plain":
    text = extract.decode(payload, charset).strip()
  else:
    return Fault(path, offset, "content_type")
  return Record(text, source, path, offset, meta) if text else Fault(path, offset, "no_text")


def _http(payload):
  """The status, the headers by lower-case name, and the body of an HTTP response."""
  end = min((at for at in (payload.find(s) for s in (b"\r\n\r\n", b"\n\n")) if at >= 0), default=-1)
  if end < 0 or not payload.startswith(b"HTTP/"):
    return None, {}, b""
  first, *rest = payload[:end].decode("latin-1").splitlines()
  pairs = (line.partition(":") for line in rest)
  headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
  separator = 4 if payload.startswith(b"\r\n\r\n", end) else 2
  return [*first.split(), "", ""][1], headers, payload[end + separator :]


def _decoded(headers, body):
  """The body without its transfer and content encoding, None if that is broken.

  Many archives store a body that was decoded already under the headers of the encoded one.
  """
  from fastwarc.stream_io import BrotliReader, ChunkedReader

  if "chunked" in headers.get("transfer-encoding", "").lower():
    with contextlib.suppress(OSError):  # it has no chunks
      body = ChunkedReader(io.BytesIO(body)).read(_MAX_PAGE_BYTES + 1) or body
  encoding = headers.get("content-encoding", "").lower()
  try:
    if encoding in ("gzip", "x-gzip") and body.startswith(_GZIP):
      body = zlib.decompressobj(wbits=31).decompress(body, _MAX_PAGE_BYTES + 1)
    elif encoding == "deflate" and not body.lstrip().startswith(b"<"):
      raw = body[:1] and body[0] & 15 != 8  # without the header of zlib
      body = zlib.decompressobj(-15 if raw else 15).decompress(body, _MAX_PAGE_BYTES + 1)
    elif encoding == "br" and not body.lstrip().startswith(b"<"):
      body = BrotliReader(io.BytesIO(body)).read(_MAX_PAGE_BYTES + 1)
  except (zlib.error, OSError):
    return None
  return body if len(body) <= _MAX_PAGE_BYTES else None

"""Documents from raw dumps in any of ten formats, one at a time, with faults for what is broken."""

import functools
import importlib
import json
from collections.abc import Callable, Iterator

import fsspec

from data import compression
from data.record import Fault, Record, Unreadable

# A document, or a line that holds one, that is longer than this is a fault: memory stays bounded.
MAX_BYTES = 1 << 26
# What a record keeps of the fields of a row beside its text.
_MAX_META_CHARS = 2000

_FORMATS = {
  ".warc": "warc",
  ".arc": "warc",
  ".wet": "wet",
  ".nxml": "jats",
  ".tex": "latex",
  ".html": "html",
  ".htm": "html",
  ".xhtml": "html",
  ".jsonl": "jsonl",
  ".ndjson": "jsonl",
  ".json": "jsonl",
  ".parquet": "parquet",
}


def files(pattern: str) -> list[str]:
  """The files that match a path, a glob or an fsspec URL, in order, each a path for `read`.

  Raises:
    ValueError: none does, one has a name that is no UTF-8, or the URL is of a kind that needs a
      package that is not installed.
  """
  try:
    fs, path = fsspec.core.url_to_fs(pattern)
  except (ImportError, ValueError) as error:
    raise ValueError(f"the source {pattern!r} cannot be opened: {error}") from error
  # A name with brackets in it is a name first, and a glob only if there is no such file.
  paths = [path] if fs.isfile(path) else sorted(p for p in fs.glob(path) if fs.isfile(p))
  if not paths:
    raise ValueError(f"the source {pattern!r} matches no file; check the path or the glob.")
  for name in paths:
    if any("\ud800" <= letter <= "\udfff" for letter in name):  # bytes that were no text
      raise ValueError(f"the name of the file {name!r} is no UTF-8, as provenance is; rename it.")
  local = "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
  return paths if local else [fs.unstrip_protocol(p) for p in paths]


def read(path: str, format: str | None, source: str, key: str = "text") -> Iterator[Record | Fault]:
  """Yields the documents of a file, and a Fault for each part of it that is none.

  Args:
    path: a file or its fsspec URL, compressed (.gz, .zst, .bz2, .xz) or not.
    format: warc (web pages), wet (their texts), mediawiki (an XML dump), articles (plain text under
      lines like ` = Title = `), jats, latex, html, jsonl, parquet, lines (a document each) or text
      (one document). None: by the suffix, and XML by how it begins; text for a suffix of no format.
      Where a .jsonl or .parquet file is called html, jats or latex, its rows hold such documents.
    source: the name that its records carry.
    key: the field of a row that holds the text.

  Offsets count bytes, decompressed ones in a compressed file but not in WARC, where records begin
  in the file itself; in Parquet they count rows.

  Raises:
    ValueError: no such format.
    OSError: the file cannot be opened or read at all; a network error is no fault of the file.
  """
  format = format or guess(path)
  if format not in FORMATS:
    raise ValueError(f"format={format!r} of {path} is none of {', '.join(FORMATS)}.")
  container = _FORMATS.get(_suffix(path))
  if format in _STREAMS:
    items = _STREAMS[format](path, source, key)
  elif container in ("jsonl", "parquet"):
    items = _converted(_STREAMS[container](path, source, key), _CONVERTERS[format])
  else:
    items = _whole(path, source, _CONVERTERS[format])
  nothing = True
  for item in items:
    nothing = False
    yield item
  if nothing:
    yield Fault(path, 0, "no_documents")


def guess(path: str) -> str:
  """The format of a file by its suffix; XML is read a little, and text where all else fails."""
  suffix = _suffix(path)
  if suffix == ".xml":
    with compression.open_stream(path) as file:
      try:
        return "mediawiki" if b"<mediawiki" in file.read(4096) else "jats"
      except Unreadable:
        return "jats"
  return _FORMATS.get(suffix, "text")


def lines(file, path: str) -> Iterator[tuple[int, bytes] | Fault]:
  """Yields the byte offset and the bytes of every line, and a Fault where a line is too long.

  A stream that breaks off ends with a Fault; the line that it broke off in is not given.
  """
  offset = 0
  try:
    while line := file.readline(MAX_BYTES + 1):
      start = offset
      offset += len(line)
      if len(line) <= MAX_BYTES:
        yield start, line
        continue
      while line and not line.endswith(b"\n"):
        line = file.readline(MAX_BYTES)
        offset += len(line)
      yield Fault(path, start, "line_too_long")
  except Unreadable as error:
    yield Fault(path, offset, error.reason)


def whole(path: str) -> bytes:
  """All bytes of a file.

  Raises:
    Unreadable: they are more than `MAX_BYTES`, or compressed wrongly.
  """
  with compression.open_stream(path) as file:
    payload = file.read(MAX_BYTES + 1)
  if len(payload) > MAX_BYTES:
    raise Unreadable("too_large")
  return payload


def utf8(payload: bytes) -> str:
  """The text of UTF-8 bytes, without a byte order mark; Unreadable if they are something else."""
  try:
    return payload.decode("utf-8").removeprefix("\ufeff")
  except UnicodeDecodeError:
    raise Unreadable("invalid_utf8") from None


def _suffix(path):
  name = compression.stem(path).rsplit("/", 1)[-1].lower()
  return name[name.rfind(".") :] if "." in name else ""


def _whole(path, source, convert):
  """Yields the one document of a file."""
  try:
    payload = whole(path)
    if payload.strip():
      text, meta = convert(payload)
      yield Record(text, source, path, 0, meta) if text else Fault(path, 0, "no_text")
  except Unreadable as error:
    yield Fault(path, 0, error.reason)


def _converted(rows, convert):
  """Yields the documents that the rows of a table hold in another format."""
  for row in rows:
    if isinstance(row, Record):
      try:
        text, meta = convert(row.text.encode("utf-8"))
        row = (
          Record(text, row.source, row.path, row.offset, {**meta, **row.meta})
          if text
          else Fault(row.path, row.offset, "no_text")
        )
      except Unreadable as error:
        row = Fault(row.path, row.offset, error.reason)
    yield row


def _jsonl(path, source, key):
  with compression.open_stream(path) as file:
    for line in lines(file, path):
      if isinstance(line, Fault):
        yield line
      elif line[1].strip():
        try:
          yield _row(json.loads(line[1]), key, source, path, line[0])
        except UnicodeDecodeError:
          yield Fault(path, line[0], "invalid_utf8")
        except (ValueError, RecursionError):
          yield Fault(path, line[0], "invalid_json")


def _parquet(path, source, key):
  import pyarrow
  import pyarrow.parquet

  with fsspec.open(path, "rb") as file:
    number = 0
    try:
      table = pyarrow.parquet.ParquetFile(file, pre_buffer=False)
      for batch in table.iter_batches(batch_size=256):
        for row in batch.to_pylist():
          yield _row(row, key, source, path, number)
          number += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
      if getattr(error, "errno", None):  # the file system's, not the format's
        raise
      yield Fault(path, number, "invalid_parquet")


def _row(fields, key, source, path, offset):
  """The document of a row, or the Fault that stands for it."""
  text = fields.get(key) if isinstance(fields, dict) else None
  if not isinstance(text, str):
    return Fault(path, offset, "no_text_field")
  try:
    text.encode("utf-8")  # JSON can spell half a surrogate pair, which is no text
  except UnicodeEncodeError:
    return Fault(path, offset, "invalid_unicode")
  if not text.strip():
    return Fault(path, offset, "no_text")
  return Record(text, source, path, offset, _meta(fields, key))


def _meta(fields, key):
  """The short scalar fields of a row, and those in its `meta` or `metadata`, as strings."""
  inner = (fields.get(name) for name in ("meta", "metadata"))
  fields = {k: v for part in (*inner, fields) if isinstance(part, dict) for k, v in part.items()}
  scalars = {
    str(name): str(value)
    for name, value in fields.items()
    if name != key and isinstance(value, str | int | float)
  }
  return {
    name: value
    for name, value in scalars.items()
    if len(value) <= _MAX_META_CHARS and value.isprintable()
  }


def _lines(path, source, key):
  del key
  with compression.open_stream(path) as file:
    for line in lines(file, path):
      try:
        if isinstance(line, Fault):
          yield line
        elif text := utf8(line[1]).strip():
          yield Record(text, source, path, line[0], {})
      except Unreadable as error:
        yield Fault(path, line[0], error.reason)


def _text(payload):
  return utf8(payload).replace("\r\n", "\n").strip(), {}


def _html(payload):
  from data import extract

  try:
    page = extract.extract(extract.decode(payload))
  except ValueError:
    raise Unreadable("invalid_html") from None
  return page.text, {"title": page.title} if page.title else {}


def _jats(payload):
  from data import jats

  return jats.article(payload)


def _latex(payload):
  from data import latex

  return latex.text(utf8(payload))


def _module(name):
  """The `read` of the module of a format, which is imported when it is called for."""

  def stream(path, source, key):
    del key
    yield from importlib.import_module(f"data.{name}").read(path, source)

  return stream


def _warc(path, source, key, wet):
  from data import warc

  del key
  yield from warc.read(path, source, wet)


# The formats of many documents a file: (path, source, key) -> records and faults.
_STREAMS: dict[str, Callable] = {
  "warc": functools.partial(_warc, wet=False),
  "wet": functools.partial(_warc, wet=True),
  "mediawiki": _module("mediawiki"),
  "articles": _module("articles"),
  "jsonl": _jsonl,
  "parquet": _parquet,
  "lines": _lines,
}
# The formats of one document: bytes -> its text and what else it says.
_CONVERTERS: dict[str, Callable[[bytes], tuple[str, dict[str, str]]]] = {
  "jats": _jats,
  "latex": _latex,
  "html": _html,
  "text": _text,
}
# What `read` takes for a format.
FORMATS = (*_STREAMS, *_CONVERTERS)

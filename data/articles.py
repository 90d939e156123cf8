"""Plain articles of an encyclopedia, many in a file, each under a line like ` = Title = `."""

import re
from collections.abc import Iterator

from data import compression, readers
from data.record import Fault, Record, Unreadable

_TITLE = re.compile(r"\s*= (?!=)(.+?)(?<!=) =\s*")
_HEADING = re.compile(r"\s*((?:= ){2,})(.+?)(?: =)+\s*")
# WikiText's words are apart by spaces, and `@` marks where one inside a number or word was made.
_SPACED = (
  (re.compile(r" @([-,.])@(?: |$)"), r"\1"),
  (re.compile(r" ([,.;:!?%)\]]|'s\b|n't\b)"), r"\1"),
  (re.compile(r"([(\[$£]) "), r"\1"),
  (re.compile(r'(^|[\s(\[])" ([^"]*?) "(?!\w)', re.MULTILINE), r'\1"\2"'),
  (re.compile(r"(\w) (['’])(?=\s|[,.;:]|$)"), r"\1\2"),
)


def read(path: str, source: str) -> Iterator[Record | Fault]:
  """Yields every article with its title and its words joined as one writes them.

  Lines before the first title are an article without one.
  """
  parts, title, start, size = [], "", 0, 0
  with compression.open_stream(path) as file:
    for line in readers.lines(file, path):
      if isinstance(line, Fault):
        yield line
        continue
      offset, payload = line
      try:
        text = readers.utf8(payload)
      except Unreadable as error:
        yield Fault(path, offset, error.reason)
        continue
      if found := _TITLE.fullmatch(text):
        yield from _article(parts, title, source, path, start)
        parts, title, start, size = [], joined(found[1]), offset, 0
        continue
      size += len(payload)
      if size <= readers.MAX_BYTES:
        parts.append(text)
      elif parts:
        parts = []
        yield Fault(path, start, "too_large")
  yield from _article(parts, title, source, path, start)


def _article(parts, title, source, path, start):
  paragraphs = [_HEADING.sub(r"\2", line).strip() for line in parts]
  text = "\n\n".join(joined(p) for p in paragraphs if p)
  if text:
    yield Record(text, source, path, start, {"title": title} if title else {})
  elif title:
    yield Fault(path, start, "no_text")


def joined(words: str) -> str:
  """A line of words and punctuation that are apart by spaces, as one writes it.

  Which of two equal quotation marks is meant is guessed, from pairs in a line.
  """
  for pattern, replacement in _SPACED:
    words = pattern.sub(replacement, words)
  return words.strip()

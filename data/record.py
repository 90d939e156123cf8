"""A document on its way through the corpus, and what stands in the place of one that is broken."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Record:
  """A document.

  Attributes:
    text: plain text, whatever the format was.
    source: the name of its source in the recipe.
    path: the file or URL that it was read from.
    offset: the byte at which it starts there, or its number where the format has no bytes.
    meta: url, title and the like: whatever the format gives.
  """

  text: str
  source: str
  path: str
  offset: int
  meta: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Fault:
  """A part of a file that could not be read, or was not meant to be: counted, never fatal.

  Attributes:
    path: the file or URL.
    offset: as a Record's.
    reason: a short word with underscores that stays the same from release to release.
  """

  path: str
  offset: int
  reason: str


class Unreadable(ValueError):
  """A file or a part of one cannot be read.

  Attributes:
    reason: that of the Fault which stands in its place.
  """

  def __init__(self, reason: str):
    super().__init__(reason)
    self.reason = reason

"""The text of a web page: its main content, without what surrounds it."""

import dataclasses
import re

# The fast extractor's answer is not trusted where it has fewer words than this and they are less
# than this share of the words that one can see: then a second, slower one is asked.
_FEW_WORDS = 50
_SMALL_SHARE = 0.25
_SECOND_MAX_CHARS = 1 << 20

# What is not running text by what it is called in HTML: headlines (a record's title holds them),
# captions, and the heads and feet of pages and their parts.
_NOT_TEXT = ["h1", "header", "footer", "figcaption", '[class*="caption" i]']

_TOO_DEEP = " > ".join(["*"] * 257)

# Lines that are not part of what one reads: buttons, advertisements, credits, notices.
_BOILERPLATE_MAX_CHARS = 160
_BOILERPLATE = re.compile(
  r"""[\W\d]*(?:
    (?: advert(?:isement|s)? | close | shares? | tweet | print | comments? | reply | subscribe
      | newsletters? | sections? | topics? | tags? | loading | menu | search | more
      | sponsored(?:\ links?|\ content)? | continue\ reading(?:\ below)?
      | (?:show|read|see|learn)\ more | key\ points | highlights | listen\ live
      | cookie\ settings | get\ short\ url | about\ the\ authors? | share\ this(?:\ \w+)?
      | sharing\ is\ caring | follow\ us(?:\ on)? | you\ (?:may|might)\ also\ (?:like|enjoy)
      | don['’]t\ miss | related(?:\ \w+)? | more\ (?:in|on|from)\ [\w ]+ | most\ (?:read|popular)
      | trending(?:\ now)? | recommended(?:\ for\ you)? | leave\ a\ (?:reply|comment)
      | available\ on | jump\ directly\ to\ the\ content | skip\ to\ (?:main\ )?content
      | sign\ (?:in|up) | log\ ?in | back\ to\ (?:top|home) | getty\ images | photos?
      | images?(?:\ \d+\ of)? | videos? | this\ slideshow\ requires\ javascript )[\W\d]*$
    | (?: related | sources? | photos? | images? | credits? | image\ credit | see\ also | also
        | read\ (?:more|also) | more | via | tags | filed\ under | posted\ in | share )\s?:
    | © | \(c\) | copyright\b | (?:read|see)\ more\b | share\ (?:on|via)\ \w+$
    | (?:first\ |last\ )?(?:published|updated|posted)\b[^.]{0,20}\d
    | follow\ \S+(?:\ \S+){0,3}\ on\b | (?:get|sign\ up|subscribe)\b.*\bnewsletters?\b
    | (?:click|tap)\ here\b | .*\bby\ clicking\ here$ | .*\ball\ rights\ reserved\b
    | this\ (?:post|article|page|story)\ (?:may\ )?contains?\b.*\b(?:affiliate|referral)\b
    | .*\b(?:uses|use\ of)\ cookies\b
  )""",
  re.IGNORECASE | re.VERBOSE,
)


@dataclasses.dataclass(frozen=True)
class Page:
  """The text of a web page: `text` without the headline, `title` from its head, "" if none."""

  text: str
  title: str


def decode(payload: bytes, charset: str | None = None) -> str:
  """The characters of an HTML or text file.

  Bytes that are valid UTF-8 are, whatever a page says: text in another encoding hardly ever is by
  chance, and pages that call UTF-8 Latin-1 are many. Then the declared character set counts, the
  HTTP header's (`charset`) before the page's own, where the bytes are valid in it; then what they
  look like, with U+FFFD for those that are wrong in that as well.
  """
  from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

  if payload.startswith((b"\xff\xfe", b"\xfe\xff")):
    return payload.decode("utf-16", "replace")
  header = charset and map_encoding_to_html5(charset, fallback_utf8=False)
  declared = (header, _meta_charset(payload))
  # Its bytes are all ASCII's.
  first = ("iso2022_jp",) if "iso2022_jp" in declared else ()
  for encoding in (*first, "utf-8", *declared):
    try:
      if encoding:
        return payload.decode(encoding).removeprefix("\ufeff")
    except (UnicodeDecodeError, LookupError):
      continue
  guess = detect_encoding(payload) or "utf-8"
  try:
    return payload.decode(guess, "replace")
  except LookupError:  # a name that browsers know and Python does not
    return payload.decode("utf-8", "replace")


def extract(html: str) -> Page:
  """The main text of an HTML page, a line for each of its blocks.

  Raises:
    ValueError: its elements are nested more than 256 deep: no browser shows more than 512, and to
      find the main content takes time that grows with the square of the depth.
  """
  from resiliparse.extract.html2text import extract_plain_text
  from resiliparse.parse.html import HTMLTree

  # The parser's C strings end at a NUL, which HTML replaces.
  tree = HTMLTree.parse(html.replace("\0", "\ufffd"))
  if tree.document.query_selector(_TOO_DEEP):
    raise ValueError("its elements are nested more than 256 deep")
  title = " ".join((tree.title or "").split())
  text = extract_plain_text(
    tree,
    main_content=True,
    list_bullets=False,
    alt_texts=False,
    comments=False,
    post_meta=False,
    skip_elements=_NOT_TEXT,
  )
  if len(text.split(maxsplit=_FEW_WORDS)) < _FEW_WORDS and len(html) <= _SECOND_MAX_CHARS:
    visible = extract_plain_text(tree, main_content=False, alt_texts=False)
    if len(text.split()) < _SMALL_SHARE * len(visible.split()):
      text = _second(html) or text
  return Page(_readable(text), title)


def _second(html):
  """The text by the slower extractor, or None where it finds none."""
  import trafilatura

  return trafilatura.extract(html, fast=True, include_comments=False, deduplicate=False)


def _readable(text):
  """`text` without lines of boilerplate, trailing spaces and more than one blank line in a row."""
  lines = []
  for line in text.splitlines():
    line = line.strip()
    if not line:
      if lines and lines[-1]:
        lines.append("")
    elif len(line) > _BOILERPLATE_MAX_CHARS or not _BOILERPLATE.match(line):
      lines.append(line)
  return "\n".join(lines).strip()


_META_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)


def _meta_charset(payload):
  """The character set that the first kilobytes of a page declare, by Python's name, or None."""
  from resiliparse.parse.encoding import map_encoding_to_html5

  found = _META_CHARSET.search(payload, 0, 4096)
  name = found and map_encoding_to_html5(found[1].decode("ascii", "replace"), fallback_utf8=False)
  # A file whose <meta> could be read byte by byte is not in UTF-16, whatever it says.
  return "utf-8" if name in ("utf-16-le", "utf-16-be") else name

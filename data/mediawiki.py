"""Articles of a MediaWiki XML dump as plain text.

A dump is read page by page: what is between `<page>` and `</page>` is parsed alone, so that memory
is bounded, a broken page costs itself only, and no document type can define entities.
"""

import re
from collections.abc import Iterator

from data import compression
from data.record import Fault, Record, Unreadable

# Wikipedia's own limit is 2 MiB of wikitext.
_MAX_PAGE_BYTES = 1 << 23
_BLOCK_BYTES = 1 << 16
_START, _END = b"<page>", b"</page>"
_SKIPPED_TAGS = {"ref", "table", "gallery", "references", "timeline", "imagemap", "score", "style"}
# Lists of links and sources: no running text.
_SKIPPED_SECTIONS = {
  "see also", "references", "external links", "further reading", "notes", "bibliography", "sources",
  "footnotes", "citations", "notes and references",
}  # fmt: skip
_SKIPPED_LINKS = re.compile(r"\s*:?\s*(?:file|image|category|media|[a-z]{2,3}(?:-[a-z]+)?):", re.I)
# The parser tries again for what is never closed: its time grows with the square of their number.
_MAX_UNCLOSED = 200
_PAIRS = tuple(
  re.compile(f"({opener})|{closer}")
  for opener, closer in (
    (r"\[", r"\]"),
    (r"\{\{", r"\}\}"),
    (r"\{\|", r"\|\}"),
    (r"<(?!br\b|hr\b|/)\w+", r"</\w+|/>"),
    ("<!--", "-->"),
  )
)
# Most of the markup of an article; what the parser need not see makes it faster.
_REFERENCES = re.compile(r"<!--.*?-->|<ref\b[^<>]*/>|<ref\b[^<>/]*>.*?</ref\s*>", re.I | re.DOTALL)
_MAGIC = re.compile(r"__[A-Z]+__")
# Templates that stand for a part of a sentence: which of their arguments one reads.
_SHOWN = {"lang": 2, "nowrap": 1, "nobr": 1, "transl": 2, "small": 1, "abbr": 1, "nihongo": 1}


def read(path: str, source: str) -> Iterator[Record | Fault]:
  """Yields every article with its title and id, and a Fault for each page that is a redirect, of
  another namespace than that of articles, without text, or broken."""
  with compression.open_stream(path) as file:
    for page in _pages(file, path):
      yield page if isinstance(page, Fault) else _article(*page, source, path)


def _pages(file, path):
  """Yields the byte offset and the bytes of every page, and a Fault for what is none."""
  buffer, offset = b"", 0  # `offset` is that of the buffer's first byte
  error = None
  while True:
    start = buffer.find(_START)
    end = buffer.find(_END, max(start, 0))
    if start >= 0 and end >= 0:
      end += len(_END)
      # A page that has no end of its own must not take the next one with it.
      inner = buffer.rfind(_START, start, end)
      if inner > start:
        yield Fault(path, offset + start, "broken_page")
      yield offset + inner, buffer[inner:end]
      buffer, offset = buffer[end:], offset + end
      continue
    if start < 0:  # nothing but what could be the first bytes of a tag
      kept = len(_START) - 1
      offset += max(len(buffer) - kept, 0)
      buffer = buffer[-kept:]
    elif len(buffer) - start > _MAX_PAGE_BYTES:
      yield Fault(path, offset + start, "too_large")
      buffer, offset = buffer[start + len(_START) :], offset + start + len(_START)
      continue
    if error is not None:
      break
    try:
      block = file.read1(_BLOCK_BYTES)
      error = None if block else ("truncated_file" if start >= 0 else "")
      buffer += block
    except Unreadable as failure:
      error = failure.reason
  if error:
    yield Fault(path, offset + max(buffer.find(_START), 0), error)


def _article(offset, payload, source, path):
  from lxml import etree

  parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=True)
  try:
    page = etree.fromstring(payload, parser)
  except etree.XMLSyntaxError:
    return Fault(path, offset, "broken_page")
  if page.findtext("ns", "0") != "0":
    return Fault(path, offset, "other_namespace")
  if page.find("redirect") is not None:
    return Fault(path, offset, "redirect")
  if page.findtext("revision/model", "wikitext") != "wikitext":
    return Fault(path, offset, "not_wikitext")
  markup = page.findtext("revision/text") or ""
  if markup.lstrip()[:9].lower() == "#redirect":
    return Fault(path, offset, "redirect")
  try:
    text = plain(markup)
  except ValueError:
    return Fault(path, offset, "broken_wikitext")
  meta = {"title": page.findtext("title", ""), "id": page.findtext("id", "")}
  return Record(text, source, path, offset, meta) if text else Fault(path, offset, "no_text")


def plain(markup: str) -> str:
  """The text that one reads in wikitext, a line for each paragraph, heading and item of a list.

  Templates, tables, references, files and categories are left out, and the sections that only list
  sources and links. Formulas stay, between dollar signs.

  Raises:
    ValueError: the parser gives up.
  """
  import mwparserfromhell

  for pair in _PAIRS:
    unclosed = 0
    for found in pair.finditer(markup):
      unclosed = unclosed + 1 if found[1] else max(unclosed - 1, 0)
    if unclosed > _MAX_UNCLOSED:
      raise ValueError(f"{unclosed} of {pair.pattern} are never closed")
  try:
    code = mwparserfromhell.parse(_REFERENCES.sub("", markup), skip_style_tags=True)
    text = _text(code)
  except (mwparserfromhell.parser.ParserError, RecursionError) as error:
    raise ValueError(f"the wikitext cannot be parsed: {error}") from error
  text = _MAGIC.sub("", re.sub(r"'{2,5}", "", text))
  lines = []
  skipped = 0  # the level of a heading under which nothing is kept
  for line in text.splitlines():
    if heading := re.fullmatch(r"(={2,6})\s*(.*?)\s*=+\s*", line):
      level = len(heading[1])
      if skipped and level > skipped:
        continue
      skipped = level if heading[2].lower() in _SKIPPED_SECTIONS else 0
      line = heading[2]
    line = re.sub(r"^[*#:;]+\s*", "", line)
    line = re.sub(r"\([\s,;]+", "(", re.sub(r"[\s,;]+\)", ")", line)).replace("()", "")
    line = " ".join(line.split()).replace(" ,", ",")
    if not skipped and line.strip("-|"):
      lines.append(line)
  return "\n".join(lines)


def _text(code):
  return "".join(_node(node) for node in code.nodes)


def _node(node):
  """The text of a node of the parse; headings keep their `=` for the lines to be found."""
  from mwparserfromhell import nodes

  if isinstance(node, nodes.Text):
    return str(node)
  if isinstance(node, nodes.Heading):
    return f"{'=' * node.level} {_text(node.title).strip()} {'=' * node.level}"
  if isinstance(node, nodes.Wikilink):
    if _SKIPPED_LINKS.match(str(node.title)):
      return ""
    return str(node.title).lstrip(":") if node.text is None else _text(node.text)
  if isinstance(node, nodes.ExternalLink):
    return _text(node.title) if node.title is not None else ""
  if isinstance(node, nodes.HTMLEntity):
    return node.normalize()
  if isinstance(node, nodes.Template):
    return _template(node)
  if isinstance(node, nodes.Tag):
    name = str(node.tag).lower().strip()
    if name in _SKIPPED_TAGS or node.contents is None:
      return "\n" if name == "br" else ""
    if name in ("math", "chem"):
      return f"${str(node.contents).strip()}$"
    if name in ("nowiki", "pre", "code", "syntaxhighlight"):
      return str(node.contents)
    return str(node.wiki_markup or "") + _text(node.contents)
  return ""


def _template(node):
  name = str(node.name).strip().lower()
  if name in ("convert", "cvt") and node.has("1") and node.has("2"):
    return f"{_text(node.get('1').value).strip()} {_text(node.get('2').value).strip()}"
  position = "2" if name.startswith("lang-") is False and _SHOWN.get(name) == 2 else "1"
  if (name in _SHOWN or name.startswith("lang-")) and node.has(position):
    return _text(node.get(position).value).strip()
  return ""

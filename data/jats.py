"""The text of a scientific article in JATS XML, that of PubMed Central and of many journals."""

import html
import re

from data.record import Unreadable

_BLOCKS = {"p", "title", "disp-quote", "verse-group", "def-item", "list-item", "boxed-text", "sec"}
# What is no running text, and what only points to it.
_SKIPPED = {
  "fig", "fig-group", "table-wrap", "table-wrap-group", "supplementary-material", "ref-list",
  "media", "graphic", "inline-graphic", "object-id", "label", "fn", "fn-group", "table", "notes",
  "inline-supplementary-material", "floats-group", "caption", "app-group", "annotation",
  "permissions",
}  # fmt: skip
_EMPTY_BRACKETS = re.compile(r"\s*[\[(][\s,;–-]*[\])]")


def article(payload: bytes) -> tuple[str, dict[str, str]]:
  """The title, the abstract and the body of an article as text, and its title, doi and journal.

  Figures, tables, references and citations of them are left out. Formulas that are given in TeX
  stay, between dollar signs; those in MathML are their characters. No entity that a document
  defines is expanded and none is fetched.

  Raises:
    Unreadable: it is no XML, or no article.
  """
  from lxml import etree

  parser = etree.XMLParser(
    resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True, remove_pis=True
  )
  try:
    root = etree.fromstring(payload, parser)
  except (etree.XMLSyntaxError, ValueError):
    raise Unreadable("invalid_xml") from None
  if _name(root) != "article":
    root = root.find(".//{*}article")
    if root is None:
      raise Unreadable("no_article")
  front = root.find("{*}front/{*}article-meta")
  front = root if front is None else front
  title = _line(front.find("{*}title-group/{*}article-title"))
  parts = [title]
  for abstract in front.findall("{*}abstract"):
    # Others are the publisher's digests and graphics.
    if abstract.get("abstract-type") in (None, "", "summary", "author-summary"):
      parts += _paragraphs(abstract)
  body = root.find("{*}body")
  if body is not None:
    parts += _paragraphs(body)
  meta = {
    "title": title,
    "doi": _line(front.find("{*}article-id[@pub-id-type='doi']")),
    "journal": _line(root.find(".//{*}journal-title")),
    "type": root.get("article-type", ""),
  }
  text = "\n\n".join(part for part in parts if part)
  if len(parts) == 1:  # a title is no document
    text = ""
  return text, {name: value for name, value in meta.items() if value}


def _name(node):
  return node.tag.rpartition("}")[2] if isinstance(node.tag, str) else ""


def _paragraphs(node):
  """The texts of the blocks inside a node, in order."""
  blocks = [""]

  def walk(node):
    name = _name(node)
    if name in _SKIPPED or (name == "xref" and node.get("ref-type") in ("bibr", "fn", "table-fn")):
      return
    block = name in _BLOCKS
    if block:
      blocks.append("")
    if not name:  # an entity that nothing here defines
      character = html.unescape(node.text or "")
      blocks[-1] += character if not character.startswith("&") else ""
    elif name == "tex-math":
      blocks[-1] += f"${_tex(node.text or '')}$"
    else:
      blocks[-1] += node.text or ""
      for child in node:
        if _name(child) != "math" or node.find("{*}tex-math") is None:
          walk(child)
        blocks[-1] += child.tail or ""
    if block:
      blocks.append("")

  walk(node)
  return [text for text in map(_tidy, blocks) if text]


def _tex(source):
  """The formula of a tex-math element, which may be a whole LaTeX document."""
  inside = re.search(r"\\begin\{document\}(.*?)\\end\{document\}", source, re.DOTALL)
  return (inside[1] if inside else source).strip().strip("$").strip()


def _line(node):
  return "" if node is None else " ".join(_paragraphs(node))


def _tidy(text):
  text = _EMPTY_BRACKETS.sub("", " ".join(text.split()))
  text = re.sub(r"\s+([,.;:)\]])", r"\1", text)
  return re.sub(r"[,;–-]+(?=[.;:])", "", text).strip()  # what stood between citations

"""The text of LaTeX sources, such as arXiv's, in one pass that never gives up on what it knows not.

A full parser stops, or takes minutes, where a source is cut or broken; this one looks at one
command at a time. The characters that commands stand for are from pylatexenc's tables.
"""

import functools
import re
import unicodedata

from data.record import Unreadable

_MAX_DEPTH = 16
_MAX_FORMULA_CHARS, _MAX_OPTIONAL_CHARS = 1 << 14, 500
# What expanding macros may make of a source.
_MAX_GROWTH, _MAX_GROWTH_CHARS = 8, 1 << 16

_COMMENT = re.compile(r"(\\(?:.|\n))|%.*?(?:\n[ \t]*|$)")
_TOKEN = re.compile(r"\\([a-zA-Z@]+\*?|.|\n)|\$\$?|[{}~&\\]|[^\\${}~&]+", re.DOTALL)
_NAME = r"\{?\\([a-zA-Z@]+)\}?"
_DEFINITION = re.compile(
  rf"\\(?:(?:re|provide)?newcommand|renewcommand|providecommand)\*?\s*{_NAME}\s*(?:\[(\d)\])?"
  rf"(\[[^\]]*\])?\s*(?=\{{)|\\def\s*{_NAME}((?:#\d)*)\s*(?=\{{)"
  rf"|\\DeclareMathOperator(\*?)\s*{_NAME}\s*(?=\{{)"
)

# Environments of which nothing is text, and those that are formulas.
_DROPPED = {
  "figure", "table", "tabular", "tabularx", "tikzpicture", "thebibliography", "algorithm",
  "picture", "algorithmic", "lstlisting", "verbatim", "longtable", "wrapfigure", "deluxetable",
  "marginfigure", "splitdeluxetable", "sidewaystable", "sidewaysfigure", "comment", "CCSXML",
  "filecontents", "threeparttable", "adjustbox", "minted", "subfigure", "keywords",
  "acknowledgments",
}  # fmt: skip
_FORMULAS = {
  "equation", "align", "eqnarray", "gather", "multline", "displaymath", "math", "flalign",
  "alignat",
}  # fmt: skip
_SECTIONS = {
  "part", "chapter", "section", "subsection", "subsubsection", "paragraph", "subparagraph",
}  # fmt: skip
# Commands that go with their arguments: those of one, and how many others have.
_GONE_ONE = (
  "label", "ref", "eqref", "pageref", "autoref", "cref", "Cref", "nameref", "vref", "cite",
  "citep", "citet", "citealt", "citealp", "citeauthor", "citeyear", "citeyearpar", "nocite",
  "parencite", "textcite", "autocite", "footcite", "bibliography", "bibliographystyle",
  "includegraphics", "input", "include", "usepackage", "documentclass", "vspace", "hspace",
  "vskip", "pagestyle", "footnote", "thispagestyle", "author", "affiliation", "address", "email",
  "thanks", "date", "title", "institute", "keywords", "footnotetext", "caption", "subfloat",
  "graphicspath", "newtheorem", "theoremstyle", "hypersetup", "tablenotetext", "url", "orcid",
  "index", "pacs", "affil", "addbibresource", "newcounter", "RequirePackage", "hyphenation",
  "tikzset", "pgfplotsset",
)  # fmt: skip
_GONE = {
  **dict.fromkeys(_GONE_ONE, 1),
  **dict.fromkeys(("setlength", "addtolength", "setcounter", "addtocounter", "markboth"), 2),
  **dict.fromkeys(("definecolor", "newenvironment", "renewenvironment"), 3),
}
# Commands whose first argument goes and whose others stay.
_FIRST_GONE = {
  "textcolor", "href", "color", "colorbox", "hyperref", "raisebox", "resizebox", "scalebox",
  "fontsize", "parbox", "rule", "multicolumn", "multirow",
}  # fmt: skip
_ACCENTS = dict(
  zip(
    ["'", "`", '"', "^", "~", "=", ".", "c", "v", "H", "u", "k", "r", "d", "b"],
    "\u0301\u0300\u0308\u0302\u0303\u0304\u0307\u0327\u030c\u030b\u0306\u0328\u030a\u0323\u0331",
    strict=True,
  )
)


def text(source: str) -> tuple[str, dict[str, str]]:
  """The text of a LaTeX source, and its title if it gives one.

  Sections are lines of their own, formulas stay as they are between dollar signs, with the source's
  own macros expanded; figures, tables, references, footnotes and the preamble go.

  Raises:
    Unreadable: its macros expand without end.
  """
  source = _COMMENT.sub(r"\1", source.replace("\r\n", "\n").replace("\0", ""))
  macros, source = _definitions(source)
  budget = [_MAX_GROWTH * len(source) + _MAX_GROWTH_CHARS]
  title = re.search(r"\\title\s*(?:\[[^\]]*\])?\s*(?=\{)", source)
  begin = source.find(r"\begin{document}")
  body = source[begin + len(r"\begin{document}") :] if begin >= 0 else source
  body = body.partition(r"\end{document}")[0]
  heading = ""
  if title:
    group = _group(source, _braces(source), title.end())[0]
    heading = _convert(_expand(group, macros, 0, budget)).replace("\n", " ")
  return _convert(_expand(body, macros, 0, budget)), {"title": heading} if heading else {}


def _definitions(source):
  """({name: (number of arguments, default of the first or None, body)}, source without them)."""
  macros, parts, position = {}, [], 0
  braces = _braces(source)
  while found := _DEFINITION.search(source, position):
    body, end = _group(source, braces, found.end())
    parts.append(source[position : found.start()])
    position = end
    name, count, default, defined, arguments, star, operator = found.groups()
    if operator:
      macros[operator] = (0, None, rf"\operatorname{star}{{{body}}}")
    elif defined:
      macros[defined] = (len(arguments) // 2, None, body)
    else:
      macros[name] = (int(count or 0), default and default[1:-1], body)
  return macros, "".join([*parts, source[position:]])


def _expand(source, macros, depth, budget):
  """`source` with the macros replaced by what they stand for."""
  if not macros or "\\" not in source:
    return source
  out, position, braces = [], 0, _braces(source)
  for found in re.finditer(r"\\([a-zA-Z@]+)", source):
    macro = macros.get(found[1])
    if macro is None or found.start() < position:
      continue
    out.append(source[position : found.start()])
    count, default, body = macro
    end, arguments = found.end(), []
    if default is not None:
      given, end = _optional(source, end)
      arguments.append(default if given is None else given)
    while len(arguments) < count:
      argument, end = _argument(source, braces, end)
      arguments.append(argument)
    body = re.sub(
      r"#(\d)",
      lambda m, given=arguments: given[int(m[1]) - 1] if 0 < int(m[1]) <= len(given) else "",
      body,
    )
    if depth == _MAX_DEPTH:
      raise Unreadable("endless_macro")
    body = _expand(body, macros, depth + 1, budget)
    budget[0] -= len(body) + 1
    if budget[0] < 0:
      raise Unreadable("endless_macro")
    out.append(body if count or not source[end : end + 1].isalpha() else body + " ")
    position = end
  return "".join([*out, source[position:]])


def _convert(source, depth=0):
  """The text of a source without macros of its own."""
  out, formulas, unclosed, braces = [], [], set(), _braces(source)

  def formula(tex):
    tex = re.sub(r"\\(?:label|tag)\*?\s*\{[^{}]*\}|\\(?:nonumber|notag)\b", "", tex)
    formulas.append(" ".join(tex.split()))
    return f"\0{len(formulas) - 1}\0" if formulas[-1] else ""

  def until(closing, start):
    end = -1 if closing in unclosed else source.find(closing, start)
    if end < 0:
      unclosed.add(closing)
    return end

  position = 0
  while position < len(source):
    token = _TOKEN.match(source, position)
    start, position = position, token.end()
    command = token[1]
    if token[0] in ("$", "$$") or command in ("(", "["):
      closing = {"(": r"\)", "[": r"\]"}.get(command, token[0])
      end = source.find(closing, position, position + _MAX_FORMULA_CHARS)
      # Two newlines end a paragraph, which no formula survives: a dollar too many.
      if end >= 0 and "\n\n" not in source[position:end]:
        display = closing in ("$$", r"\]")
        piece = formula(source[position:end])
        out.append(f"\n{piece}\n" if display else piece)
        position = end + len(closing)
    elif command is None:
      out.append({"{": "", "}": "", "\\": "", "~": " ", "&": " "}.get(token[0], token[0]))
    elif command in ("begin", "end"):
      name, position = _argument(source, braces, position)
      plain = name.rstrip("*")
      if command == "begin" and plain in _FORMULAS | _DROPPED:
        end = until(rf"\end{{{name}}}", position)
        if end >= 0:
          if plain in _FORMULAS:
            _, inner = _argument(source, braces, position) if plain == "alignat" else ("", position)
            out.append(f"\n{formula(source[inner:end])}\n")
          position = end + len(rf"\end{{{name}}}")
          continue
      if command == "begin":
        _, position = _optional(source, position)
      out.append("\n\n")
    elif command.rstrip("*") in _SECTIONS:
      _, position = _optional(source, position)
      heading, position = _argument(source, braces, position)
      if depth < _MAX_DEPTH:
        out.append(f"\n\n{_convert(heading, depth + 1)}\n\n")
    elif command == "item":
      _, position = _optional(source, position)
      out.append("\n\n")
    elif command.rstrip("*") in _GONE:
      for _ in range(_GONE[command.rstrip("*")]):
        given = ""
        while given is not None:
          given, position = _optional(source, position)
        if source[position : position + 1] == "{":
          _, position = _group(source, braces, position)
    elif command.rstrip("*") in _FIRST_GONE:
      _, position = _optional(source, position)
      _, position = _argument(source, braces, position)
    elif command in _ACCENTS and not (command.isalpha() and source[position : position + 1] != "{"):
      letter, position = _argument(source, braces, position)
      letter = {r"\i": "i", r"\j": "j"}.get(letter.strip(), letter)
      combined = letter[:1] + _ACCENTS[command] + letter[1:] if letter else ""
      out.append(unicodedata.normalize("NFC", combined))
    elif command in ("\\", "newline", "par", "\n"):
      out.append("\n\n" if command == "par" else " ")
      _, position = _optional(source, position)
    elif not command[0].isalpha():
      out.append(command if command in "%&_#${}" else "\u2009" if command == "," else " ")
      if command in "-/!@;:=>+'":
        out.pop()
    else:
      # A space after a command only ends its name.
      symbol = _symbol(command)
      out.append(symbol or "")
      if symbol and source[position : position + 1] == " ":
        position += 1
      _, position = _optional(source, position) if symbol is None else ("", position)
    assert position > start
  return _tidy("".join(out), formulas)


@functools.cache
def _symbols():
  from pylatexenc import latex2text

  return latex2text.get_default_latex_context_db()


def _symbol(command):
  """The character that a command stands for in text, or None."""
  shown = getattr(_symbols().get_macro_spec(command), "simplify_repl", None)
  return shown if isinstance(shown, str) and "%" not in shown else None


def _tidy(text, formulas):
  text = text.replace("``", "“").replace("''", "”").replace("---", "—").replace("--", "–")
  text = re.sub(r"[(\[][\s,;]*[)\]]", "", text)
  text = re.sub(r"[ \t\u2009]*\n[ \t]*", "\n", text)
  paragraphs = (" ".join(p.split()) for p in re.split(r"\n{2,}", text))
  text = "\n\n".join(p for p in paragraphs if p.strip(" .,;:"))
  text = re.sub(r"\s+([.,;:)\]])", r"\1", text)
  return re.sub("\0(\\d+)\0", lambda found: f"${formulas[int(found[1])]}$", text)


def _braces(source):
  """{the position of every `{` that is closed: that of its `}`}."""
  pairs, opened = {}, []
  for found in re.finditer(r"\\.|[{}]", source, re.DOTALL):
    if found[0] == "{":
      opened.append(found.start())
    elif found[0] == "}" and opened:
      pairs[opened.pop()] = found.start()
  return pairs


def _group(source, braces, start):
  """The inside of the braces that open at `start` and where they end; nothing if they never do."""
  end = braces.get(start)
  return ("", start + 1) if end is None else (source[start + 1 : end], end + 1)


def _argument(source, braces, start):
  """What a command takes after `start`, and where that ends: a group, a command or a character."""
  while start < len(source) and source[start].isspace():
    start += 1
  if source[start : start + 1] == "{":
    return _group(source, braces, start)
  if source[start : start + 1] == "\\":
    token = _TOKEN.match(source, start)
    return (token[0], token.end()) if token else ("", start)
  return source[start : start + 1], min(start + 1, len(source))


def _optional(source, start):
  """The inside of the brackets right after `start` and where they end, or None and `start`."""
  if source[start : start + 1] != "[":
    return None, start
  depth = 0
  for found in re.compile(r"[\[\]{}]").finditer(source, start, start + _MAX_OPTIONAL_CHARS):
    depth += 1 if found[0] in "[{" else -1
    if depth == 0:
      return source[start + 1 : found.start()], found.end()
  return None, start

"""A corpus of real English that every Python carries: the documentation inside CPython.

It is about 2.2 MB: the language reference as `help()` shows it (`pydoc_data.topics`) and the
docstrings of the standard library, read by `ast` from its source files, so that nothing is imported
or run. A document is a help topic, the introduction of a module, a class with its methods, or a
function. The text differs a little between versions of Python and is fixed within one.
"""

import ast
import inspect
import json
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics

# Tests, bundled applications and whatever else was installed are not the library's documentation.
_EXCLUDED = {"test", "tests", "idlelib", "lib2to3", "ensurepip", "turtledemo", "pydoc_data"}
_EXCLUDED |= {"__phello__", "site-packages", "dist-packages"}
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_LEAST_BYTES = 1_000_000


def write(path: Path) -> Path:
  """Writes the corpus as JSONL of {"id", "text"}, unless the file is there; returns `path`.

  A file that is there stays, so that a run keeps its corpus when Python is upgraded under it.

  Raises:
    ValueError: this Python has no sources of its standard library.
  """
  if path.exists():
    return path
  lines = [json.dumps({"id": name, "text": text}) + "\n" for name, text in documents()]
  size = sum(map(len, lines))
  if size < _LEAST_BYTES:
    raise ValueError(
      f"the embedded corpus has {size} bytes: {_library()} holds no full set of standard library "
      "sources. Use a complete CPython, or set data.sources to files of your own."
    )
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f"{path.name}.{os.getpid()}")
  partial.write_text("".join(lines), encoding="utf-8")
  partial.replace(path)
  return path


def documents() -> Iterator[tuple[str, str]]:
  """Yields (id, text) of every document, in an order that depends on nothing but the version."""
  for name, text in sorted(topics.topics.items()):
    yield f"topic/{name}", text.strip()
  for path in sorted(_library().rglob("*.py")):
    relative = path.relative_to(_library())
    if not _EXCLUDED.intersection(relative.parts):
      yield from _module_documents(".".join(relative.with_suffix("").parts), path)


def _library() -> Path:
  return Path(sysconfig.get_paths()["stdlib"])


def _module_documents(module: str, path: Path) -> Iterator[tuple[str, str]]:
  module = module.removesuffix(".__init__")
  try:
    tree = ast.parse(path.read_bytes())
  except (SyntaxError, ValueError):
    return  # templates and fixtures that only look like modules
  if text := _docstring(tree):
    yield module, f"{module}\n\n{text}"
  for node in tree.body:
    if isinstance(node, _DEFINITIONS):
      sections = list(_sections(node, node.name))
      if sections:
        yield f"{module}.{node.name}", "\n\n".join([f"{module}.{node.name}", *sections])


def _sections(node: ast.AST, name: str) -> Iterator[str]:
  """The docstring of a definition, then those of its members, each under its name."""
  if text := _docstring(node):
    yield text
  for member in node.body if isinstance(node, ast.ClassDef) else ():
    if isinstance(member, _DEFINITIONS):
      inner = list(_sections(member, f"{name}.{member.name}"))
      if inner:
        yield "\n\n".join([f"{name}.{member.name}", *inner])


def _docstring(node: ast.AST) -> str:
  text = ast.get_docstring(node, clean=False) or ""
  # A docstring may hold surrogates, which no encoder takes.
  return inspect.cleandoc(text).strip().encode("utf-8", "replace").decode("utf-8")

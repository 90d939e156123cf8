"""Imports go one way: configs import nothing, data no jax, model no data, and train wires both."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"configs", "data", "model", "train"}
ALLOWED = {
  "configs": {"configs", "ml_collections"},
  "model": {"model", "jax", "flax", "numpy"},
}
FORBIDDEN = {"data": {"jax", "jaxlib", "flax", "optax", "orbax", "model", "train", "configs"}}


def imports(path: Path) -> set[str]:
  """Top-level names of all that a file imports, inside functions too."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      names |= {alias.name.split(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      names.add(node.module.split(".")[0])
  return names


def files(package: str) -> list[Path]:
  found = sorted((ROOT / package).rglob("*.py"))
  assert found, package
  return found


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_configs_and_model_import_only_what_they_may(package):
  for path in files(package):
    outside = imports(path) - set(sys.stdlib_module_names)
    assert outside <= ALLOWED[package], f"{path.relative_to(ROOT)} imports {outside}"


def test_data_imports_no_jax_and_nothing_above_it():
  for path in files("data"):
    assert not imports(path) & FORBIDDEN["data"], path.relative_to(ROOT)


def test_nothing_but_a_recipe_and_a_test_imports_recipes():
  for package in ("data", "model", "train"):
    for path in files(package):
      assert "configs" not in imports(path), path.relative_to(ROOT)


def test_only_tasks_import_seqio_and_nothing_tensorflow():
  for package in OURS:
    for path in files(package):
      found = imports(path) & {"seqio", "tensorflow"}
      assert not found or path == ROOT / "data" / "tasks.py", (path.relative_to(ROOT), found)


def test_pretraining_loads_neither_tensorflow_nor_seqio_nor_torch():
  code = (
    "import sys, train.main, train.pretrain\n"
    "print([m for m in ('tensorflow', 'seqio', 'torch', 'transformers') if m in sys.modules])"
  )
  out = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert out.stdout.strip() == "[]"

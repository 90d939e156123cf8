"""What setup.py promises: the dependencies, the packages, and what may import what."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGES = ("configs", "data", "model", "train")
CORPUS = (
  "fasttext",
  "fastwarc",
  "lxml",
  "mwparserfromhell",
  "pyarrow",
  "pylatexenc",
  "resiliparse",
  "trafilatura",
  "zstandard",
)
# {a module that is imported only where it is used, and where it is installed: its extra}
OPTIONAL = {
  "datasets": "evaluate",
  "datatrove": "datatrove",
  "rouge_score": "evaluate",
  "sacrebleu": "evaluate",
  "gguf": "gguf",
  "lm_eval": "peers",
  "matplotlib": "plan",
  "torch": "peers",
  "transformers": "peers",
  **dict.fromkeys(CORPUS, "corpus"),
}
# Beside the standard library. `model` is jax only: numpy holds its constants, flax its loop state.
MAY_IMPORT = {
  "configs": {"configs", "ml_collections"},
  "data": {
    *(
      "data",
      "absl",
      "array_record",
      "datasets",
      "datatrove",
      "fsspec",
      "grain",
      "jinja2",
      "ml_collections",
      "numpy",
      "rouge_score",
      "sacrebleu",
      "sentencepiece",
      "tiktoken",
      "tokenizers",
    ),
    *CORPUS,
  },
  "model": {"model", "jax", "numpy", "flax"},
}


def imports(path):
  """The top-level names that a file imports, at its top and inside its functions."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name.split(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield node.module.split(".")[0]


def files(package):
  return sorted((REPOSITORY / package).glob("*.py"))


def third_party(*packages):
  """{name: a file that imports it} of all that is neither ours nor the standard library's."""
  ours = {*PACKAGES, "tests", "docs"} | sys.stdlib_module_names
  return {n: p for package in packages for p in files(package) for n in imports(p) if n not in ours}


def requirements():
  """{extra, or "" for none: the names of its requirements}, as setup.py gives them."""
  source = (REPOSITORY / "setup.py").read_text()
  names = {}
  exec(source.split("setuptools.setup(")[0], names)
  groups = {"": names["REQUIRED"], **names["EXTRAS"]}
  return {
    extra: {normalized(re.match(r"[\w.-]+", line)[0]): line for line in lines}
    for extra, lines in groups.items()
  }


def normalized(name):
  return re.sub(r"[-_.]+", "-", name).lower()


def distributions(modules):
  """The distribution that each module is from, by the files that are installed here."""
  installed = importlib.metadata.packages_distributions()
  return {module: {normalized(d) for d in installed.get(module, ())} for module in modules}


def test_every_import_is_required_and_every_requirement_imported():
  required = set(requirements()[""])
  for module, candidates in distributions(third_party(*PACKAGES)).items():
    if module in OPTIONAL:
      assert {normalized(module), *candidates} & requirements()[OPTIONAL[module]].keys()
    else:
      assert candidates & required, f"{module} is imported and not named in setup.py"
  used = set().union(*distributions(third_party(*PACKAGES)).values())
  assert required <= used


def test_tests_need_no_more_than_the_test_extra_and_the_peers():
  named = set().union(*(requirements()[extra] for extra in ("", "test", "peers")))
  for module, path in third_party("tests").items():
    candidates = distributions([module])[module] or {normalized(module)}
    assert candidates & named, f"{path} imports {module}"


def test_every_requirement_has_a_lower_bound():
  for lines in requirements().values():
    for line in lines.values():
      assert re.search(r"[>=]=\d", line), line


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package):
  for path in files(package):
    allowed = MAY_IMPORT[package] | ({"seqio", "tensorflow"} if path.name == "tasks.py" else set())
    extra = set(imports(path)) - allowed - sys.stdlib_module_names
    assert not extra, f"{path} imports {sorted(extra)}"


def test_only_tasks_imports_seqio_and_only_when_it_is_called_for():
  for package in PACKAGES:
    for path in files(package):
      assert path.name == "tasks.py" or not {"seqio", "tensorflow"} & set(imports(path)), path
      tree = ast.parse(path.read_text())
      at_import = [n for n in tree.body if isinstance(n, ast.ImportFrom | ast.Import)]
      assert not any("tasks" in ast.unparse(node) for node in at_import), path


def test_what_is_built_runs_alone(tmp_path):
  """A tree built without the checkout beside it is what `pip install .` installs."""
  build = [sys.executable, "setup.py", "-q", "build", f"--build-base={tmp_path}"]
  subprocess.run(
    [*build, f"--build-lib={tmp_path / 'lib'}"], cwd=REPOSITORY, check=True, capture_output=True
  )
  built = {p.relative_to(tmp_path / "lib") for p in (tmp_path / "lib").rglob("*") if p.is_file()}
  sources = [p for package in PACKAGES for p in files(package)]
  sources += (REPOSITORY / "train").rglob("*.json")
  assert built == {p.relative_to(REPOSITORY) for p in sources}
  code = "import train.main, configs, sys; print(train.main.__file__); sys.exit(train.main.DONE)"
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=tmp_path / "lib", capture_output=True, text=True, timeout=60
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(str(tmp_path / "lib"))


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_code_is_formatted_and_clean(command):
  done = subprocess.run(
    [sys.executable, "-m", "ruff", *command, "--no-cache", "."],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout

"""Breaks the code on purpose, a line at a time, and shows which test notices.

    python -m tests.mutants              # all of tests/breakages.py; exit 1 if one survives
    python -m tests.mutants --only mask  # those with "mask" in their name
    python -m tests.mutants --list

Each breakage is applied to a copy of the tree, in which its test is then run. It is killed when
that test fails; that an import breaks, or that the run hangs, does not count. First of all the
tests must pass on a copy that is whole.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.breakages import BREAKAGES, Breakage

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("configs", "data", "model", "train", "tests", "docs", ".pytest.ini", "setup.py")
TIMEOUT_SECONDS = 600


def copy_tree(folder: Path) -> None:
  """Copies what the tests need of the repository into `folder`."""
  for name in COPIED:
    source = ROOT / name
    if source.is_dir():
      shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    else:
      shutil.copy2(source, folder / name)


def apply(breakage: Breakage, folder: Path) -> None:
  """Breaks the copy in `folder`. Raises ValueError unless `old` occurs exactly once."""
  path = folder / breakage.file
  text = path.read_text(encoding="utf-8")
  count = text.count(breakage.old)
  if count != 1:
    raise ValueError(
      f"breakage {breakage.name!r}: {breakage.old!r} occurs {count} times in {breakage.file}; "
      "bring it in line with the code, so that it occurs once."
    )
  path.write_text(text.replace(breakage.old, breakage.new), encoding="utf-8")


def run_tests(tests: Iterable[str], folder: Path) -> tuple[str | None, str]:
  """Runs tests in a copy until one fails: its node id, or None, and the output."""
  try:
    done = subprocess.run(
      [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider", *tests],
      cwd=folder,
      env=os.environ | {"PYTHONPATH": str(folder)},
      capture_output=True,
      text=True,
      timeout=TIMEOUT_SECONDS,
    )
  except subprocess.TimeoutExpired:
    return None, f"no end after {TIMEOUT_SECONDS} seconds"
  failed = re.search(r"^(?:FAILED|ERROR) (\S+::\S+)", done.stdout, re.MULTILINE)
  if failed:
    return failed[1], done.stdout
  return None, "" if done.returncode == 0 else done.stdout + done.stderr


def killer(breakage: Breakage) -> tuple[str | None, str]:
  """The test that fails on a broken copy, or None; and what was printed where that is odd."""
  with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
    copy_tree(Path(folder))
    try:
      apply(breakage, Path(folder))
    except ValueError as error:
      return None, str(error)
    return run_tests([breakage.test], Path(folder))


def check_whole(breakages: Sequence[Breakage]) -> None:
  """Raises RuntimeError unless all the tests pass on a whole copy."""
  tests = dict.fromkeys(breakage.test for breakage in breakages)
  with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
    copy_tree(Path(folder))
    failed, output = run_tests(tests, Path(folder))
  if failed or output:
    raise RuntimeError(f"the tests don't pass on code that is whole:\n{output}")


def main(argv: Sequence[str] | None = None) -> int:
  """Returns 0 if every breakage is killed, 1 otherwise."""
  parser = argparse.ArgumentParser(
    prog="python -m tests.mutants",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--only", metavar="PART", default="", help="of the breakages' names")
  parser.add_argument("--list", action="store_true", help="name the breakages, and end")
  parser.add_argument("--jobs", type=int, default=1, help="how many to try at a time")
  args = parser.parse_args(argv)
  chosen = [b for b in BREAKAGES if args.only in b.name]
  if args.list or not chosen:
    print("\n".join(f"{b.name:24}{b.file}: {b.why}" for b in chosen) or "No such breakage.")
    return 0 if chosen else 1
  start, survivors = time.monotonic(), []
  try:
    check_whole(chosen)
    with ThreadPoolExecutor(args.jobs) as pool:
      for each, (test, output) in zip(chosen, pool.map(killer, chosen), strict=True):
        if test is None:
          survivors.append(each.name)
        verdict = f"killed by {test}" if test else f"SURVIVES {each.test}"
        print(f"{each.name} ({each.why}): {verdict}", flush=True)
        if output and not test:
          print(output)
  except RuntimeError as error:
    print(error, file=sys.stderr)
    return 1
  seconds = time.monotonic() - start
  print(f"{len(chosen)} breakages, {len(chosen) - len(survivors)} killed, in {seconds:.0f} s.")
  if survivors:
    print(f"Survived: {', '.join(survivors)}.")
  return 1 if survivors else 0


if __name__ == "__main__":
  sys.exit(main())

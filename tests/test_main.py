"""The command line: what can be set on it, and how it refuses. Whole runs are in test_run.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from train import command_line, main

QUICKSTART = "--config=configs/quickstart.py"


def command(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "train.main", *arguments],
    cwd=Path(__file__).parent.parent,
    capture_output=True,
    text=True,
    timeout=60,
  )


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((), "--config is missing"),
    ((QUICKSTART, "--config.train.step=3"), 'Did you mean "steps"'),
    ((QUICKSTART, "--config.trane.steps=3"), 'Did you mean "train"'),
    ((QUICKSTART, "--config.train.steps=many"), "invalid literal for int() with base 10: 'many'"),
    ((QUICKSTART, "--workdri=here"), "Unknown command line flag 'workdri'"),
    ((QUICKSTART, "again"), "unexpected argument 'again'"),
    (("--config=nowhere.py",), "No such file or directory: 'nowhere.py'"),
  ],
)
def test_a_wrong_command_is_one_message(arguments, message):
  done = command(*arguments)
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith("error: ") and message in done.stderr
  assert "Traceback" not in done.stderr


def test_what_is_null_in_a_recipe_can_be_set():
  settings = {
    "eval.files": "more/*.txt",
    "model.sliding_window": "1024",
    "model.logit_softcap": "30.0",
    "data.dedup_threshold": "0.8",
    "log.peak_flops": "1e12",
    "checkpoint.keep_every": "5",
  }
  done = command("--help", QUICKSTART, *(f"--config.{k}={v}" for k, v in settings.items()))
  assert done.returncode == 0, done.stderr
  for key, value in settings.items():
    shown = "1000000000000.0" if value == "1e12" else value
    assert f"--config.{key}={shown}\n" in done.stdout


def test_a_recipe_that_fails_is_one_line():
  quoted = (
    "flag --config=x.py: Error:\n\nTraceback (most recent call last):\n  ...\nValueError: a: b\n"
  )
  assert command_line.without_traceback(quoted) == "a: b"
  assert command_line.without_traceback("plain: words") == "plain: words"


def test_a_recipe_of_no_stage_is_one_message(capsys, tmp_path):
  assert main.run({"documents": "x"}, tmp_path) == main.BAD_INPUT
  assert "stage is None" in capsys.readouterr().err


def test_the_workdir_is_named_after_the_recipe_and_the_run_that_it_takes():
  named = {"a/b.py": "runs/b", "a/b.py:c": "runs/b-c", "a/b.py:runs/c": "runs/b-c"}
  assert {flag: str(main.default_workdir(flag)) for flag in named} == named

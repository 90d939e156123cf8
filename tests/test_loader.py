"""The loader's command: the same hash for any hosts, processes and restarts; a row as text."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from configs import quickstart
from data import loader
from data.batch import Segment, stack_rows

RECIPE = ["--config", "configs/quickstart.py", "--config.data.vocab_size=300", "--steps=4"]
VALUES = {"hosts": 1, "processes": False, "workers": None, "restart": None, "row": 0}


def command(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "data.loader", *RECIPE, *arguments], capture_output=True, text=True
  )


def test_one_hash_for_hosts_and_a_restart(tmp_path, capsys):
  (tmp_path / "docs.jsonl").write_text(
    "\n".join(json.dumps({"text": f"Document {i} of the strait. " * (i % 7)}) for i in range(90))
  )
  config = quickstart.get_config()
  config.data.sources.docs.path = str(tmp_path / "docs.jsonl")
  config.data.vocab_size = 300
  values = VALUES | {"config": config, "workdir": str(tmp_path), "steps": 4, "hash": True}
  printed = []
  for changes in ({"show": True}, {"hosts": 4, "restart": "1:2", "show": False}):
    assert loader.main(["loader"], values | changes) == 0
    printed.append(capsys.readouterr().out)
  hashes = [re.search(r"sha256 ([0-9a-f]{64})$", out.strip())[1] for out in printed]
  assert hashes[0] == hashes[1]
  assert "--- segment 1: " in printed[0]


@pytest.mark.slow
def test_one_hash_for_real_processes_and_workers():
  one, many = command("--hash"), command("--hash", "--processes", "--hosts=2", "--workers=1")
  assert one.stdout.splitlines()[-1] == many.stdout.splitlines()[-1], many.stderr


def test_a_row_is_shown_with_its_segments():
  class Letters:
    eot = 0

    def decode(self, ids):
      return "".join(chr(96 + i) for i in ids)

  ids = [[0, 1, 2, 0], [3, -69, 5, 6]]  # the second one has an escape character
  batch = stack_rows([[Segment(np.array(i, np.int32)) for i in ids]], 8)
  assert loader.show(batch, 0, Letters()).splitlines() == [
    "--- segment 1: 3 places",
    "ab",
    "--- segment 2: 3 places, goes on from another row, goes on elsewhere",
    "c\ufffde",
    "--- padding: 2 places",
  ]


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--hosts=3", "data.streams=4 is not divisible by the 3 hosts"),
    ("--restart=9:1", "--restart=9:1 must be STEP:HOSTS"),
    ("--row=4", "--row=4 is not below data.batch_size=4"),
  ],
)
@pytest.mark.slow
def test_bad_input_is_one_line(argument, message):
  run = command(argument)
  assert run.returncode == 2
  assert message in run.stderr and "Traceback" not in run.stderr

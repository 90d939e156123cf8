"""The pipeline under datatrove's executors: the same bytes as on one machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data import corpus
from tests.test_corpus import ROOT, config_of, make_raw, outputs

pytestmark = pytest.mark.peers
pytest.importorskip("datatrove", reason="datatrove is not installed")

TASKS = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp("executors")
  raw = make_raw(folder / "raw")
  assert corpus.run(config_of(raw), folder / "out") == corpus.DONE
  return raw, outputs(folder / "out")


_EXECUTE = """
import json, sys
from pathlib import Path
from data import executors
config, workdir, kind, tasks, options, ray_options = json.loads(sys.argv[1])
if ray_options:
  import ray
  ray.init(**ray_options)
sys.exit(executors.execute(config, Path(workdir), kind, tasks, options))
"""


def execute(raw, workdir, kind, ray_options=None, **options):
  """The exit code, by a process of its own: executors fork, and the threads of jax, which other
  tests have started in this one, do not survive that."""
  arguments = [config_of(raw), str(workdir), kind, TASKS, options, ray_options]
  command = [sys.executable, "-c", _EXECUTE, json.dumps(arguments)]
  done = subprocess.run(
    command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
  )
  print(done.stdout, done.stderr, sep="\n")
  return done.returncode


def test_the_local_executor(made, tmp_path):
  raw, expected = made
  assert execute(raw, tmp_path, "local", workers=2) == corpus.DONE
  assert outputs(tmp_path) == expected
  completed = sorted((tmp_path / "work" / "jobs" / "refine" / "completions").iterdir())
  assert len(completed) == TASKS
  # What was completed is not done again, and what is missing is.
  (tmp_path / "manifest.json").unlink()
  (tmp_path / "work" / "jobs" / "finish" / "completions" / "00000").unlink()
  before = {path: path.stat().st_mtime_ns for path in (tmp_path / "training").iterdir()}
  assert execute(raw, tmp_path, "local", workers=1) == corpus.DONE
  assert outputs(tmp_path) == expected
  assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_ray_executor(made, tmp_path):
  pytest.importorskip("ray")
  raw, expected = made
  # Of two, the placement groups of a job that has just ended would keep the next one waiting.
  environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
  ray_options = {"num_cpus": 8, "include_dashboard": False, "runtime_env": environment}
  options = {"workers": 2, "mem_per_cpu_gb": 0.2}
  assert execute(raw, tmp_path, "ray", ray_options, **options) == corpus.DONE
  assert outputs(tmp_path) == expected


_SRUN = """#!{python}
import subprocess, sys
sys.exit(subprocess.run(sys.argv[sys.argv.index("launch_pickled_pipeline") :]).returncode)
"""
_SBATCH = """#!{python}
# Runs a job array at once, a task after the other, and prints a job's number.
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
last = re.search(r"--array=0-(\\d+)", script)
for task in range(int(last[1]) + 1 if last else 1):
  ids = {{"SLURM_ARRAY_TASK_ID": str(task), "SLURM_JOB_ID": "1", "SLURM_NODELIST": "here"}}
  command = ["bash", sys.argv[-1]]
  done = subprocess.run(command, env=os.environ | ids, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
print(1)
"""


def test_the_slurm_executor_with_commands_that_run_jobs_at_once(made, tmp_path, monkeypatch):
  raw, expected = made
  commands = tmp_path / "bin"
  commands.mkdir()
  for name, text in (("sbatch", _SBATCH), ("srun", _SRUN), ("scontrol", "#!/bin/sh\necho here\n")):
    (commands / name).write_text(text.format(python=sys.executable))
    (commands / name).chmod(0o755)
  monkeypatch.setenv("PATH", f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}")
  out = tmp_path / "out"
  assert execute(raw, out, "slurm", time="1:00:00", partition="cpu") == corpus.DONE
  assert outputs(out) == expected


def test_an_unknown_option_is_one_message(made, tmp_path, capsys):
  assert execute(made[0], tmp_path, "local", colour="red") == corpus.BAD_INPUT
  assert "colour" in capsys.readouterr().out

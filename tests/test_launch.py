"""The launch files do what they say: Slurm's script with a Slurm that is made up, and JobSet's."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from configs import pretrain_37b
from train import distributed
from train.main import BAD_INPUT, DIVERGED

FOLDER = Path(__file__).parents[1] / "docs" / "launch"
SLURM = FOLDER / "slurm.sh"


@pytest.fixture
def slurm(tmp_path):
  """Starts the script where `srun` and `scontrol` write what they were called with."""
  commands = tmp_path / "bin"
  commands.mkdir()
  for name, body in {
    "srun": 'case "$*" in *preflight*) exit "$PREFLIGHT";; esac\n'
    "trap 'sleep 0.3; exit 75' TERM\nfor i in $(seq $TURNS); do sleep 0.1; done\nexit $CODE",
    "scontrol": "",
  }.items():
    path = commands / name
    path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> {tmp_path}/calls\n{body}\n')
    path.chmod(0o755)

  def start(code, restart=0, preflight=0, turns=1):
    environment = os.environ | {
      "PATH": f"{commands}:{os.environ['PATH']}",
      "WORKDIR": str(tmp_path / "run"),
      "SLURM_JOB_ID": "7",
      "SLURM_RESTART_COUNT": str(restart),
      "CODE": str(code),
      "PREFLIGHT": str(preflight),
      "TURNS": str(turns),
    }
    return subprocess.Popen(["bash", str(SLURM)], env=environment)

  (tmp_path / "calls").touch()
  start.calls = lambda: (tmp_path / "calls").read_text().splitlines()
  return start


@pytest.mark.parametrize("code", [0, BAD_INPUT, DIVERGED, distributed.PEER_LOST])
def test_a_job_is_requeued_where_the_run_asks_for_it_and_only_there(slurm, code):
  assert slurm(code).wait() == code
  calls = slurm.calls()
  assert "train.preflight" in calls[0] and "--config configs/pretrain_37b.py" in calls[1]
  assert calls[2:] == (["scontrol requeue 7"] if code == distributed.PEER_LOST else [])


def test_a_restart_skips_the_preflight_whose_failure_ends_a_job(slurm):
  assert slurm(0, restart=1).wait() == 0
  assert len(slurm.calls()) == 1 and "train.main" in slurm.calls()[0]
  assert slurm(0, preflight=3).wait() == 3
  assert len(slurm.calls()) == 2 and "preflight" in slurm.calls()[1]


def test_a_signal_waits_for_the_save_and_requeues(slurm):
  """Slurm signals the job's steps and, at the end of its time, this shell as well."""
  job = slurm(0, restart=1, turns=300)
  deadline = time.monotonic() + 20
  while not slurm.calls():
    assert time.monotonic() < deadline
    time.sleep(0.05)
  time.sleep(0.3)  # its traps are set
  for pid in (*_children(job.pid), job.pid):
    os.kill(pid, signal.SIGTERM)
  assert job.wait(timeout=30) == distributed.PEER_LOST
  assert slurm.calls()[-1] == "scontrol requeue 7"


def _children(pid):
  return map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def test_slurm_has_the_nodes_of_the_recipe_and_signals_before_the_end():
  options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)", SLURM.read_text(), re.MULTILINE))
  mesh = pretrain_37b.get_config().mesh
  assert int(options["nodes"]) * int(options["gpus-per-node"]) == mesh.data * mesh.fsdp
  assert options["signal"].startswith("TERM@") and "requeue" in options
  assert subprocess.run(["bash", "-n", str(SLURM)]).returncode == 0


def test_the_jobset_starts_the_processes_that_its_environment_says():
  jobset = yaml.safe_load((FOLDER / "jobset.yaml").read_text())
  (replicated,) = jobset["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  pod = job["template"]["spec"]
  (container,) = pod["containers"]
  environment = {entry["name"]: entry["value"] for entry in container["env"]}
  found = distributed.settings(None, None, None, environment | {"JOB_COMPLETION_INDEX": "15"})
  assert found["num_processes"] == job["completions"] == job["parallelism"] == 16
  mesh = pretrain_37b.get_config().mesh
  gpus = container["resources"]["limits"]["nvidia.com/gpu"]
  assert gpus * job["completions"] == mesh.data * mesh.fsdp
  # The first pod's name in the JobSet's own domain: <set>-<job>-<replica>-<index>.<set>.
  name = jobset["metadata"]["name"]
  host = found["coordinator_address"].split(":")[0]
  assert host == f"{name}-{replicated['name']}-0-0.{name}"
  assert jobset["spec"]["network"]["enableDNSHostnames"] is True
  (rule,) = job["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"]["values"] == [BAD_INPUT, DIVERGED] and rule["action"] == "FailJob"
  assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 300

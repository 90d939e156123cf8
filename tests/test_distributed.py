"""Several processes are one run: real ones, over gloo on loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from train import distributed

STEPS = 12
FLAGS = {"coordinator": "a:1", "processes": 4, "process_id": 3}


def test_settings_come_from_flags_jobset_or_slurm():
  found = distributed.settings(*FLAGS.values(), {})
  assert found == {"coordinator_address": "a:1", "num_processes": 4, "process_id": 3}
  jobset = {"STRAITS_COORDINATOR": "a:1", "STRAITS_PROCESSES": "4", "JOB_COMPLETION_INDEX": "3"}
  assert distributed.settings(None, None, None, jobset) == found
  slurm = {"SLURM_NTASKS": "4", "SLURM_NNODES": "4", "SLURM_PROCID": "0", "SLURM_GPUS_ON_NODE": "8"}
  assert distributed.settings(None, None, None, slurm) == {
    "cluster_detection_method": "slurm",
    "local_device_ids": list(range(8)),
  }
  a_gpu_each = slurm | {"SLURM_NNODES": "1"}
  assert "local_device_ids" not in distributed.settings(None, None, None, a_gpu_each)
  for alone in ({}, {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, {"JOB_COMPLETION_INDEX": "0"}):
    assert distributed.settings(None, None, None, alone) is None


@pytest.mark.parametrize(
  ("flags", "environment", "message"),
  [
    ({"processes": None}, {}, "--processes is missing"),
    ({"process_id": 4}, {}, "process_id=4 must be from 0 to 3"),
    (dict.fromkeys(FLAGS), {"STRAITS_COORDINATOR": "a:1"}, "STRAITS_PROCESSES"),
  ],
)
def test_wrong_settings_are_named(flags, environment, message):
  with pytest.raises(ValueError, match=message):
    distributed.settings(*(FLAGS | flags).values(), environment)


def test_a_hang_ends_the_process_with_its_stacks(tmp_path):
  code = (
    "import pathlib, sys, time\n"
    "from train.distributed import HangWatch\n"
    "def stuck(): time.sleep(60)\n"
    "with HangWatch(lambda: 0.0, 0.2, pathlib.Path(sys.argv[1])): stuck()\n"
  )
  run = subprocess.run(
    [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=50
  )
  assert run.returncode == distributed.PEER_LOST
  assert "nothing has moved for 0.2 s" in run.stderr
  assert "stuck" in (tmp_path / "stacks-process0.txt").read_text()


@pytest.fixture(scope="module")
def start(tmp_path_factory):
  """Starts the processes of a run of the tiny recipe on four devices; returns them."""
  folder = tmp_path_factory.mktemp("distributed")
  rng, words = np.random.default_rng(0), ["strait", "channel", "narrow", "sea", "deep", "wide"]
  with (folder / "docs.jsonl").open("w") as file:
    for i in range(300):
      file.write(json.dumps({"text": f"{i} " + " ".join(rng.choice(words, 5 + i % 60))}) + "\n")

  def start(workdir, processes, *arguments):
    with socket.socket() as free:
      free.bind(("localhost", 0))
      coordinator = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // processes}",
      "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
    }
    command = [sys.executable, "-m", "train.main", "--config", "tests/tiny.py"]
    command += [f"--workdir={workdir}", f"--config.data.sources.docs.path={folder}/docs.jsonl"]
    command += [f"--config.train.steps={STEPS}", "--config.data.vocab_size=300", *arguments]
    command += ["--config.eval.every=1000", "--config.checkpoint.keep_every=4"]
    several = [f"--coordinator={coordinator}", f"--processes={processes}"]
    started = []
    for i in range(processes):
      own = [*several, f"--process_id={i}"] if processes > 1 else []
      with (folder / f"{workdir.name}-{i}.log").open("w") as log:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": log}
        started.append(subprocess.Popen(command + own, env=environment, **quiet))
    return started

  start.log = lambda workdir, i: (folder / f"{workdir.name}-{i}.log").read_text()
  return start


def losses(workdir):
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def wait_for(condition, processes, log):
  deadline = time.monotonic() + 400
  while not condition():
    assert time.monotonic() < deadline and all(p.poll() is None for p in processes), log()
    time.sleep(0.05)


def cursors(workdir, step):
  return json.loads((workdir / f"checkpoints/{step}/MANIFEST.json").read_text())["extra"]["cursors"]


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("alone")
  (process,) = start(workdir, 1)
  assert process.wait() == 0, start.log(workdir, 0)
  return workdir


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_give_the_losses_and_batches_of_one(start, alone, tmp_path, processes):
  workdir = tmp_path / f"of{processes}"
  codes = [process.wait() for process in start(workdir, processes)]
  assert codes == [0] * processes, start.log(workdir, 0)
  ours, theirs = losses(workdir), losses(alone)
  assert sorted(ours) == sorted(theirs) == list(range(1, STEPS + 1))
  np.testing.assert_allclose([ours[s] for s in ours], [theirs[s] for s in ours], rtol=1e-5)
  for step in (4, 8, 12):
    assert cursors(workdir, step) == cursors(alone, step)
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["12", "4", "8"]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_others_and_fewer_go_on(start, tmp_path, killed):
  workdir = tmp_path / f"killed{killed}"
  endless = "--config.train.steps=100000"
  processes = start(workdir, 2, endless)
  saved = workdir / "checkpoints/8/MANIFEST.json"
  wait_for(saved.exists, processes, lambda: start.log(workdir, 0) + start.log(workdir, 1))
  time.sleep(1)
  processes[killed].kill()
  processes[killed].wait()
  assert processes[1 - killed].wait(timeout=150) != 0
  said = start.log(workdir, 1 - killed)
  assert "another process is gone" in said or "coordination service" in said, said
  before = losses(workdir)
  (process,) = start(workdir, 1, endless)
  metrics = workdir / "metrics.jsonl"

  def came_as_far():
    return '"kind": "resume"' in metrics.read_text() and losses(workdir).keys() >= before.keys()

  wait_for(came_as_far, [process], lambda: start.log(workdir, 0))
  process.send_signal(signal.SIGTERM)
  assert process.wait() == 75, start.log(workdir, 0)
  again = losses(workdir)
  np.testing.assert_allclose([again[s] for s in before], list(before.values()), rtol=1e-5)

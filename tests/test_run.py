"""Whole runs through `train.main`: what they write, resuming, refusals, signals and kills."""

import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data import embedded
from tests import compiled, tiny
from train import main
from train.metrics import read

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
  """The runs of this file compile the same few programs; each is compiled once."""
  folder = tmp_path_factory.mktemp("compiled")
  with compiled.kept_in(folder, jax_disable_most_optimizations=False):
    yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  path = tmp_path_factory.mktemp("corpus") / "docs.jsonl"
  texts = (text for _, text in itertools.islice(embedded.documents(), 0, 3_000, 15))
  path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
  return path


@pytest.fixture
def config(corpus):
  return recipe(corpus)


def recipe(corpus):
  config = tiny.get_config()
  config.data.sources.docs.path = str(corpus)
  return config


@pytest.fixture(scope="module")
def straight(corpus, tmp_path_factory):
  """A run left alone from its first step to its last."""
  workdir = tmp_path_factory.mktemp("straight")
  assert main.run(recipe(corpus).to_dict(), workdir) == main.DONE
  return workdir


def losses(workdir):
  """{step: loss} of the training lines; a step that was logged twice fails."""
  lines = [line for line in read(workdir / "metrics.jsonl") if line["kind"] == "train"]
  steps = [line["step"] for line in lines]
  assert steps == sorted(set(steps))
  return {line["step"]: line["loss"] for line in lines}


def resumed(workdir):
  return [line["step"] for line in read(workdir / "metrics.jsonl") if line["kind"] == "resume"]


def test_a_run_writes_what_it_says(straight):
  lines = read(straight / "metrics.jsonl")
  train = [line for line in lines if line["kind"] == "train"]
  assert [line["step"] for line in train] == list(range(1, 25))
  for key in (
    *("step", "tokens", "loss", "grad_norm", "lr", "loss_scale", "skipped", "tokens_per_sec"),
    *("step_time", "data_wait", "mfu", "mfu_full", "device_memory_bytes", "device_memory_peak"),
    *("comm_seconds", "comm_exposed", "epoch/docs"),
  ):
    assert key in train[-1], key
  assert train[-1]["comm_seconds"] is None and train[-1]["comm_reason"]
  assert train[-1]["loss"] < train[0]["loss"]
  assert 0.9 * 24 * 16 * 64 < train[-1]["tokens"] <= 24 * 16 * 64
  final = [line for line in lines if line["kind"] == "eval" and line["step"] == 24]
  assert {(line["set"], line["weights"]) for line in final} == {
    ("docs", "raw"),
    ("docs", "average"),
  }
  ledger = [line for line in lines if line["kind"] == "ledger"][-1]
  parts = [v for k, v in ledger.items() if k not in ("kind", "total")]
  assert sum(parts) == pytest.approx(ledger["total"], abs=1e-6)
  assert json.loads((straight / "config.json").read_text())["train"]["steps"] == 24
  assert (straight / "samples.txt").read_text().startswith("Return |")
  assert (straight / "tokenizer" / "tokenizer.json").exists()


def test_a_finished_run_says_so(straight, config, capsys):
  before = (straight / "metrics.jsonl").read_bytes()
  assert main.run(config.to_dict(), straight) == main.DONE
  assert "finished, at step 24" in capsys.readouterr().out
  assert (straight / "metrics.jsonl").read_bytes() == before


def test_another_config_is_refused_with_its_differences(straight, config, tmp_path, capsys):
  workdir = shutil.copytree(straight, tmp_path / "copy")
  config.optimizer.peak_lr = 1e-2
  config.train.steps = 30
  assert main.run(config.to_dict(), workdir, allow=["train.steps"]) == main.BAD_INPUT
  error = capsys.readouterr().err
  assert "optimizer.peak_lr: 0.003 -> 0.01" in error and "train.steps:" not in error
  assert "--allow=optimizer.peak_lr" in error


def test_an_allowed_difference_continues(straight, config, tmp_path):
  workdir = shutil.copytree(straight, tmp_path / "copy")
  config.train.steps = 26
  assert main.run(config.to_dict(), workdir, allow=["train"]) == main.DONE
  assert resumed(workdir) == [24]
  assert sorted(losses(workdir)) == list(range(1, 27))
  # The mean is of the new window's snapshots since: of step 26 alone, so it is the raw weights.
  final = [line for line in read(workdir / "metrics.jsonl") if line["kind"] == "eval"][-2:]
  assert {line["step"] for line in final} == {26}
  assert final[0]["loss"] == final[1]["loss"]
  changes = [line for line in read(workdir / "metrics.jsonl") if line["kind"] == "config"]
  assert [(c["key"], c["old"], c["new"]) for c in changes] == [("train.steps", 24, 26)]


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("optimizer.peak_rl", 1.0, "did you mean `config.optimizer.peak_lr`"),
    ("train.steps", "many", "`config.train.steps` is 'many'"),
    ("data.batch_size", 20, "data.batch_size=20 is not divisible by the 8 row shards"),
    ("model.num_kv_heads", 3, "not divisible by model.num_kv_heads=3"),
    ("mesh.fsdp", 3, "does not fit 8 devices"),
    ("model.vocab_size", 300, "Raise model.vocab_size"),
    ("data.sources.docs.path", "nowhere/*.jsonl", "matches no file"),
    ("stage", "dance", "stage is 'dance'"),
    ("log.every", 0, "log.every is 0"),
    ("sample.prompts", (), "sample.prompts is ()"),
    ("seed", -1, "seed is -1"),
    ("model.norm_eps", -1.0, "model.norm_eps is -1.0"),
  ],
)
def test_bad_input_is_one_clear_message(config, tmp_path, capsys, key, value, message):
  nested = config.to_dict()
  *path, last = key.split(".")
  section = nested
  for part in path:
    section = section[part]
  section[last] = value
  assert main.run(nested, tmp_path) == main.BAD_INPUT
  error = capsys.readouterr().err
  assert message in error and error.startswith("error: ") and "Traceback" not in error
  assert not (tmp_path / "config.json").exists()  # a corrected config starts in the same folder


def test_fewer_steps_than_were_trained_are_refused(straight, config, tmp_path, capsys):
  workdir = shutil.copytree(straight, tmp_path / "copy")
  config.train.steps = 20
  assert main.run(config.to_dict(), workdir, allow=["train.steps"]) == main.BAD_INPUT
  assert "step 24, past train.steps=20" in capsys.readouterr().err


def test_an_evaluation_that_a_kill_cut_short_is_completed(straight, config, tmp_path):
  workdir = shutil.copytree(straight, tmp_path / "copy")
  log = workdir / "metrics.jsonl"
  whole = log.read_text().splitlines(keepends=True)
  cut = next(i for i, line in enumerate(whole) if '"average"' in line)
  log.write_text("".join(whole[:cut]))
  assert main.run(config.to_dict(), workdir) == main.DONE
  evaluations = [
    [line for line in read(w / "metrics.jsonl") if line["kind"] == "eval"]
    for w in (workdir, straight)
  ]
  assert evaluations[0] == evaluations[1]


def test_bad_lines_are_counted_and_too_many_refused(config, tmp_path, capsys):
  bad = tmp_path / "bad.jsonl"
  bad.write_text('{"text": "fine"}\nno json\n{"text": 3}\n')
  config.data.sources.docs.path = str(bad)
  config.data.max_bad_lines = 1
  assert main.run(config.to_dict(), tmp_path / "run") == main.BAD_INPUT
  error = capsys.readouterr().err
  assert f"{bad}:3" in error and "data.max_bad_lines=1" in error


def test_empty_corpus_is_refused(config, tmp_path, capsys):
  empty = tmp_path / "empty.jsonl"
  empty.write_text("")
  config.data.sources.docs.path = str(empty)
  assert main.run(config.to_dict(), tmp_path / "run") == main.BAD_INPUT
  assert "no document to train on" in capsys.readouterr().err


def test_a_checkpoint_of_another_shape_is_refused(straight, config, tmp_path, capsys):
  workdir = shutil.copytree(straight, tmp_path / "copy")
  config.model.d_ff = 128
  config.train.steps = 26
  assert main.run(config.to_dict(), workdir, allow=["model", "train"]) == main.BAD_INPUT
  error = capsys.readouterr().err
  assert "leaf model." in error and "float32[2, 64, 32] there and float32[2, 128, 32]" in error
  assert (workdir / "checkpoints" / "24" / "MANIFEST.json").exists()


def test_further_files_are_evaluated_alike(straight, config, corpus, tmp_path):
  workdir = shutil.copytree(straight, tmp_path / "copy")
  config.train.steps = 26
  config.eval.files = str(corpus)
  config.eval.sets = {"same": str(corpus)}
  assert main.run(config.to_dict(), workdir, allow=["train", "eval"]) == main.DONE
  last = [line for line in read(workdir / "metrics.jsonl") if line["kind"] == "eval"][-6:]
  bits = {(line["set"], line["weights"]): line["bits_per_byte"] for line in last}
  assert set(bits) == {(s, w) for s in ("docs", "files", "same") for w in ("raw", "average")}
  assert bits["same", "raw"] == bits["files", "raw"]
  # Most of the file was trained on, and the held-out part is in it.
  assert 0 < bits["files", "raw"] != bits["docs", "raw"]


def test_a_diverged_run_stops_with_its_own_code(config, tmp_path, capsys):
  config.optimizer.peak_lr = 1e30
  config.optimizer.clip_norm = 1e30
  config.train.max_skipped = 2
  assert main.run(config.to_dict(), tmp_path) == main.DIVERGED
  assert "not finite for 2 steps in a row" in capsys.readouterr().err
  skips = [line for line in read(tmp_path / "metrics.jsonl") if line["kind"] == "skip"]
  assert len(skips) == 2
  with np.load(tmp_path / skips[0]["batch"]) as batch:
    assert batch["tokens"].shape == (16, 64)


def start(overrides, workdir, corpus, shell=""):
  """The command line in a process of its own."""
  command = [sys.executable, "-m", "train.main", "--config=tests/tiny.py", f"--workdir={workdir}"]
  command += [f"--config.data.sources.docs.path={corpus}", *overrides]
  return subprocess.Popen(
    ["bash", "-c", f'{shell}exec "$@"', "run", *command],
    cwd=REPOSITORY,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def wait_for(condition, process, seconds=120):
  """Waits until `condition()` holds while `process` runs."""
  deadline = time.time() + seconds
  while not condition():
    assert process.poll() is None and time.time() < deadline, process.communicate()[0]
    time.sleep(0.02)


def saved_steps(workdir):
  return [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()]


def test_killed_at_random_moments_it_resumes_with_the_same_bits(straight, corpus, tmp_path):
  check_kills(straight, corpus, tmp_path / "run", kills=1)


@pytest.mark.slow
def test_killed_many_times_it_resumes_with_the_same_bits(straight, corpus, tmp_path):
  check_kills(straight, corpus, tmp_path / "run", kills=4)


def check_kills(straight, corpus, workdir, kills):
  seed = random.randrange(2**32)
  print(f"seed of the kills: {seed}")
  rng = random.Random(seed)
  overrides = ["--config.checkpoint.every=2"]
  for _ in range(kills):
    newest = max(saved_steps(workdir), default=0)
    process = start(overrides, workdir, corpus)
    wait_for(lambda: max(saved_steps(workdir), default=0) > newest, process)  # noqa: B023
    time.sleep(rng.random() * 0.4)
    process.kill()
    process.communicate()
  process = start(overrides, workdir, corpus)
  output = process.communicate(timeout=240)[0]
  assert process.returncode == main.DONE, output
  assert resumed(workdir) and all(step > 0 for step in resumed(workdir)), output
  assert losses(workdir) == losses(straight)
  evaluations = [
    [line for line in read(w / "metrics.jsonl") if line["kind"] == "eval"]
    for w in (workdir, straight)
  ]
  assert evaluations[0] == evaluations[1]


def test_sigterm_saves_and_asks_to_be_started_again(straight, corpus, tmp_path):
  process = start(["--config.checkpoint.every=1000"], tmp_path / "run", corpus)
  log = tmp_path / "run" / "metrics.jsonl"
  wait_for(lambda: log.exists() and '"step": 5,' in log.read_text(), process)
  process.send_signal(signal.SIGTERM)
  output = process.communicate(timeout=120)[0]
  assert process.returncode == main.STOPPED, output
  assert "SIGTERM: saving after this step" in output and "Saved." in output
  saved = saved_steps(tmp_path / "run")
  assert len(saved) == 1 and 5 <= saved[0] < 24
  partial = losses(tmp_path / "run")
  assert partial == {step: losses(straight)[step] for step in range(1, saved[0] + 1)}


def test_a_full_disk_is_one_clear_message_and_loses_nothing(straight, corpus, tmp_path):
  workdir = shutil.copytree(straight, tmp_path / "copy")
  saved = {p: p.read_bytes() for p in (workdir / "checkpoints" / "24").rglob("*") if p.is_file()}
  longer = ["--config.train.steps=26", "--allow=train.steps"]
  process = start(longer, workdir, corpus, shell="ulimit -f 60; ")  # KiB a file
  output = process.communicate(timeout=240)[0]
  assert process.returncode == main.BAD_INPUT, output
  assert "could not be written" in output and "[20, 24] are whole" in output
  assert {p: p.read_bytes() for p in saved} == saved
  process = start(longer, workdir, corpus)
  output = process.communicate(timeout=240)[0]
  assert process.returncode == main.DONE, output
  assert sorted(losses(workdir)) == list(range(1, 27))


def test_help_explains_itself():
  done = subprocess.run(
    [sys.executable, "-m", "train.main", "--help", "--config=configs/quickstart.py"],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0, done.stderr
  assert "--workdir" in done.stdout and "--config.optimizer.peak_lr=" in done.stdout

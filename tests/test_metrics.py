"""metrics.jsonl survives kills, keeps the bits, and says what is wrong; the progress line."""

import errno
import io
import json
import math
import os

import jax.numpy as jnp
import numpy as np
import pytest

from train.metrics import MetricsLog, Pending, Progress, duration, progress_text, read


def steps(path):
  return [(line["kind"], line.get("step")) for line in read(path)]


def test_a_float32_loss_keeps_its_bits(tmp_path):
  losses = np.random.default_rng(0).normal(4, 3, 1000).astype(np.float32)
  with MetricsLog(tmp_path / "m") as log:
    for loss in losses:
      log.write("train", step=1, loss=loss)
  logged = np.array([line["loss"] for line in read(tmp_path / "m")])
  np.testing.assert_array_equal(logged.astype(np.float32).view(np.int32), losses.view(np.int32))


def test_every_line_is_strict_json_in_the_file_before_the_next(tmp_path):
  log = MetricsLog(tmp_path / "m")
  log.write(
    "train",
    step=np.int32(3),
    loss=jnp.float32("nan"),
    grad_norm=-math.inf,
    skipped=np.bool_(True),
    comm_seconds=None,
    seconds={"step": np.float64(1.5)},
  )

  def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")

  line = json.loads((tmp_path / "m").read_text(), parse_constant=refuse)
  assert line == {
    "kind": "train",
    "step": 3,
    "loss": "NaN",
    "grad_norm": "-Infinity",
    "skipped": True,
    "comm_seconds": None,
    "seconds": {"step": 1.5},
  }
  (back,) = read(tmp_path / "m")
  assert math.isnan(back["loss"]) and back["grad_norm"] == -math.inf
  log.close()


def test_a_restart_cuts_back_to_the_checkpoint(tmp_path):
  path = tmp_path / "m"
  path.write_text(
    '{"kind": "start"}\n{"kind": "train", "step": 1}\n{"kind": "train", "step": 2}\n'
    '{"kind": "eval", "step": 3}\n{"kind": "ledger"}\n{"kind": "train", "step": 2}\n{"kind": "tr'
  )
  with MetricsLog(path, resume_step=2) as log:
    log.write("train", step=3)
  assert steps(path) == [
    ("start", None), ("train", 1), ("train", 2), ("train", 2), ("resume", 2), ("train", 3),
  ]  # fmt: skip
  assert os.listdir(tmp_path) == ["m"]  # no temporary is left


def test_without_a_checkpoint_the_file_starts_anew(tmp_path):
  (tmp_path / "m").write_text('{"kind": "train", "step": 1}\n')
  MetricsLog(tmp_path / "m").close()
  assert read(tmp_path / "m") == []


def test_a_torn_last_line_is_left_out_and_garbage_elsewhere_named(tmp_path):
  path = tmp_path / "m"
  path.write_text('{"kind": "train", "step": 1}\n{"kind"')
  assert steps(path) == [("train", 1)]
  path.write_text('{"kind": "train", "step": 1}\n17\n{"kind": "train", "step": 2}\n')
  with pytest.raises(ValueError, match="m:2 is no JSON object: '17"):
    read(path)


def test_a_full_disk_is_explained():
  log = MetricsLog("/dev/full")
  with pytest.raises(OSError, match=r"can't write /dev/full: No space left.*Free some") as caught:
    log.write("train", step=1)
  assert caught.value.errno == errno.ENOSPC
  log.close()


def test_only_process_0_writes(tmp_path, monkeypatch):
  monkeypatch.setattr("jax.process_index", lambda: 1)
  with MetricsLog(tmp_path / "m", resume_step=3) as log:
    log.write("train", step=4)
    log.sync()
  assert not (tmp_path / "m").exists()


def test_pending_returns_steps_in_order_and_late():
  pending = Pending(depth=2)
  out = [list(pending.push(step, {"loss": jnp.float32(step)})) for step in (1, 2, 3, 4)]
  assert [[step for step, _ in steps] for steps in out] == [[], [], [1], [2]]
  rest = pending.drain()
  assert next(rest) == (3, {"loss": np.float32(3)})  # without a wait for the next
  assert list(rest) == [(4, {"loss": np.float32(4)})]
  assert list(pending.drain()) == []


def line(step, **changes):
  return {
    "step": step, "loss": 2.5, "lr": 1.5e-4, "tokens_per_sec": 1000.0, "mfu": 0.5, "step_time": 1.0,
    "data_wait": 0.25, "loss_scale": 65536.0, "skipped": 1,
  } | changes  # fmt: skip


def test_progress_text_has_the_newest_values_and_mean_speeds():
  slow = line(7, loss=9.0, tokens_per_sec=100.0, mfu=0.05, step_time=10.0, data_wait=9.1)
  assert progress_text([slow, line(8, tokens_per_sec=2200.0)], 10_000, 3700) == (
    "step 8/10,000  loss 2.5000  lr 1.50e-04  291 tok/s  MFU 9.1%  data wait 85.0%  scale 65536  "
    "skipped 1  1h01m left"
  )


def test_progress_prints_plain_lines_at_the_cadence_and_the_last():
  out, clock = io.StringIO(), iter(range(0, 1000, 60))
  progress = Progress(total_steps=5, every=2, stream=out, clock=lambda: next(clock))
  for step in range(1, 6):
    progress.update(line(step))
  shown = out.getvalue().splitlines()
  assert [text.split()[1] for text in shown] == ["2/5", "4/5", "5/5"]
  assert shown[0].endswith("3m00s left") and "\r" not in out.getvalue()


def test_progress_rewrites_one_line_on_a_terminal():
  out = io.StringIO()
  out.isatty = lambda: True
  progress = Progress(total_steps=9, every=100, stream=out)
  progress.update(line(1))
  progress.update(line(2))  # too soon after the first
  progress.close()
  progress.close()
  assert out.getvalue().startswith("\r\x1b[Kstep 1/9  loss")
  assert out.getvalue().count("\r") == 1 and out.getvalue().count("\n") == 1
  assert len(out.getvalue()) < 80 + 6


def test_durations():
  values = [48.2, 192, 5 * 3600 + 432, 12 * 86400 + 3 * 3600 + 59]
  assert [duration(s) for s in values] == ["48s", "3m12s", "5h07m", "12d03h"]

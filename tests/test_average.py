"""The window's snapshots, and the offline mean against the one that training keeps."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.average import average_checkpoints, is_snapshot_step, main, snapshot_steps
from train.checkpoint import Checkpointer

TOTAL, FRACTION, EVERY = 50, 0.4, 5
WINDOW = [35, 40, 45, 50]


def test_the_reference_run_takes_22_snapshots():
  steps = snapshot_steps(214_577, 0.1, 1000)
  assert len(steps) == 22
  assert steps[:2] == [194_000, 195_000] and steps[-2:] == [214_000, 214_577]


@pytest.mark.parametrize(
  "total, fraction, every, steps",
  [
    (50, 0.4, 5, WINDOW),  # 30 is not in (30, 50]
    (10, 0.3, 1, [8, 9, 10]),
    (10, 0.9, 1, list(range(2, 11))),  # 10 - 9.0 and 10 * (1 - 0.9) round differently
    (100, 0.1, 7, [91, 98, 100]),
    (10, 1.0, 4, [4, 8, 10]),
    (10, 0.0, 1, []),
    (3, 0.1, 1000, [3]),
  ],
)
def test_snapshots_are_multiples_in_the_window_and_the_end(total, fraction, every, steps):
  assert snapshot_steps(total, fraction, every) == steps
  traced = jax.jit(jax.vmap(lambda step: is_snapshot_step(step, total, fraction, every)))
  taken = np.flatnonzero(traced(jnp.arange(total + 1))).tolist()
  assert [step for step in taken if step] == steps


def make_weights(step):
  rng = np.random.default_rng(step)
  return {
    "w_DF": rng.normal(size=(8, 16)).astype("f4"),
    "layers": {"norm_D": np.ones(8, "f4") / step},
  }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run whose checkpoints in the window, but for the last, hold weights alone."""
  folder = tmp_path_factory.mktemp("run")
  config = {"train": {"steps": TOTAL}, "average": {"fraction": FRACTION, "every": EVERY}}
  (folder / "config.json").write_text(json.dumps(config))
  checkpointer = Checkpointer(folder / "checkpoints", keep_last=1, average_steps=WINDOW)
  for step in (25, *WINDOW):
    state = {"params": make_weights(step), "step": np.asarray(step), "average_count": np.asarray(0)}
    checkpointer.save(step, {"model": state}, {}, wait=True)
  assert checkpointer.steps() == WINDOW
  return folder


@pytest.fixture
def run(finished, tmp_path):
  return shutil.copytree(finished, tmp_path / "run")


def read_average(run):
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make_weights(1))
  return Checkpointer(run / "average").restore_weights({"model": abstract})["model"]


def test_equals_the_running_mean_and_the_exact_one(run, capsys):
  assert main([str(run)]) == 0
  assert "4 snapshots, steps 35 to 50" in capsys.readouterr().out
  found = read_average(run)

  @jax.jit
  def update(average, weights, n):  # what the training step does
    return jax.tree.map(lambda a, p: a + (p - a) / n, average, weights)

  running = jax.tree.map(jnp.zeros_like, make_weights(1))
  for n, step in enumerate(WINDOW, start=1):
    running = update(running, make_weights(step), jnp.float32(n))
  exact = jax.tree.map(
    lambda *leaves: np.mean(np.stack(leaves).astype("f8"), axis=0), *map(make_weights, WINDOW)
  )
  for f, r, e in zip(*map(jax.tree.leaves, (found, running, exact)), strict=True):
    assert f.dtype == np.float32
    np.testing.assert_allclose(f, r, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(f, e, rtol=1e-6, atol=1e-7)


def test_named_steps_and_again(run):
  for steps in ([40, 50], [45, 50]):
    assert main([str(run), "--steps", ",".join(map(str, steps))]) == 0
    expected = sum(make_weights(step)["w_DF"] for step in steps) / 2
    np.testing.assert_allclose(read_average(run)["w_DF"], expected, rtol=1e-6, atol=1e-7)
  assert average_checkpoints(run, [45]) == run / "average" / "45"


def test_half_precision_weights_are_averaged_in_fp32(tmp_path):
  for step in (1, 2):
    weights = {"w": np.asarray([2048 + 2 * step, 1.0], np.float16)}
    Checkpointer(tmp_path / "checkpoints").save(
      step, {"model": {"params": weights, "step": np.asarray(0)}}, {}, wait=True
    )
  average_checkpoints(tmp_path, [1, 2])
  found = Checkpointer(tmp_path / "average").restore_weights(
    {"model": {"w": jax.ShapeDtypeStruct((2,), "float32")}}
  )
  assert found["model"]["w"].tolist() == [2051, 1]  # 2051 is no fp16 number


def test_what_cannot_be_averaged_is_named(run, tmp_path, capsys):
  assert main([str(run), "--steps", "40,41"]) == 2
  assert "steps [41] have no checkpoint" in capsys.readouterr().err
  assert main([str(run), "--steps", "all"]) == 2
  assert "--steps='all'" in capsys.readouterr().err
  assert main([str(run / "nowhere")]) == 2
  assert "config.json" in capsys.readouterr().err
  data = next((run / "checkpoints" / "40" / "model.params").glob("**/manifest.ocdbt"))
  data.write_bytes(b"")
  assert main([str(run)]) == 2
  assert "0 bytes" in capsys.readouterr().err
  assert not (run / "average").exists()
  config = {"train": {"steps": 9}, "average": {"fraction": 0.0, "every": 1}}
  (run / "config.json").write_text(json.dumps(config))
  assert main([str(run)]) == 2
  assert "average.fraction=0" in capsys.readouterr().err

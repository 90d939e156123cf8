"""The preference loss against float64, preferences of ratings, and whole runs with planted ones."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dpo as recipe
from data.conversations import Row
from data.examples import to_batch
from data.pairs import PairSource, read_pairs
from data.preferences import preference_batch, preferred
from model import lora
from model.params import param_specs
from model.sharding import MeshConfig, make_mesh
from tests import base_run
from tests.base_run import on_one_device  # noqa: F401
from tests.build import compute_config, model_config, numpy_params
from tests.compiled import compiled_once  # noqa: F401
from train import dpo, main
from train.metrics import read
from train.preference_loss import PreferenceLossConfig, answer_log_probs, pair_losses
from train.sft import open_template


@pytest.mark.parametrize("smoothing", ["conservative", "robust"])
def test_the_loss_of_a_pair_is_that_of_float64(smoothing):
  margin = np.random.default_rng(0).standard_normal(100) * 5
  right, wrong = (-np.log(1 / (1 + np.exp(-s * margin))) for s in (1, -1))
  expected = 0.8 * right + 0.2 * wrong
  if smoothing == "robust":
    expected = (0.8 * right - 0.2 * wrong) / 0.6
  found = pair_losses(jnp.float32(margin), PreferenceLossConfig(0.1, 0.2, smoothing))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def read_rows(template, rows, dimensions=("a", "b")):
  numbered = [Row(f"f:{i}", row) for i, row in enumerate(rows, start=1)]
  return read_pairs(
    {"s": PairSource(numbered, "a")},
    template, dimensions=dimensions, scale=(1, 5), max_tokens=40, exclude=frozenset(),
  )  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return base_run.make(tmp_path_factory.mktemp("base") / "run")


@pytest.fixture(scope="module")
def template(base):
  config = recipe.get_config(str(base))
  config.data.chat_template = "chatml"
  return open_template(config.data, config.model.vocab_size)


def test_the_better_answer_is_by_weighted_dimensions_and_ties_go(template):
  def row(number, **more):
    return {"prompt": f"q{number}", "chosen": "one", "rejected": "two"} | more

  rated = {"chosen": {"a": 4, "b": 1}, "rejected": {"a": 2, "b": 4}}
  rows = [
    row(1),
    row(2, ratings=rated),  # 2 for it, 3 against
    row(3, labels={"a": "rejected"}),
    row(4, labels={"a": "tie"}),
    row(5, labels={"a": "chosen", "b": "rejected"}),
  ]
  curated = read_rows(template, rows)
  assert not curated.dropped
  found = preferred(curated, {"a": 1.0, "b": 1.0})
  said = {pair.place: template.decode(pair.chosen.ids[pair.chosen.mask]) for pair in found.kept}
  assert {place: text.split("<")[0].strip() for place, text in said.items()} == {
    "f:1": "one", "f:2": "two", "f:3": "two",
  }  # fmt: skip
  assert all(pair.signs == {"preference": 1} for pair in found.kept)
  assert [(drop.place, drop.reason) for drop in found.dropped] == [("f:4", "tie"), ("f:5", "tie")]
  assert found.report()["dropped"] == {"tie": 2}
  again = preferred(curated, {"a": 2.0, "b": 1.0}).kept
  by_place = {pair.place: pair for pair in again}
  assert "one" in template.decode(by_place["f:2"].chosen.ids[by_place["f:2"].chosen.mask])
  assert by_place["f:2"].strengths == {"preference": 1.0}


def several(template, count=5):
  rows = [
    {"prompt": f"say {i}", "chosen": "a" * (i + 1), "rejected": "b " * (i + 2)}
    for i in range(count)
  ]
  return preferred(read_rows(template, rows), {"a": 1.0, "b": 1.0}).kept


def test_log_probs_of_packed_pairs_are_those_of_each_answer_alone(template):
  model, compute = model_config(vocab_size=300, qk_norm=False), compute_config(loss_chunks=1)
  params = jax.tree.map(jnp.asarray, numpy_params(param_specs(model), 0))
  pairs = several(template)
  batch = preference_batch([pairs[:2], pairs[2:], []], 200, 4)
  run = jax.jit(functools.partial(answer_log_probs, model=model, compute=compute))
  found = run(params, batch)
  assert found.shape == (3, 4, 2)
  assert not found[2].any() and not found[0, 2:].any() and found[0, :2].all()
  sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
  alone = to_batch([[side] for side in sides], 64)
  alone["real"] = np.ones((len(sides), 1), np.float32)
  expected = np.asarray(run(params, alone))[:, 0, 0].reshape(-1, 2)
  np.testing.assert_allclose(found[0, :2], expected[:2], rtol=1e-4)
  np.testing.assert_allclose(found[1, :3], expected[2:], rtol=1e-4)


def plant(path: Path, count: int) -> Path:
  """Comparisons in which the answer with more of one letter is the better one, some swapped."""
  rng = np.random.default_rng(0)
  lines = []
  for i in range(count):
    good, bad = ("".join(rng.choice(list(letters), 3)) for letters in ("aab", "ccd"))
    label = "rejected" if i % 3 == 0 else "chosen"
    sides = (bad, good) if label == "rejected" else (good, bad)
    row = dict(zip(("chosen", "rejected"), sides, strict=True))
    lines.append(json.dumps({"prompt": f"say {i}"} | row | {"labels": {"helpfulness": label}}))
  path.write_text("\n".join(lines) + "\n")
  return path


@pytest.fixture(scope="module")
def config(base, tmp_path_factory):
  config = recipe.get_config(str(base))
  base_run.shrink(config)
  config.data.update(seq_len=128, batch_size=4, heldout_fraction=0.2, max_segments=8, epochs=2.0)
  config.data.sources.main.path = str(plant(tmp_path_factory.mktemp("pairs") / "p.jsonl", 160))
  config.optimizer.update(peak_lr=1e-3, final_lr=1e-4)
  config.sample.update(every=8, prompts=4, max_tokens=4)
  return config


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("dpo") / "run"
  assert main.run(config.to_dict(), workdir) == main.DONE
  return workdir


def test_a_run_begins_at_its_reference_learns_and_reports(trained):
  lines = read(trained / "metrics.jsonl")
  train = [line for line in lines if line["kind"] == "train"]
  # The first step is taken at the reference: no margin, and a loss of log 2.
  assert train[0]["margin"] == pytest.approx(0.0, abs=1e-4)
  assert train[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)
  assert train[-1]["loss"] < 0.4 and train[-1]["accuracy"] > 0.9
  for line in train:
    assert line["chosen_reward"] - line["rejected_reward"] == pytest.approx(
      line["margin"], abs=1e-4
    )
  scores = [line for line in lines if line["kind"] == "eval"]
  assert scores[0]["step"] == 0 and scores[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)
  report = json.loads((trained / dpo.REPORT).read_text())
  assert report["loss"] == scores[-1]["loss"] < 0.4
  assert report["pairs"]["accuracy"] == scores[-1]["accuracy"] > 0.9
  assert {"length_baseline", "calibration_error_before"} < report["pairs"].keys()
  said = report["log_probs"]
  gap = said["chosen"]["change"] - said["rejected"]["change"]
  assert 0.1 * gap == pytest.approx(report["margin"], rel=1e-4)  # beta is 0.1
  counts = [report["length"][f"chosen_{way}"]["n"] for way in ("longer", "shorter")]
  assert sum(counts) <= report["pairs"]["n"]
  samples = [line for line in lines if line["kind"] == "sample"]
  assert samples[0]["step"] == 0 and samples[0]["answers"] == 4


def test_a_stopped_run_goes_on_with_the_same_bits_though_its_reference_is_gone(
  config, trained, base, tmp_path
):
  class Stop:
    asked = 0

    def __enter__(self):
      return self

    def __exit__(self, *_):
      pass

    def wanted(self):
      Stop.asked += 1
      return Stop.asked == 5

  workdir = tmp_path / "run"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("train.signals.StopRequest", Stop)
    assert main.run(config.to_dict(), workdir) == main.STOPPED
  there = base / "checkpoints"
  aside = there.rename(base / "aside")
  try:
    assert main.run(config.to_dict(), workdir) == main.DONE
  finally:
    aside.rename(there)

  def losses(folder):
    lines = read(folder / "metrics.jsonl")
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}

  assert losses(workdir) == losses(trained)
  assert (workdir / dpo.REPORT).read_bytes() == (trained / dpo.REPORT).read_bytes()
  # What it began with is needed, and checked.
  with np.load(workdir / dpo.REFERENCE) as file:
    arrays = dict(file) | {"fingerprint": "other"}
  with pytest.raises(ValueError, match="is of the pairs other"):
    np.savez(workdir / dpo.REFERENCE, **arrays)
    dpo._read(workdir / dpo.REFERENCE, "these")
  (workdir / dpo.REFERENCE).write_bytes(b"junk")
  with pytest.raises(ValueError, match="can't be read"):
    dpo._read(workdir / dpo.REFERENCE, "these")


def test_with_adapters_the_reference_is_the_trunk_without_them(config):
  adapters = {"rank": 2, "alpha": 4.0, "targets": ("query", "down")}
  config = dpo.parse_config(config.to_dict() | {"lora": adapters})
  specs, loss_fn = dpo.objective(config)
  model, compute = config.model, config.compute
  params = jax.tree.map(jnp.asarray, numpy_params(specs, 1))
  pairs = several(open_template(config.data, model.vocab_size), 3)
  batch = preference_batch([pairs], 160, 4)
  off = lora.without(params)
  batch["reference"] = np.zeros((1, 4, 2), np.float32)
  batch["reference"] = np.asarray(jax.jit(functools.partial(
    answer_log_probs, model=model, compute=compute))(off, batch))  # fmt: skip
  loss = jax.jit(loss_fn)
  _, sums = loss(params, batch, jax.random.key(0))
  assert abs(float(sums["margin"])) < 1e-5  # new adapters change nothing
  moved = jax.tree_util.tree_map_with_path(
    lambda path, x: x + 0.1 if path[-1].key == "out" else x, params
  )
  _, sums = loss(moved, batch, jax.random.key(0))
  assert abs(float(sums["margin"])) > 1e-3 and float(sums["weight"]) == 3


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"loss.beta": 0.0}, "loss.beta is 0.0"),
    ({"loss.label_smoothing": 0.5}, "loss.label_smoothing is 0.5"),
    ({"loss.smoothing": "some"}, "loss.smoothing is 'some'"),
    ({"preference.helpfulness": 0.0, "preference.honesty": 0.0, "preference.harmlessness": 0.0},
     "give at least one dimension a weight"),
    ({"data.sources.main.dimension": "beauty"}, "none of preference"),
    ({"train.init_from": None}, "train.init_from is None"),
    ({"reference": "nowhere"}, "'nowhere' holds no checkpoints"),
    ({"data.refuse": ("tie",)}, "p.jsonl:1: tie"),
  ],
)  # fmt: skip
def test_bad_input_is_one_clear_message(config, tmp_path, capsys, changes, message):
  config = config.copy_and_resolve_references()
  config.unlock()
  text = Path(config.data.sources.main.path).read_text()
  if "data.refuse" in changes:
    text = text.replace('"rejected"}', '"tie"}')
  (tmp_path / "p.jsonl").write_text(text)
  config.data.sources.main.path = str(tmp_path / "p.jsonl")
  config.update_from_flattened_dict(changes)
  assert main.run(config.to_dict(), tmp_path / "run") == main.BAD_INPUT
  error = capsys.readouterr().err
  assert message in error and "Traceback" not in error


@pytest.mark.slow
def test_a_mesh_of_devices_has_the_same_losses(config, trained, tmp_path, monkeypatch):
  """Rows over two devices, the length over two: the first steps are those of one device."""
  monkeypatch.setattr("train.dpo.make_mesh", lambda _: make_mesh(MeshConfig(2, 1, 2, 1),
                                                                 jax.devices()[:4]))  # fmt: skip
  config = config.copy_and_resolve_references()
  config.train.steps, config.sample.prompts = 3, 0
  assert main.run(config.to_dict(), tmp_path / "run") == main.DONE
  first = [line for line in read(trained / "metrics.jsonl") if line["kind"] == "train"][:2]
  found = [line for line in read(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "train"]
  for one, other in zip(first, found, strict=False):
    assert other["margin"] == pytest.approx(one["margin"], abs=1e-3)
    assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)

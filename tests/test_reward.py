"""The pair loss against float64, the report's numbers, and a whole run with planted preferences."""

import json
import random
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import reward as recipe
from model import heads, safetensors
from model.sharding import MeshConfig, make_mesh
from tests import base_run
from tests.base_run import on_one_device  # noqa: F401
from tests.build import compute_config
from tests.compiled import compiled_once  # noqa: F401
from train import calibrate, export, main, reward_model, reward_report
from train.metrics import read
from train.pair_loss import PairLossConfig, comparison_loss

SHAPE = (4, 5, 3)


def random_pairs(seed=0):
  rng = np.random.default_rng(seed)
  chosen, rejected = (3 * rng.standard_normal(SHAPE).astype(np.float32) for _ in range(2))
  sign = rng.integers(-1, 2, SHAPE).astype(np.float32)
  strength = rng.random(SHAPE).astype(np.float32) * 3
  rated = (rng.random(SHAPE) < 0.7).astype(np.float32)
  return chosen, rejected, sign, strength, rated


@pytest.mark.parametrize("ties", ["mask", "soft"])
def test_the_loss_is_that_of_float64(ties):
  arrays = random_pairs()
  loss, weight = comparison_loss(*arrays, PairLossConfig(margin=0.3, center=0.05, ties=ties))
  expected, counted = np.zeros(SHAPE), np.zeros(SHAPE)
  for at in np.ndindex(SHAPE):
    c, r, y, s, rated = (float(x[at]) for x in arrays)
    if not rated or (y == 0 and ties == "mask"):
      continue
    counted[at] = 1
    if y == 0:
      p = 1 / (1 + np.exp(-(c - r)))
      expected[at] = -0.5 * np.log(p) - 0.5 * np.log(1 - p)
    else:
      better, worse = (c, r) if y > 0 else (r, c)
      expected[at] = -np.log(1 / (1 + np.exp(-(better - worse - 0.3 * s))))
    expected[at] += 0.05 * (c + r) ** 2
  assert 0 < counted.sum() < counted.size
  np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(weight, counted)


def test_swapping_both_answers_and_the_label_changes_nothing():
  chosen, rejected, sign, strength, rated = random_pairs(1)
  config = PairLossConfig(margin=0.5, center=0.1, ties="soft")
  one = comparison_loss(chosen, rejected, sign, strength, rated, config)
  two = comparison_loss(rejected, chosen, -sign, strength, rated, config)
  np.testing.assert_allclose(one[0], two[0], rtol=1e-6)


def test_what_is_not_rated_has_no_gradient():
  chosen, rejected, sign, strength, rated = random_pairs(2)
  config = PairLossConfig(margin=0.5, center=0.1, ties="mask")
  gradient = jax.grad(
    lambda c: comparison_loss(c, rejected, sign, strength, rated, config)[0].sum()
  )
  silent = (rated == 0) | (sign == 0)
  found = np.asarray(gradient(chosen))
  assert not found[silent].any() and found[~silent].all()


def test_temperature_and_calibration_error_of_known_noise():
  rng = np.random.default_rng(0)
  utility = 2 * rng.standard_normal(40_000)
  sign = np.where(rng.random(40_000) < 1 / (1 + np.exp(-utility)), 1.0, -1.0)
  assert reward_report.fit_temperature(utility, sign) == pytest.approx(1.0, abs=0.03)
  assert reward_report.fit_temperature(4 * utility, sign) == pytest.approx(4.0, rel=0.03)
  assert reward_report.calibration_error(utility, sign, 1.0) < 0.01
  assert reward_report.calibration_error(4 * utility, sign, 1.0) > 0.1
  assert reward_report.calibration_error(4 * utility, sign, 4.0) < 0.01
  # One side or the other may be called chosen.
  flip = np.where(rng.random(40_000) < 0.5, 1.0, -1.0)
  assert reward_report.calibration_error(flip * utility, flip * sign, 2.0) == pytest.approx(
    reward_report.calibration_error(utility, sign, 2.0)
  )
  # By hand: two predictions at 0.6 of which one is right, in one bin.
  d = np.array([np.log(1.5), -np.log(1.5)])
  assert reward_report.calibration_error(d, np.ones(2), 1.0) == pytest.approx(0.1)


def test_calibration_is_of_pairs_that_no_temperature_was_fitted_on():
  rng = np.random.default_rng(1)
  difference = rng.standard_normal(200)
  signs = np.where(rng.random(200) < 0.7, np.sign(difference), 0).astype(int)
  pairs = [types.SimpleNamespace(signs={"good": s}, lengths=(2, 1)) for s in signs]
  fitting = rng.random(200) < 0.5

  def report(difference):
    return reward_report.dimension_report(pairs, difference, "good", 2.0, 1, fitting)

  one, decided = report(difference), signs != 0
  assert one["n"] == decided.sum() and one["accuracy"] == 1.0 and one["ties"]["n"] == sum(~decided)
  assert one["calibration"] == {"fitted_on": sum(decided & fitting), "n": sum(decided & ~fitting)}
  rest = decided & ~fitting
  assert one["nll_after"] == reward_report.nll(difference[rest], signs[rest], 2.0)
  other = report(np.where(fitting, -difference, difference))
  assert other["accuracy"] < 1.0
  assert other["calibration_error_after"] == one["calibration_error_after"]


def plant(path, count, dimensions, seed=0, noise=True):
  """Comparisons of answers whose words have a utility in each dimension."""
  rng = random.Random(seed)
  words = {"a": (2, -1, 0), "b": (-2, 1, 1), "c": (0, 2, -2), "d": (1, 0, 2), "e": (-1, -2, -1)}
  lines = []
  for i in range(count):
    answers = [" ".join(rng.choice(sorted(words)) for _ in range(2)) for _ in range(2)]
    if answers[0] == answers[1]:
      continue
    labels = {}
    for s, name in enumerate(dimensions):
      u = [sum(words[word][s] for word in answer.split()) for answer in answers]
      p = 1 / (1 + np.exp(u[1] - u[0])) if noise else float(u[0] > u[1])
      if u[0] == u[1]:
        labels[name] = "tie"
      elif rng.random() < 0.9:
        labels[name] = {"label": "chosen" if rng.random() < p else "rejected", "strength": 1}
    row = {"prompt": f"{i}", "chosen": answers[0], "rejected": answers[1], "labels": labels}
    lines.append(json.dumps(row) + "\n")
  path.write_text("".join(lines))
  return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return base_run.make(tmp_path_factory.mktemp("base") / "run")


@pytest.fixture(scope="module")
def config(base, tmp_path_factory):
  path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
  config = recipe.get_config(str(base))
  base_run.shrink(config)
  plant(path, 400, sorted(config.score.weights), noise=False)
  config.data.update(seq_len=128, batch_size=8, heldout_fraction=0.3, max_segments=16, epochs=2.0)
  config.data.sources.main.update(path=str(path))
  config.optimizer.update(peak_lr=1e-2, final_lr=1e-3)
  config.score.update(prompts=8, max_tokens=4)
  return config


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("reward") / "run"
  assert main.run(config.to_dict(), workdir) == main.DONE
  return workdir


def test_a_run_learns_planted_preferences_and_reports(trained, config):
  lines = read(trained / "metrics.jsonl")
  losses = [line["loss"] for line in lines if line["kind"] == "train"]
  assert np.mean(losses[-3:]) < np.mean(losses[:3])
  last = [line for line in lines if line["kind"] == "eval"][-1]
  assert set(last["accuracy"]) == set(config.score.weights)
  report = json.loads((trained / "reward_report.json").read_text())
  for name, one in report["dimensions"].items():
    assert one["accuracy"] > 0.6, name
    assert {"nll_before", "nll_after", "temperature", "length_baseline", "ties"} < one.keys()
    assert one["nll_after"] < 0.7
  assert len(report["between"]) == 3 and "in_conflict" in report["between"]["harmlessness/honesty"]
  assert "answers of" in report["normalization"]
  curation = json.loads((trained / "curation.json").read_text())
  assert curation["overlap"] == {"with": None, "pairs": 0, "of": curation["rows"]}


def test_the_scores_of_held_out_pairs_can_be_calibrated(trained):
  report = json.loads((trained / "reward_report.json").read_text())["dimensions"]
  found = calibrate.read_pairs(trained)
  assert len(found) == sum(one["n"] for one in report.values())
  right = sum(pair.scores[0] > pair.scores[1] for pair in found)
  assert right == pytest.approx(sum(one["n"] * one["accuracy"] for one in report.values()))


def test_the_scale_is_frozen_into_the_scorer(trained, config):
  mesh = make_mesh(MeshConfig(1, 1, 1, 1), jax.devices()[:1])
  found = reward_model.load(trained, mesh)
  assert found.dimensions == ("harmlessness", "helpfulness", "honesty")
  report = json.loads((trained / "reward_report.json").read_text())
  scale = found.params["normalization"]
  np.testing.assert_allclose(scale["mean_S"], report["mean"], rtol=1e-6)
  assert np.all(np.asarray(scale["std_S"]) > 0) and "unembedding_DV" not in found.params
  tokens = np.random.default_rng(0).integers(8, 300, (2, 9)).astype(np.int32)
  raw = heads.text_scores(found.params, tokens, np.ones_like(tokens), found.model, compute_config())
  normal = (np.asarray(raw) - np.asarray(scale["mean_S"])) / np.asarray(scale["std_S"])
  ask = (jnp.asarray(tokens), np.ones_like(tokens), found.model, compute_config())
  one, scores, doubt = reward_model.rewards([found.params], *ask)
  np.testing.assert_allclose(scores, normal, rtol=1e-5)
  np.testing.assert_allclose(one, normal.sum(-1), rtol=1e-5)
  assert not np.any(doubt)
  other = found.params | {"heads": jax.tree.map(lambda x: x + 1.0, found.params["heads"])}
  mean, _, doubt = reward_model.rewards([found.params, other], *ask)
  second = reward_model.rewards([other], *ask)[0]
  np.testing.assert_allclose(mean, (one + second) / 2, rtol=1e-4)
  np.testing.assert_allclose(doubt, np.abs(one - second) / 2, rtol=1e-3, atol=1e-6)


def check_export(trained, out):
  said = export.export_run(trained, out)
  described = json.loads((out / "config.json").read_text())
  assert described["architectures"] == ["LlamaForSequenceClassification"]
  assert described["id2label"] == {"0": "harmlessness", "1": "helpfulness", "2": "honesty"}
  assert described["pad_token_id"] != described.get("eos_token_id")
  stored = safetensors.open_directory(out)
  found = reward_model.load(trained, make_mesh(MeshConfig(1, 1, 1, 1), jax.devices()[:1]))
  np.testing.assert_array_equal(stored["score.weight"], found.params["heads"]["weight_SD"])
  assert "lm_head.weight" not in stored
  scale, heads_of = found.params["normalization"], found.params["heads"]
  mean = described["straits_reward"]["mean"]
  np.testing.assert_allclose(mean, np.asarray(scale["mean_S"] - heads_of["bias_S"]), rtol=1e-6)
  return said


def test_the_scorer_is_exported_as_a_sequence_classification(trained, tmp_path, monkeypatch):
  monkeypatch.setattr("train.export_scorer._transformers_scores", lambda folder, ids: None)
  check_export(trained, tmp_path / "out")
  monkeypatch.setattr(
    "train.export_scorer._transformers_scores", lambda folder, ids: np.ones((2, 3))
  )
  with pytest.raises(ValueError, match="transformers has other scores"):
    export.export_run(trained, tmp_path / "other")
  assert not (tmp_path / "other").exists()


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_transformers_computes_the_exported_scores(trained, tmp_path):
  pytest.importorskip("transformers")
  assert "the same scores by transformers" in check_export(trained, tmp_path / "out")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data.sources.main.dimension": "beauty"}, "none of score.weights"),
    ({"data.scale": (5.0, 1.0)}, "data.scale"),
    ({"data.exclude_prompts_of": "nowhere"}, "data.exclude_prompts_of='nowhere'"),
    ({"data.seq_len": 16, "compute.loss_chunks": 1}, "0 pairs are left"),
    ({"loss.ties": "drop"}, "loss.ties is 'drop'"),
    ({"loss.margin": -1.0}, "margin=-1.0"),
    ({"data.refuse": ("duplicate",)}, "pairs.jsonl:2: duplicate"),
  ],
)
def test_bad_input_is_one_clear_message(config, tmp_path, capsys, changes, message):
  config = config.copy_and_resolve_references()
  config.unlock()
  path = tmp_path / "pairs.jsonl"
  text = Path(config.data.sources.main.path).read_text()
  path.write_text(text[: text.index("\n") + 1] + text)
  config.data.sources.main.path = str(path)
  config.update_from_flattened_dict(changes)
  assert main.run(config.to_dict(), tmp_path / "run") == main.BAD_INPUT
  error = capsys.readouterr().err
  assert message in error and "Traceback" not in error

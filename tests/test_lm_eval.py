"""Against lm-evaluation-harness itself: our models inside of it, and SmolLM2 on real sets."""

import json
import os
from pathlib import Path

import jax
import pytest

from configs import evaluate as recipe
from model.sharding import MeshConfig, make_mesh
from tests import harness, smollm2
from tests.fixtures import make_lm_eval
from tests.test_evaluate import compare, suite
from train import evaluate, main, results

pytestmark = pytest.mark.peers


@pytest.fixture
def tiny(tmp_path):
  theirs = json.loads(make_lm_eval.FIXTURE.read_text(encoding="utf-8"))
  make_lm_eval.write_run(tmp_path / "run", theirs["tokenizer"])
  harness.write_rows(make_lm_eval.ROWS, tmp_path)
  return tmp_path, theirs["tasks"]


def test_the_fixture_is_what_the_harness_gives(tmp_path, monkeypatch):
  monkeypatch.setattr(make_lm_eval, "FIXTURE", tmp_path / "again.json")
  kept = json.loads(Path(make_lm_eval.__file__).with_name("lm_eval.json").read_text())
  make_lm_eval.main()
  again = json.loads((tmp_path / "again.json").read_text())
  for name, task in kept["tasks"].items():
    for old, new in zip(task["samples"], again["tasks"][name]["samples"], strict=True):
      assert new["arguments"] == old["arguments"]
      assert new["log_likelihoods"] == pytest.approx(old["log_likelihoods"], abs=1e-3)


def test_the_harness_runs_our_model_and_gets_its_own_numbers(tiny):
  from train.lm_eval_adapter import open_lm

  folder, theirs = tiny
  model = open_lm(recipe.get_config(str(folder / "run")).to_dict())
  found = harness.run(model, folder, list(make_lm_eval.TASKS), make_lm_eval.SHOTS, folder)
  assert found.keys() == theirs.keys()
  for name, task in theirs.items():
    assert found[name]["metrics"] == pytest.approx(task["metrics"], rel=1e-3, nan_ok=True)
    for mine, sample in zip(found[name]["samples"], task["samples"], strict=True):
      assert mine["log_likelihoods"] == pytest.approx(sample["log_likelihoods"], abs=2e-3)


def test_rolling_and_generation_are_those_of_transformers_in_the_harness(tiny):
  from lm_eval.api.instance import Instance
  from lm_eval.models.huggingface import HFLM

  from train.export import export_run
  from train.lm_eval_adapter import open_lm

  folder, _ = tiny
  export_run(folder / "run", folder / "model")
  theirs = HFLM(pretrained=str(folder / "model"), dtype="float32", batch_size=1, device="cpu")
  theirs._max_length = 96
  config = recipe.get_config(str(folder / "run"))
  config.suite.max_length = 96
  ours = open_lm(config.to_dict())

  def instances(kind, *arguments):
    return [Instance(kind, {}, pair, i) for i, pair in enumerate(arguments)]

  texts = [(" ".join(make_lm_eval.texts())[:700],), ("A short one.",)]
  rolled = instances("loglikelihood_rolling", *texts)
  expected = theirs.loglikelihood_rolling(rolled, disable_tqdm=True)
  assert ours.loglikelihood_rolling(rolled) == pytest.approx(expected, rel=1e-5)
  options = {"until": ["e", "\n\n"], "max_gen_toks": 16, "do_sample": False}
  prompts = [(text, options) for text in ("The river", "A very long story of a river " * 12)]
  asked = instances("generate_until", *prompts)
  assert ours.generate_until(asked) == theirs.generate_until(asked, disable_tqdm=True)


def test_generated_answers_and_their_scores_are_those_of_the_harness(tiny):
  from lm_eval.models.huggingface import HFLM

  from train.export import export_run

  folder, _ = tiny
  export_run(folder / "run", folder / "model")
  lm = HFLM(pretrained=str(folder / "model"), dtype="float32", batch_size=1, device="cpu")
  answers = {"correct_answers": ["the river, the and"], "incorrect_answers": ["A e", "in it"]}
  rows = [{"question": question} | answers for question in ("What rose?", "Who was late?")]
  harness.write_rows({"truthfulqa_gen": rows}, folder)
  theirs = harness.run(lm, folder, ["truthfulqa_gen"], {}, folder)["truthfulqa_gen"]
  config = suite(folder / "run", folder, "truthfulqa_gen", max_tokens=256)
  assert main.run(config, folder / "out") == main.DONE
  task = results.read(folder / "out")["tasks"]["truthfulqa_gen"]
  for item, sample in zip(task["items"], theirs["samples"], strict=True):
    assert (item["text"], item["prompt"]) == (sample["text"], sample["arguments"][0])
  assert len(theirs["metrics"]) == 12
  for name, value in theirs["metrics"].items():
    assert task["metrics"][name]["value"] == pytest.approx(value, abs=1e-6), name


def test_smollm2_on_real_sets_gives_the_harness_numbers(tmp_path, monkeypatch):
  from lm_eval.models.huggingface import HFLM

  from train.export import export_run, import_model

  data = os.environ.get("STRAITS_TEST_DATA")
  if not data:
    pytest.skip("STRAITS_TEST_DATA names no folder of real data")
  rows = harness.real_rows(Path(data) / "eval", 4, ["anatomy"])
  harness.write_rows(rows, tmp_path)
  import_model(smollm2.gguf_file(), tmp_path / "run")
  export_run(tmp_path / "run", tmp_path / "model")
  names = ["hellaswag", "mmlu", "truthfulqa_mc1", "truthfulqa_mc2", "piqa", "lambada"]
  names += ["crows_pairs", "bbq"]
  model = HFLM(pretrained=str(tmp_path / "model"), dtype="float32", batch_size=4, device="cpu")
  theirs = harness.run(model, tmp_path, names, {"mmlu": 5}, tmp_path)
  config = suite(tmp_path / "run", tmp_path, ",".join(names))
  config["suite"]["sets"]["mmlu"]["shots"] = 5
  one = make_mesh(MeshConfig(1, 1, 1, 1), jax.devices()[:1])
  monkeypatch.setattr(evaluate, "make_mesh", lambda _: one)
  assert main.run(config, tmp_path / "out") == main.DONE
  compared = compare(results.read(tmp_path / "out")["tasks"], theirs)
  assert len(compared) == 16, compared

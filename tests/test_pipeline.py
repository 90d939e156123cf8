"""Stages in their order, taken up again, stopped and failed; embedded comparisons."""

import dataclasses
import importlib
import json
from pathlib import Path
from unittest import mock

import pytest
from absl import flags
from jax.sharding import AbstractMesh
from ml_collections import config_flags

from configs import pipeline as recipes
from configs import ppo_37b, reward_37b, sft_37b
from data import comparisons
from data.conversations import prompt_text
from data.heldout import is_held_out
from model.sharding import MESH_AXES
from train import loop, main, pipeline, ppo


def run(workdir, codes, config=None):
  """The stages that were started, with an exit code for each."""
  started = []

  def stage(arguments, at, stop):
    started.append(arguments)
    Path(arguments[6]).mkdir(parents=True, exist_ok=True)
    return codes[len(started) - 1]

  with (
    mock.patch("train.pipeline.run_stage", stage),
    mock.patch("train.pipeline.write_corpus", lambda folder: folder),
    mock.patch("train.pipeline.table", lambda workdir, order: []),
  ):
    code = main.run((config or recipes.get_config()).to_dict(), workdir)
  return code, started


def test_stages_run_in_order_stop_and_go_on(tmp_path):
  code, first = run(tmp_path, [0, 0, 75])
  assert code == main.STOPPED
  names = [Path(arguments[6]).name for arguments in first]
  assert names == ["pretrain", "sft", "reward"]
  assert first[1][4].endswith(f"configs/sft.py:{tmp_path / 'pretrain'}")
  assert f"--config.data.sources.main.path={tmp_path}/corpus/comparisons.jsonl" in first[2]
  code, rest = run(tmp_path, [0] * 9)
  assert code == main.DONE
  names = [Path(arguments[6]).name for arguments in rest]
  assert names == ["reward", "ppo", "calibrate", "evaluate_base", "evaluate"]
  assert f"--config.reward.models=('{tmp_path / 'reward'}',)" in rest[1]
  assert f"--config.pairs={tmp_path / 'reward'}" in rest[2]
  assert run(tmp_path, []) == (main.DONE, [])


def test_a_stage_that_fails_is_named(tmp_path, capsys):
  code, started = run(tmp_path, [0, 2])
  assert code == main.BAD_INPUT and len(started) == 2
  assert "the stage sft ended with exit code 2" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["laptop", "37b"])
def test_recipes_exist_and_a_wrong_one_is_refused(tmp_path, size):
  config = recipes.get_config(size)
  parsed = pipeline.parse_config(config.to_dict())
  assert set(parsed.order) == set(parsed.stages)
  config.stages.sft.recipe = "../../evil"
  with pytest.raises(ValueError, match="no recipe"):
    pipeline.parse_config(config.to_dict())
  with pytest.raises(ValueError, match="no pipeline"):
    recipes.get_config("70b")


def as_typed(command):
  """The recipe of a stage's command line, as the command itself reads it."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=values)
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  with mock.patch("sys.argv", command[2:]):  # where ml_collections looks for keys to set
    values(command[2:])
  return values.config


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_every_stage_of_the_reference_plan_parses_and_fits_its_mesh(tmp_path):
  config = pipeline.parse_config(recipes.get_config("37b").to_dict())
  places = {name: str(tmp_path / name) for name in config.order}
  parsed = {}
  for name in config.order:
    recipe = as_typed(pipeline.command(config.stages[name], places, tmp_path / name))
    module = importlib.import_module(f"train.{recipe.stage}")
    parsed[name] = module.parse_config(recipe.to_dict())
  assert [parsed[n].train.init_from for n in ("sft", "reward", "ppo")] == [
    places["pretrain"], places["sft"], places["sft"],
  ]  # fmt: skip
  assert parsed["ppo"].reward.models == (places["reward"],)
  assert parsed["evaluate"].run == parsed["calibrate"].run == places["ppo"]
  assert parsed["calibrate"].pairs == places["reward"]
  for name in ("pretrain", "sft", "reward", "ppo"):
    one = parsed[name]
    mesh = AbstractMesh(dataclasses.astuple(one.mesh.resolve(128)), MESH_AXES)
    (ppo if name == "ppo" else loop).check_sizes(one, mesh)
    assert one.model == parsed["pretrain"].model and one.compute.dtype == "float16"
  # 150,000 examples twice, 50,000 comparisons once, of so many tokens as the recipes suppose.
  tokens = {n: parsed[n].data.batch_size * parsed[n].data.seq_len * parsed[n].train.steps
            for n in ("sft", "reward")}  # fmt: skip
  assert tokens["sft"] == pytest.approx(2 * 150_000 * 1_000, rel=0.01)
  assert tokens["reward"] == pytest.approx(50_000 * 1_200, rel=0.02)


def test_a_recipe_of_37b_takes_what_an_earlier_stage_wrote(tmp_path):
  source = sft_37b.get_config().to_dict()
  source["model"]["num_layers"] = 3
  source["data"]["tokenizer"] = "its/tokenizer.json"
  (tmp_path / "config.json").write_text(json.dumps(source))
  for module in (reward_37b, ppo_37b):
    config = module.get_config(str(tmp_path))
    assert config.model.num_layers == 3 and config.data.tokenizer == "its/tokenizer.json"


def test_embedded_comparisons_speak_of_three_dimensions(tmp_path):
  path = comparisons.write(tmp_path / "c.jsonl", 300)
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert len(rows) == 300
  assert all(row["chosen"] != row["rejected"] for row in rows)
  said = [label for row in rows for label in row["labels"]]
  assert {name: said.count(name) > 50 for name in set(said)} == {
    "helpfulness": True, "harmlessness": True, "honesty": True,
  }  # fmt: skip


def test_fine_tuning_leaves_comparisons_to_the_reward_model():
  """Prompts are held out by one hash, and the reward model learns of none that it has seen."""
  (fraction,) = (
    float(change.partition("=")[2])
    for change in recipes.get_config().stages.sft.changes
    if change.startswith("data.heldout_fraction=")
  )
  prompts = [[{"role": "user", "content": row["prompt"]}] for row in comparisons.comparisons()]
  unseen = [text for text in map(prompt_text, prompts) if is_held_out(text, fraction)]
  held_out = [text for text in unseen if is_held_out(text, 0.1)]  # of configs/reward.py
  assert len(unseen) - len(held_out) > 800 and len(held_out) > 200

"""Stages in their order, taken up again, stopped and failed; embedded comparisons."""

import json
from pathlib import Path
from unittest import mock

import pytest

from configs import pipeline as recipes
from data import comparisons
from train import main, pipeline


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


def test_embedded_comparisons_speak_of_three_dimensions(tmp_path):
  path = comparisons.write(tmp_path / "c.jsonl", 300)
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert len(rows) == 300
  assert all(row["chosen"] != row["rejected"] for row in rows)
  said = [label for row in rows for label in row["labels"]]
  assert {name: said.count(name) > 50 for name in set(said)} == {
    "helpfulness": True, "harmlessness": True, "honesty": True,
  }  # fmt: skip

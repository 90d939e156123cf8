"""What transformers made goes through every stage, and what comes out is again a model of its."""

import json
from unittest import mock

import pytest

from configs import continued, evaluate, sample
from configs import reward as reward_recipe
from configs import sft as sft_recipe
from tests import base_run, harness
from tests.base_run import on_one_device  # noqa: F401
from tests.compiled import compiled_once  # noqa: F401
from tests.fixtures import make_chat, make_hf, make_lm_eval
from tests.test_reward import plant
from train import export, main, results

pytestmark = pytest.mark.peers
STEPS = 2


@pytest.fixture(autouse=True)
def on_one():
  with (
    mock.patch("train.pretrain.make_mesh", base_run.one_device),
    mock.patch("train.sample.make_mesh", base_run.one_device),
    mock.patch("train.evaluate.make_mesh", base_run.one_device),
  ):
    yield


def publish(folder, name):
  """A directory of transformers: a random model of a family, with a tokenizer for chats."""
  with mock.patch.dict(make_hf.SIZES, vocab_size=base_run.MODEL.vocab_size):
    make_hf.make_model(name).save_pretrained(folder)
  fixture = json.loads(make_chat.FILE.read_text())
  (folder / "tokenizer.json").write_text(fixture["tokenizer"])
  (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')


def done(config, workdir):
  config.log.peak_flops = 1e12
  assert main.run(config.to_dict(), workdir) == main.DONE
  return workdir


def exported(run, out):
  """Exports a run; transformers gives its logits, or that raises."""
  said = export.export_run(run, out)
  assert "read back with the same logits (transformers: " in said and "not installed" not in said


@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen3"])
def test_a_family_goes_through_every_stage(tmp_path, name, capsys):
  publish(tmp_path / "published", name)
  run = tmp_path / "run"
  export.import_model(tmp_path / "published", run)

  (tmp_path / "docs.txt").write_text("\n\n".join(make_lm_eval.texts()))
  config = continued.get_config(str(run))
  config.data.sources.main.path = str(tmp_path / "docs.txt")
  config.data.update(seq_len=32, batch_size=2, streams=2)
  config.train.update(steps=STEPS, microbatches=1)
  config.optimizer.warmup_steps = 1
  config.sample.update(prompts=("A river",), max_tokens=4)
  exported(done(config, tmp_path / "more"), tmp_path / "more-out")

  talks = [{"messages": make_chat.turns(f"{i}", "one two")} for i in range(24)]
  (tmp_path / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
  config = sft_recipe.get_config(str(run))
  base_run.shrink(config)
  config.data.update(sources={"main": str(tmp_path / "talks.jsonl")}, heldout_fraction=0.3)
  config.train.steps = STEPS
  config.optimizer.warmup_steps = 1
  config.sample.update(prompts=2, max_tokens=4)
  tuned = done(config, tmp_path / "sft")
  exported(tuned, tmp_path / "sft-out")

  config = reward_recipe.get_config(str(tuned))
  base_run.shrink(config)
  pairs = plant(tmp_path / "pairs.jsonl", 60, sorted(config.score.weights))
  config.data.sources.main.path = str(pairs)
  config.data.update(seq_len=128, heldout_fraction=0.3, exclude_prompts_of=None)
  config.train.steps = STEPS
  config.optimizer.warmup_steps = 1
  config.score.update(prompts=4, max_tokens=4)
  export.export_run(done(config, tmp_path / "reward"), tmp_path / "reward-out")

  (tmp_path / "prompts.txt").write_text("A river\n")
  config = sample.get_config(str(tuned))
  config.update(prompts=str(tmp_path / "prompts.txt"), max_tokens=4, slots=2, chunk=2)
  assert main.run(config.to_dict(), tmp_path / "answers") == main.DONE
  assert (tmp_path / "answers" / "samples.jsonl").read_text().count("\n") == 1

  harness.write_rows(make_lm_eval.ROWS, tmp_path)
  config = evaluate.get_config(str(tuned))
  config.suite.update(folder=str(tmp_path), tasks="piqa", batch_tokens=256)
  config.suite.sets.piqa.path = "piqa.jsonl"
  assert main.run(config.to_dict(), tmp_path / "evaluated") == main.DONE
  assert results.read(tmp_path / "evaluated")["tasks"]["piqa"]["items"]

"""A folder that stages of post-training begin with: a tiny model with a tokenizer for chats."""

import dataclasses
import json
from pathlib import Path
from unittest import mock

import jax
import pytest

from model.params import param_specs
from model.sharding import MeshConfig, make_mesh
from tests.build import model_config, numpy_params
from tests.fixtures import make_chat
from train.checkpoint import Checkpointer

MODEL = model_config(vocab_size=300, qk_norm=False)


def make(folder: Path, seed: int = 0) -> Path:
  """Writes the folder as an import would, and returns it."""
  fixture = json.loads(make_chat.FILE.read_text())
  (folder / "tokenizer").mkdir(parents=True)
  tokenizer = folder / "tokenizer" / "tokenizer.json"
  tokenizer.write_text(fixture["tokenizer"])
  checkpoints = Checkpointer(folder / "checkpoints")
  checkpoints.save_weights(0, {"model": numpy_params(param_specs(MODEL), seed)}, {})
  checkpoints.close()
  data = {"tokenizer": str(tokenizer), "eot": "</s>", "seq_len": 64}
  recipe = {"stage": "import", "model": dataclasses.asdict(MODEL), "data": data}
  (folder / "config.json").write_text(json.dumps(recipe))
  return folder


def shrink(config) -> None:
  """Makes a recipe of post-training one of seconds."""
  config.data.update(chat_template="chatml", seq_len=64, batch_size=8)
  config.compute.update(loss_chunks=2)
  config.optimizer.warmup_steps = 2
  config.checkpoint.every = 4
  config.eval.update(every=8, batch_size=8)
  config.log.peak_flops = 1e12


def one_device(config: MeshConfig):
  return make_mesh(dataclasses.replace(config, fsdp=1), jax.devices()[:1])


@pytest.fixture(scope="module", autouse=True)
def on_one_device(compiled_once):
  """What eight devices add is tested elsewhere."""
  with (
    mock.patch("train.sft.make_mesh", one_device),
    mock.patch("train.reward.make_mesh", one_device),
    mock.patch("train.dpo.make_mesh", one_device),
  ):
    yield

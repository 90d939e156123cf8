"""A tiny policy with words for tokens, and recipes on it: what the tests of stages by RL share."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import tokenizers
from ml_collections import ConfigDict

from configs import ppo
from model.heads import scorer_specs
from model.params import param_specs
from model.sharding import MeshConfig, make_mesh
from tests.build import model_config, numpy_params
from train import reward_model
from train.checkpoint import Checkpointer

WORDS = tuple("abcdefghijklmno")
STOP = "</s>"
MODEL = model_config(vocab_size=len(WORDS) + 1, qk_norm=False, d_model=32, head_dim=8, d_ff=64)


def make(folder: Path, seed: int = 0, model=MODEL) -> Path:
  """Writes the folder of a random policy as an import would, with prompts; returns it."""
  (folder / "tokenizer").mkdir(parents=True)
  vocab = {word: i for i, word in enumerate((STOP, *WORDS))}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="a"))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer.add_special_tokens([STOP])
  path = folder / "tokenizer" / "tokenizer.json"
  tokenizer.save(str(path))
  checkpoints = Checkpointer(folder / "checkpoints")
  checkpoints.save_weights(0, {"model": numpy_params(param_specs(model), seed)}, {})
  checkpoints.close()
  data = {"tokenizer": str(path), "eot": STOP, "seq_len": 16}
  recipe = {"stage": "import", "model": dataclasses.asdict(model), "data": data}
  (folder / "config.json").write_text(json.dumps(recipe))
  prompts = [f"{a} {b}" if b else a for a in WORDS[:5] for b in ("", "a", "b d")]
  (folder / "prompts.jsonl").write_text(
    "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
  )
  return folder


def make_reward_model(path, folder, seed):
  """A random reward model of two dimensions, with a scale, and its parameters."""
  specs = scorer_specs(MODEL, 2)
  rng = np.random.default_rng(seed)
  params = numpy_params(specs, seed) | {
    "normalization": {
      name: rng.uniform(0.5, 1.5, 2).astype(np.float32)
      for name in ("mean_S", "std_S", "weight_S", "temperature_S")
    }
  }
  data = {
    "tokenizer": str(folder / "tokenizer" / "tokenizer.json"), "eot": STOP,
    "chat_template": None, "seq_len": 16,
  }  # fmt: skip
  reward_model.save(path, params, MODEL, ("good", "kind"), data)
  return params


def recipe(folder: Path, function, **sections) -> ConfigDict:
  """A recipe of seconds on that policy; `sections` are changes to it."""
  config = ppo.get_config(str(folder))
  config.data.update(
    path=str(folder / "prompts.jsonl"),
    seq_len=11, response_tokens=6, text_tokens=4, batch_size=16,
  )  # fmt: skip
  config.compute.update(loss_chunks=1)
  config.reward.update(function=function, models=(), no_stop="keep")
  config.kl.update(beta=0.05)
  config.kl.target = None
  config.optimizer.update(peak_lr=3e-3)
  config.critic.optimizer.update(peak_lr=1e-2)
  config.train.steps = 4
  config.checkpoint.every = 2
  config.log.peak_flops = 1e12
  config.mesh.update(data=1, fsdp=-1)
  for name, changes in sections.items():
    config[name].update(changes)
  return config


def one_device(config: MeshConfig):
  """The mesh of a test that is not about meshes."""
  return make_mesh(MeshConfig(1, 1, 1, 1), jax.devices()[:1])

"""PPO on a policy's own responses, by a reward model or by a Python function.

    python -m train.main --config configs/ppo.py             (runs/sft by the reward of runs/reward)
    python -m train.main --config configs/ppo.py:runs/mine --workdir runs/better \\
      --config.data.path='prompts/*.jsonl'

The hyper-parameters are those of the definition: lm-human-preferences' and InstructGPT's. A reward
of one's own is a function in a config file that derives from this one, as in
`configs/ppo_function.py`. `docs/post_training.md` says what each number of the log is.
"""

import os

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import quickstart
from configs.sft import read_source, tokenizer_of


def get_config(folder: str = "runs/sft") -> ConfigDict:
  return derived(quickstart.get_config(), folder, read_source(folder))


def derived(config: ConfigDict, folder: str, source: dict) -> ConfigDict:
  """The recipe with the compute of `config`, of the run `source` in a folder."""
  config.stage = "ppo"
  config.model = source["model"]
  config.data = {
    "path": os.path.join(folder, "corpus", "instructions.jsonl"),
    "tokenizer": tokenizer_of(folder, source),
    "eot": source["data"]["eot"],
    "chat_template": source["data"].get("chat_template", placeholder(str)),
    "seq_len": 128,
    "response_tokens": 64,
    "text_tokens": 16,
    "batch_size": 64,
  }
  config.reward = {
    "function": placeholder(object),
    "models": ("runs/reward",),
    "ensemble": "mean",
    "weights": {},
    "clip": 10.0,
    "no_stop": "score",
    "no_stop_value": -1.0,
    "bad_rows": "stop",
  }
  config.rollout = {"temperature": 1.0, "layout": "training", "samples": 1}
  config.kl = {
    "beta": 0.15,
    "target": 6.0,
    "horizon": 10_000,
    "where": "reward",
    "estimator": "k1",
  }
  config.advantage = {
    "method": "gae",
    "gamma": 1.0,
    "lam": 0.95,
    "whiten": True,
    "convention": "straits",
  }
  config.clip = {"ratio": 0.2, "value": 0.2, "value_coefficient": 0.1}
  config.reuse = {"epochs": 4, "minibatches": 1, "kl_stop": placeholder(float)}
  config.lora = {"rank": 0, "alpha": 16.0, "targets": ("query", "key", "value", "out")}
  config.limits = {
    "kl": 50.0,
    "reward_drop": placeholder(float),
    "window": 10,
    "first_ratio": 1e-3,
  }
  config.optimizer.update(
    peak_lr=1e-5, final_lr=0.0, warmup_steps=0, b2=0.999, eps=1e-5, weight_decay=0.0
  )
  config.critic = {
    "init_from": placeholder(str),
    "optimizer": ConfigDict(config.optimizer.to_dict()),
  }
  config.train.steps = 100
  config.train.init_from = folder
  config.average.fraction = 0.0
  config.checkpoint.every = 10
  config.log.every = 1
  config.sample = {"kept": 8}
  del config.loss, config.eval
  return config

"""PPO by a Python function: the quickstart's model learns to write prose and less code.

    python -m train.main --config configs/quickstart.py          (once)
    python -m train.main --config configs/ppo_function.py

The prompts are the first words of the corpus' documents, the reward is the share of letters and
spaces. For a reward of one's own, copy this file and change `reward`: it gets two lists of texts
and gives a number each, or {dimension: numbers}. It is the file that is run, and never a name in a
saved config.
"""

import os

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import ppo


def reward(prompts: list[str], responses: list[str]) -> list[float]:
  """The share of letters and spaces in each response."""
  del prompts
  return [sum(c.isalpha() or c == " " for c in text) / max(len(text), 1) for text in responses]


def get_config(folder: str = "runs/quickstart") -> ConfigDict:
  config = ppo.get_config(folder)
  config.data.path = os.path.join(folder, "corpus", "embedded.jsonl")
  config.data.chat_template = placeholder(str)
  config.data.update(seq_len=49, response_tokens=32)
  config.reward.update(function=reward, models=(), no_stop="keep")
  config.kl.update(beta=0.02, target=6.0)
  config.optimizer.peak_lr = 1e-4
  config.critic.optimizer.peak_lr = 3e-4
  config.train.steps = 40
  return config

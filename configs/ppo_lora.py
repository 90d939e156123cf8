"""PPO with adapters alone: an imported model learns to answer in short words, and stays fluent.

    python -m train.export import SRC runs/smollm2               (once)
    python -m train.main --config configs/ppo_lora.py:runs/smollm2 --workdir runs/short-words \\
      --config.data.path='prompts/*.jsonl'

The reward is the share of words of at most five letters, which readability formulas go by. Policy
and reference share a trunk, as the critic's does not with them. `reference_nll` in the log is of
the answers under the model that was imported: its exponential is their perplexity.
`docs/ppo.md` has what became of SmolLM2-135M.
"""

import re

from ml_collections import ConfigDict

from configs import ppo

LETTERS = 5
WORDS = 5  # an answer of fewer is worth nothing


def reward(prompts: list[str], responses: list[str]) -> list[float]:
  """The share of short words in each response."""
  del prompts
  found = [re.findall(r"[^\W\d_]+", text) for text in responses]
  return [
    sum(len(word) <= LETTERS for word in words) / len(words) if len(words) >= WORDS else 0.0
    for words in found
  ]


def get_config(folder: str = "runs/smollm2") -> ConfigDict:
  config = ppo.get_config(folder)
  config.data.path = "prompts/*.jsonl"
  config.data.update(chat_template="chatml", seq_len=64, response_tokens=32, batch_size=24)
  config.reward.update(function=reward, models=(), no_stop="keep")
  config.kl.update(beta=0.02)
  config.kl.target = None
  config.reuse.update(epochs=1, minibatches=4)
  config.lora.rank = 8
  config.optimizer.peak_lr = 1e-3
  config.critic.optimizer.peak_lr = 1e-3
  config.train.steps = 12
  return config

"""PPO with adapters alone: an imported model learns to answer in short words.

    python -m train.export import SRC runs/smollm2               (once)
    python -m train.main --config configs/ppo_lora.py:runs/smollm2 --workdir runs/short-words \\
      --config.data.path='prompts/*.jsonl'

The reward is the share of words of at most five letters, which readability formulas go by, in
units of about its spread among SmolLM2-135M's answers: a critic's first values are of that size.
Policy and reference share a trunk. `reference_nll` in the log is of the answers under the model
that was imported: its exponential is their perplexity. `docs/ppo.md` has what became of it.
"""

import re

from ml_collections import ConfigDict

from configs import ppo

LETTERS = 5
WORDS = 5  # an answer of fewer is worth nothing
MEAN, SPREAD = 0.62, 0.15


def short_words(text: str) -> float:
  """The share of short words in a text; 0 in one of hardly any words."""
  words = re.findall(r"[^\W\d_]+", text)
  return sum(len(word) <= LETTERS for word in words) / len(words) if len(words) >= WORDS else 0.0


def reward(prompts: list[str], responses: list[str]) -> list[float]:
  del prompts
  return [(short_words(text) - MEAN) / SPREAD for text in responses]


def get_config(folder: str = "runs/smollm2") -> ConfigDict:
  config = ppo.get_config(folder)
  config.data.path = "prompts/*.jsonl"
  config.data.update(chat_template="chatml", seq_len=36, response_tokens=16, batch_size=48)
  config.compute.scan_layers = True  # 30 layers compile in seconds
  config.reward.update(function=reward, models=(), no_stop="keep")
  config.kl.update(beta=0.05)
  config.kl.target = None
  config.reuse.update(epochs=2, minibatches=1)
  config.lora.rank = 8
  config.lora.targets = ("query", "key", "value", "out", "gate", "up", "down")
  config.optimizer.update(peak_lr=1e-3, warmup_steps=4)
  config.critic.optimizer.update(peak_lr=1e-3)
  config.train.steps = 25
  config.checkpoint.update(every=5, keep_every=5)  # fluency goes before reward stops to rise
  return config

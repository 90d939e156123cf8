"""A reward model on a fine-tuned run, from comparisons rated on one or several dimensions.

    python -m train.main --config configs/reward.py:runs/sft \\
      --config.data.sources.main.path='comparisons/*.jsonl'

The trunk begins as the weights of the folder that is named, whose answers also set the scale of the
scores, and whose prompts are left out. `data/pairs.py` says which rows there can be. Rows that only
say which answer was chosen speak of `--config.data.sources.main.dimension`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import sft


def get_config(folder: str = "runs/sft") -> ConfigDict:
  return derived(sft.get_config(folder), folder, sft.read_source(folder))


def derived(config: ConfigDict, folder: str, source: dict) -> ConfigDict:
  """The recipe from the one of fine-tuning, on the run `source` in a folder."""
  config.stage = "reward"
  config.data = {
    "sources": {"main": {"path": "comparisons/*.jsonl", "dimension": "helpfulness"}},
    "tokenizer": config.data.tokenizer,
    "eot": config.data.eot,
    "chat_template": source["data"].get("chat_template", config.data.chat_template),
    "seq_len": 512,
    "batch_size": 8,
    "max_segments": 32,
    "epochs": 1.0,
    "heldout_fraction": 0.1,
    "refuse": (),
    "scale": (1.0, 5.0),
    "exclude_prompts_of": folder if source["stage"] == "sft" else placeholder(str),
  }
  config.loss = {"margin": 0.0, "center": 0.01, "ties": "soft"}
  config.score = {
    "weights": {"helpfulness": 1.0, "harmlessness": 1.0, "honesty": 1.0},
    "reference": folder,
    "prompts": 128,
    "max_tokens": 96,
    "temperature": 1.0,
  }
  del config.sample
  config.optimizer.update(peak_lr=1e-3, final_lr=1e-4, warmup_steps=10)
  config.checkpoint.every = 100
  config.eval = {"every": 100, "batch_size": 8}
  return config

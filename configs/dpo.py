"""Direct preference optimization (DPO) of a fine-tuned run, on comparisons; no reward model.

    python -m train.main --config configs/dpo.py:runs/sft \\
      --config.data.sources.main.path='comparisons/*.jsonl'

The policy begins as the folder that is named, which is also the reference, and learns which of two
answers is the better one: by the weighted sum of the dimensions that a pair is rated on. Rows are
those of `configs/reward.py`; ties are left out. `--config.lora.rank=8` trains adapters alone.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import reward, sft


def get_config(folder: str = "runs/sft") -> ConfigDict:
  config = reward.get_config(folder)
  config.stage = "dpo"
  config.data.exclude_prompts_of = None  # a policy may learn more of a prompt that it has seen
  config.preference = dict(config.score.weights)
  del config.score
  config.reference = placeholder(str)
  config.loss = {"beta": 0.1, "label_smoothing": 0.0, "smoothing": "conservative"}
  config.sample = sft.get_config(folder).sample
  config.optimizer.update(peak_lr=2e-4, final_lr=2e-5, warmup_steps=10)
  return config

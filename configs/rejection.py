"""Rejection sampling: fine-tuning on the best of a policy's own responses.

    python -m train.main --config configs/rejection.py              (runs/sft, by runs/reward)
    python -m train.main --config configs/sft.py:runs/sft --workdir runs/rejection-sft \\
      --config.data.sources.main=runs/rejection/rows.jsonl

The first is `configs/best_of_n.py` and also writes rows: of each prompt the best response, where it
ended by itself and its reward is at least `keep.threshold`. A reward model's rewards have mean 0
and deviation 1 a dimension on its reference's answers, so that 0 is an average answer.
"""

from ml_collections import ConfigDict

from configs import best_of_n


def get_config(folder: str = "runs/sft") -> ConfigDict:
  config = best_of_n.get_config(folder)
  config.keep.update(rows=1, threshold=0.0)
  return config

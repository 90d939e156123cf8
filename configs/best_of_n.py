"""The best of n responses to every prompt, by reward models or by a Python function.

    python -m train.main --config configs/best_of_n.py              (runs/sft, by runs/reward)
    python -m train.main --config configs/best_of_n.py:runs/mine --workdir runs/best \\
      --config.data.path='prompts/*.jsonl' --config.rollout.samples=64

It ends with a table: the expected reward of the best of 1, 2, 4, ... with the most that its KL to
the policy can be. Responses are drawn from the whole distribution, as in `configs/ppo.py`, and a
reward of one's own is a function in a config file, as in `configs/ppo_function.py`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import ppo


def get_config(folder: str = "runs/sft") -> ConfigDict:
  base = ppo.get_config(folder)
  base.data.batch_size = 8
  base.rollout.samples = 16
  return ConfigDict(
    {
      "stage": "best_of_n",
      "seed": base.seed,
      "run": folder,
      "weights": placeholder(str),
      "step": placeholder(int),
      "model": base.model,
      "compute": base.compute,
      "mesh": base.mesh,
      "data": base.data,
      "reward": base.reward,
      "rollout": base.rollout,
      "counts": (1, 2, 4, 8, 16),
      "keep": {"rows": 0, "threshold": placeholder(float), "ended": True},
    }
  )

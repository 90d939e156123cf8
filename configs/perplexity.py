"""Loss and bits per byte of texts by a run, or by an imported model; of no benchmark.

    python -m train.main --config configs/perplexity.py:runs/ppo --workdir runs/perplexity \\
      --config.suite.heldout.docs='held/*.jsonl'
"""

from ml_collections import ConfigDict

from configs import evaluate


def get_config(run: str = "runs/quickstart") -> ConfigDict:
  config = evaluate.get_config(run)
  config.suite.tasks = ""
  config.suite.heldout = {"docs": "held/*.jsonl"}
  return config

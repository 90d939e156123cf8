"""A sweep over temperature and top-p: distinct-n and self-BLEU beside perplexity, as a table.

    python -m train.main --config configs/diversity.py
    python -m train.main --config configs/diversity.py:runs/smollm2 --workdir runs/sweep \\
      --config.sampler.prompts=prompts.jsonl --config.sampler.chat_template=model

Perplexity is that of what was sampled, under the model at temperature 1.
"""

from ml_collections import ConfigDict

from configs import pretrain, sample


def get_config(run: str = "runs/quickstart") -> ConfigDict:
  sampler = sample.get_config(run)
  sampler.update(completions=8, max_tokens=64)
  return ConfigDict(
    {
      "stage": "diversity",
      "sampler": sampler,
      "texts": pretrain.get_config().sample.prompts,
      "temperatures": (0.5, 0.7, 1.0, 1.3),
      "top_ps": (0.8, 0.9, 1.0),
    }
  )

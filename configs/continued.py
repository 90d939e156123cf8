"""Pretraining that goes on from given weights: an imported model, or another run's newest.

    python -m train.export import SmolLM2-135M runs/smollm2
    python -m train.main --config configs/continued.py:runs/smollm2 --workdir=runs/more \\
      --config.data.sources.main.path='documents/*.jsonl'

The architecture, the tokenizer and the end-of-text token are those of that folder, the rest is the
base recipe's at the size of a test; nothing was measured for it.
"""

from ml_collections import ConfigDict

from configs import pretrain
from configs.sft import read_source, tokenizer_of


def get_config(folder: str) -> ConfigDict:
  config = pretrain.get_config()
  source = read_source(folder)
  config.model = source["model"]
  config.data.tokenizer = tokenizer_of(folder, source)
  config.data.eot = source["data"]["eot"]
  config.data.update(seq_len=1_024, batch_size=32, streams=32, workers=0)
  config.compute.update(dtype="float32", remat="full")
  config.loss_scale.update(dynamic=False, initial=1.0)
  config.optimizer.update(peak_lr=1e-4, final_lr=1e-5, warmup_steps=100)
  config.train.update(steps=1_000, microbatches=8, init_from=folder)
  config.checkpoint.every = 100
  config.eval.update(every=100, batch_size=8, stride=512)
  return config

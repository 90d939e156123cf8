"""A small decoder on the documentation inside CPython, in under four minutes on two CPU cores.

python -m train.main --config configs/quickstart.py
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import pretrain


def get_config() -> ConfigDict:
  config = pretrain.get_config()
  config.model.update(
    vocab_size=4_096,
    d_model=256,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    d_ff=704,
    tie_embeddings=True,
    rope_theta=10_000.0,
  )
  config.compute.update(dtype="float32", scan_layers=False, remat="none", loss_chunks=4)
  config.data.sources = {"docs": {"path": "embedded", "weight": 1.0}}  # in place of the recipe's
  config.data.update(
    vocab_size=4_096,
    seq_len=256,
    batch_size=16,
    streams=4,
    workers=0,
    max_segments=16,
    open_bins=8,
    heldout_fraction=0.06,
    dedup_threshold=0.7,
  )
  config.optimizer.update(peak_lr=3e-3, final_lr=1e-4, warmup_steps=50)
  config.loss_scale.dynamic = False
  config.loss_scale.initial = 1.0
  config.train.update(steps=600, microbatches=1)
  config.average.every = 10
  config.checkpoint.update(every=100, keep_last=2, keep_every=placeholder(int))
  config.eval.update(every=200, batch_size=16, stride=128)
  config.sample.prompts = ("The ", "Return a new ", "If the argument is ")
  config.sample.max_tokens = 64
  return config

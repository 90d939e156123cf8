"""A small decoder on the documentation inside CPython, in under two minutes on two CPU cores.

    python -m train.main --config configs/quickstart.py

Expected: 1.973 held-out bits per byte, with averaged or raw weights (seed 0, Python 3.11, jax
0.10.2), in 1 min 3 s on two idle cores of an AMD EPYC, from an empty workdir, the tokenizer and
all else included (105 CPU-seconds). `docs/experiments.md` says what else was tried.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import pretrain


def get_config() -> ConfigDict:
  config = pretrain.get_config()
  config.model.update(
    vocab_size=2_048,
    d_model=192,
    num_layers=3,
    num_heads=3,
    num_kv_heads=1,
    head_dim=64,
    d_ff=512,
    tie_embeddings=False,
    rope_theta=10_000.0,
    embed_init_std=0.3,
  )
  config.compute.update(dtype="float32", scan_layers=False, remat="none", loss_chunks=1)
  config.data.sources = {"docs": {"path": "embedded", "weight": 1.0}}  # in place of the recipe's
  config.data.update(
    vocab_size=2_048,
    seq_len=256,
    batch_size=4,
    streams=4,
    workers=0,
    max_segments=16,
    open_bins=8,
    heldout_fraction=0.06,
    dedup_threshold=0.7,
  )
  config.optimizer.update(peak_lr=1e-2, final_lr=1e-3, warmup_steps=50)
  config.loss_scale.dynamic = False
  config.loss_scale.initial = 1.0
  config.train.update(steps=900, microbatches=1)
  config.average.every = 10
  config.checkpoint.update(every=300, keep_last=2, keep_every=placeholder(int))
  config.eval.update(every=450, batch_size=16, stride=128)
  config.sample.prompts = ("The", "Return a new", "If the argument is")
  config.sample.max_tokens = 64
  return config

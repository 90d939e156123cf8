"""The base recipe of pretraining: the reference run's hyper-parameters on one node of 8 GPUs.

A 1.2B decoder with the reference optimizer, precision, schedule and sequence length; every other
recipe derives from this one. Point it at documents and start it:

    python -m train.main --config configs/pretrain.py \\
      --config.data.sources.main.path='corpus/*.jsonl'

Expected: nothing was measured for this size; `configs/quickstart.py` and `configs/pretrain_37b.py`
say what is known of theirs. What the source of the reference run leaves open is marked "ours".
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      "stage": "pretrain",
      "seed": 0,
      "model": {
        "vocab_size": 65_536,
        "d_model": 2_048,
        "num_layers": 20,
        "num_heads": 16,
        "num_kv_heads": 8,
        "head_dim": 128,
        "d_ff": 5_632,
        "tie_embeddings": False,
        "qk_norm": True,  # ours: attention logits stay within fp16, and spikes are rarer
        "qkv_bias": False,
        "rope_theta": 500_000.0,  # ours: Llama 3's, for 8,192 tokens and more
        "rope_scaling": None,
        "sliding_window": placeholder(int),
        "attention_softcap": placeholder(float),
        "logit_softcap": placeholder(float),
        "norm_eps": 1e-5,
        "embed_init_std": 0.02,  # ours
      },
      "compute": {
        "dtype": "float16",
        "scan_layers": True,
        "remat": "full",
        "remat_save": (),
        "remat_offload": (),
        "attention": "auto",
        "max_segments": placeholder(int),
        "fuse_qkv": False,
        "gradients_in_order": False,
        "reduce_gradients_in_fp32": True,
        "loss_chunks": 8,
      },
      "mesh": {"data": 1, "fsdp": -1, "context": 1, "tensor": 1},
      "data": {
        "sources": {"main": {"path": "corpus/*.jsonl", "weight": 1.0}},  # weights are ours
        "tokenizer": "train",
        "vocab_size": 65_536,
        "eot": "<|endoftext|>",
        "seq_len": 8_192,
        "batch_size": 1_024,
        "streams": 128,
        "workers": 4,
        "prefetch": 2,
        "max_segments": 256,
        "open_bins": 64,
        "min_tokens": 0,
        "max_tokens": placeholder(int),
        "heldout_fraction": 0.001,
        "dedup_threshold": placeholder(float),
        "max_bad_lines": 1_000,
      },
      "optimizer": {
        "peak_lr": 1.5e-4,
        "final_lr": 1.5e-5,  # ours: a tenth of the peak
        "warmup_steps": 4_000,
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,  # ours
        "weight_decay": 0.1,
        "clip_norm": 1.0,
      },
      "loss_scale": {"dynamic": True, "initial": 65_536.0, "period": 2_000, "hysteresis": 2},
      "loss": {"z_loss": 1e-4},  # ours: PaLM's
      "train": {
        "steps": 25_000,
        "microbatches": 16,
        "max_skipped": 50,
        "init_from": placeholder(str),
        "xla_profile": "none",
        "xla_options": {},
      },
      "average": {"fraction": 0.1, "every": 1_000},
      "checkpoint": {"every": 1_000, "keep_last": 3, "keep_every": 10_000, "verify": True},
      "eval": {
        "every": 1_000,
        "batch_size": 64,
        "stride": 4_096,
        "files": placeholder(str),
        "sets": {},  # further ones by name
        "suite": None,  # benchmarks at the same steps: see configs/evaluate.py
      },
      "log": {"every": 10, "profile_every": 1_000, "peak_flops": placeholder(float)},
      "sample": {
        "prompts": ("The most important thing about", "In 1969,", "To solve the equation, first"),
        "max_tokens": 128,
        "temperature": 1.0,
        "top_p": 0.9,
      },
    }
  )

"""The reference run: a 37.1B decoder, 1.8T tokens, 128 H100s, about 11 weeks.

    python -m train.plan --config configs/pretrain_37b.py          (on a laptop, first)
    python -m data.executors --config my_corpus.py --workdir corpus --executor slurm ...
    python -m data.tokenizer train 'corpus/training/*-000000.array_record' corpus/tokenizer.json \\
      --vocab_size 65536
    python -m train.main --config configs/pretrain_37b.py --workdir /shared/37b   (on every node)

Expected, as published: 52% model FLOPs utilization, 214,577 steps of 8,388,608 tokens. No machine
of ours has run it; docs/plan.md says what its plan predicts, and how each setting of `compute` and
`train.xla_options` came to be. What the source leaves open (source weights, final learning rate,
Adam's epsilon, initialization, QK-norm, z-loss, RoPE's theta) is marked "ours", here or in
`configs/pretrain.py`.
"""

from ml_collections import ConfigDict

from configs import pretrain


def get_config() -> ConfigDict:
  config = pretrain.get_config()
  config.model.update(
    vocab_size=65_536, d_model=8_192, num_layers=52, num_heads=64, num_kv_heads=8, d_ff=22_016
  )
  # What fits in 71 GiB and saves the most recomputation for its bytes: docs/plan.md.
  config.compute.update(
    scan_layers=False,  # a loop's ends hide no collective; compiles for minutes, once
    attention="cudnn",  # before the run, check it on a node: python -m pytest tests/test_gpu.py
    max_segments=32,
    remat="selective",
    remat_save=(
      "inverse_rms",
      "qkv",
      "attention_out",
      "attention_lse",
      "attention_proj",
      "mlp_gate",
      "mlp_up",
      "loss_slope",
    ),
    fuse_qkv=True,
    gradients_in_order=True,
    loss_chunks=8,
  )
  config.mesh.update(data=1, fsdp=128)
  config.data.max_segments = 32  # the kernel launches for that many documents a row
  # What data.corpus makes: no document is read before the step that trains on it.
  weights = {"commoncrawl": 0.70, "web": 0.18, "academic": 0.08, "wikipedia": 0.04}  # ours
  config.data.sources = {
    name: {"path": f"corpus/training/{name}-*.array_record", "weight": weight}
    for name, weight in weights.items()
  }
  config.eval.sets = {name: f"corpus/heldout/{name}-*.array_record" for name in weights}
  config.data.heldout_fraction = 0.0
  config.data.tokenizer = "corpus/tokenizer.json"
  config.train.steps = 214_577  # 1.8e12 tokens / 8,388,608
  config.train.microbatches = 8  # one row of 8,192 tokens a GPU
  config.train.xla_profile = "h100"
  config.eval.batch_size = 128
  return config

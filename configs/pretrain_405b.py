"""A 405B decoder of Llama-3.1's shape on 4,096 H100s: what the plan says of growth beyond one pod.

    python -m train.plan --config configs/pretrain_405b.py --nodes 512
    python -m train.plan --config configs/pretrain_405b.py --growth --html growth.html

Nobody has trained it here. The shape is that of arXiv:2407.21783, data and schedule are the
reference run's; weights are sharded over the network (fsdp) and inside of nodes (tensor).
"""

from ml_collections import ConfigDict

from configs import pretrain_37b


def get_config() -> ConfigDict:
  config = pretrain_37b.get_config()
  config.model.update(
    vocab_size=128_256, d_model=16_384, num_layers=126, num_heads=128, num_kv_heads=8, d_ff=53_248
  )
  config.compute.update(
    scan_layers=True,
    remat_save=("attention_out", "attention_lse", "loss_slope"),
  )
  # More tensor parallelism would leave too few tokens a device to hide the gathers of its weights.
  config.mesh.update(data=4, fsdp=512, tensor=2)
  config.data.update(batch_size=2_048, streams=2_048)  # 16.8M tokens
  config.train.update(steps=894_070, microbatches=1)  # 15e12 tokens
  config.eval.batch_size = 2_048
  return config

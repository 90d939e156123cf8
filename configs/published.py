"""Published runs of others, as our own step would run them: what the plan's model is checked on.

    python -m train.plan --validate

fits and checks the model on them; docs/plan.md has the table. One of them alone:

    python -m train.plan --config configs/published.py:llama2_7b_8 --cluster a3high --nodes 1

Nothing here is for training: the data is of no account. A run's batch, mesh, precision and saved
activations are as published; our optimizer keeps as much state as theirs (fp32 weights and two
moments). Sources are in `train/published.json`.
"""

from ml_collections import ConfigDict

from configs import pretrain

# What MaxText's policies save for the backward pass, by our names.
MINIMAL_FLASH = (
  "qkv", "attention_out", "attention_lse", "attention_proj", "mlp_gate", "mlp_up",
)  # fmt: skip
DOTS_EXCEPT_MLP = ("qkv", "attention_out", "attention_lse", "attention_proj")
MAXTEXT_OPTIONS = {  # its scripts' XLA_FLAGS, of those that XLA still has
  "xla_gpu_enable_pipelined_all_gather": True,
  "xla_gpu_enable_pipelined_reduce_scatter": True,
  "xla_gpu_enable_pipelined_all_reduce": True,
  "xla_gpu_enable_while_loop_double_buffering": True,
  "xla_gpu_all_reduce_combine_threshold_bytes": 1_073_741_824,
  "xla_gpu_all_gather_combine_threshold_bytes": 134_217_728,
  "xla_gpu_reduce_scatter_combine_threshold_bytes": 67_108_864,
  "xla_disable_hlo_passes": "rematerialization",
}
LLAMA2_7B = {
  "vocab_size": 32_000, "d_model": 4_096, "num_layers": 32, "num_heads": 32, "num_kv_heads": 32,
  "d_ff": 11_008,
}  # fmt: skip
LLAMA2_70B = {
  "vocab_size": 32_000, "d_model": 8_192, "num_layers": 80, "num_heads": 64, "num_kv_heads": 8,
  "d_ff": 28_672,
}  # fmt: skip
LLAMA3_70B = LLAMA2_70B | {"vocab_size": 128_256}


def _run(model, *, seq_len, rows, data, fsdp, save, scan) -> ConfigDict:
  """A recipe of `rows` sequences a device in one microbatch; `save` empty saves no activations."""
  config = pretrain.get_config()
  config.model.update(model, qk_norm=False)
  config.compute.update(
    dtype="bfloat16",
    scan_layers=scan,
    remat="selective" if save else "full",
    remat_save=save,
    attention="cudnn",
    max_segments=2,
    reduce_gradients_in_fp32=False,
    loss_chunks=1,
  )
  config.loss_scale.update(dynamic=False, initial=1.0)
  config.loss.z_loss = 0.0
  config.mesh.update(data=data, fsdp=fsdp)
  batch = rows * data * fsdp
  config.data.update(seq_len=seq_len, batch_size=batch, streams=batch, max_segments=2)
  config.train.microbatches = 1
  config.train.xla_options = MAXTEXT_OPTIONS
  config.average.fraction = 0.0
  config.eval.batch_size = data * fsdp
  return config


def get_config(name: str) -> ConfigDict:
  seven = {"model": LLAMA2_7B, "seq_len": 4_096, "rows": 4, "save": MINIMAL_FLASH, "scan": False}
  runs = {
    # MaxText, configs/a3/llama_2_7b/{1,2,8}vm.sh: FSDP in a node, data parallel over nodes.
    "llama2_7b_8": seven | {"data": 1, "fsdp": 8},
    "llama2_7b_16": seven | {"data": 2, "fsdp": 8},
    "llama2_7b_64": seven | {"data": 8, "fsdp": 8},
    # gpu-recipes, llama3-1-70b-256gpus-a3u-bf16.yaml: save_dot_with_context_except_mlp.
    "llama3_70b_256": {
      "model": LLAMA3_70B, "seq_len": 8_192, "rows": 2, "data": 2, "fsdp": 128,
      "save": DOTS_EXCEPT_MLP, "scan": True,
    },
    # AXLearn's fuji-7B-v2: 1,024 rows of 4,096 tokens on 256 GPUs.
    "axlearn_7b_256": seven | {"data": 32, "fsdp": 8},
    "llama2_70b_64": {
      "model": LLAMA2_70B, "seq_len": 4_096, "rows": 2, "data": 1, "fsdp": 64,
      "save": DOTS_EXCEPT_MLP, "scan": True,
    },
  }  # fmt: skip
  if name not in runs:
    raise ValueError(f"published run {name!r} is unknown; known: {', '.join(runs)}.")
  return _run(**runs[name])

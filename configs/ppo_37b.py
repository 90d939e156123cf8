"""PPO of the reference run's model on 128 H100s: policy, reference, critic and reward of 37B each.

    python -m train.plan --config configs/ppo_37b.py                           (on a laptop, first)
    python -m train.main --config configs/ppo_37b.py:RUNS/sft --workdir=RUNS/ppo \\
      --config.data.path='prompts/*.jsonl' --config.reward.models="('RUNS/reward',)"

The source says PPO and no more; the numbers are ours: 512 prompts an iteration and 256,000
responses as InstructGPT had them, up to 1,024 tokens of prompt and of response. A matrix lies over
the GPUs of a node, `tensor=8`, and the model over 16 nodes; for the rollout every node has a copy,
so that a token of a response waits for no network. No machine of ours has run it; docs/plan.md has
its plan.
"""

from ml_collections import ConfigDict

from configs import ppo, pretrain_37b, sft, sft_37b

RESPONSES = 256_000


def get_config(folder: str = "runs/sft_37b") -> ConfigDict:
  source = sft.source_or(folder, sft_37b.get_config())
  config = ppo.derived(pretrain_37b.get_config(), folder, source)
  config.mesh.update(data=1, fsdp=16, tensor=8)
  config.data.update(path="prompts/*.jsonl", seq_len=2_048, response_tokens=1_024, batch_size=512)
  config.compute.update(
    scan_layers=True,  # two models an update, 52 layers each
    remat_save=("qkv", "attention_out", "attention_lse", "mlp_gate", "mlp_up"),
    max_segments=2,  # a row is one text; the kernel wants at least two
  )
  config.rollout.layout = "gathered"
  config.reward.models = ("runs/reward_37b",)
  config.reward.weights = {"helpfulness": 1.0, "harmlessness": 1.0, "honesty": 1.0}
  config.train.microbatches = 2
  config.train.steps = RESPONSES // config.data.batch_size
  config.checkpoint.update(every=20, keep_every=None)
  return config

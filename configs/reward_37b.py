"""The reference run's reward model: 50,000 comparisons on three dimensions, on 128 H100s.

    python -m train.plan --config configs/reward_37b.py                        (on a laptop, first)
    python -m train.main --config configs/reward_37b.py:RUNS/sft --workdir=RUNS/reward

The source says how many comparisons there were, and that they were rated on helpfulness,
harmlessness and honesty; the rest is ours: one epoch of pairs of 1,200 tokens or so, packed in
rows of 8,192, at InstructGPT's learning rate. No machine of ours has run it; docs/plan.md has its
plan.
"""

from ml_collections import ConfigDict

from configs import reward, sft, sft_37b

COMPARISONS, TOKENS = 50_000, 1_200


def get_config(folder: str = "runs/sft_37b") -> ConfigDict:
  source = sft.source_or(folder, sft_37b.get_config())
  config = reward.derived(sft_37b.derived(folder, source), folder, source)
  config.data.update(
    seq_len=8_192,
    batch_size=128,
    max_segments=config.compute.max_segments,
    heldout_fraction=0.05,
  )
  config.optimizer.update(peak_lr=9e-6, final_lr=9e-7, warmup_steps=5)
  config.train.steps = sft_37b.steps(COMPARISONS * TOKENS, config)
  config.checkpoint.every = 20
  config.eval.update(every=20, batch_size=128)
  config.score.update(prompts=128, max_tokens=512)
  return config

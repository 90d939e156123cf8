"""Fine-tuning of the reference run's model: 150,000 curated examples, on 128 H100s.

    python -m train.plan --config configs/sft_37b.py                           (on a laptop, first)
    python -m train.main --config configs/sft_37b.py:RUNS/pretrain --workdir=RUNS/sft \\
      --config.data.sources.main='instructions/*.jsonl'

The source of the reference run says how many examples there were, and no more; the rest is ours:
two epochs of examples of 1,000 tokens or so in packed rows of 8,192, one row a GPU, at a fifteenth
of the learning rate of pretraining. No machine of ours has run it; docs/plan.md has its plan.
"""

from ml_collections import ConfigDict

from configs import pretrain_37b, sft

EXAMPLES, TOKENS, EPOCHS = 150_000, 1_000, 2


def get_config(folder: str = "runs/pretrain_37b") -> ConfigDict:
  return derived(folder, sft.source_or(folder, pretrain_37b.get_config()))


def derived(folder: str, source: dict) -> ConfigDict:
  """The recipe on the run `source` in a folder."""
  config = sft.derived(pretrain_37b.get_config(), folder, source)
  config.data.sources.main = "instructions/*.jsonl"
  config.data.update(
    chat_template="plain",
    seq_len=8_192,
    batch_size=128,
    max_segments=config.compute.max_segments,
    epochs=float(EPOCHS),
    heldout_fraction=0.01,
    dedup_threshold=0.8,
  )
  config.optimizer.update(peak_lr=1e-5, final_lr=1e-6, warmup_steps=10)
  config.train.microbatches = 1
  config.train.steps = steps(EXAMPLES * TOKENS * EPOCHS, config)
  config.checkpoint.update(every=50, keep_every=None)
  config.eval.update(every=50, batch_size=128)
  config.sample.prompts = 0  # a token of an answer would wait for weights from 128 GPUs
  return config


def steps(tokens: int, config: ConfigDict) -> int:
  """Batches that hold so many tokens."""
  return -(-tokens // (config.data.seq_len * config.data.batch_size))

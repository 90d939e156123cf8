"""A recipe small enough for tests: the quickstart with a model of 30,000 parameters."""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
  config = quickstart.get_config()
  config.model.update(
    vocab_size=512, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=64
  )
  config.model.update(tie_embeddings=True, embed_init_std=0.02)
  config.compute.update(scan_layers=True, loss_chunks=2)
  config.data.sources = {"docs": {"path": "corpus/*.jsonl", "weight": 1.0}}
  config.data.update(vocab_size=512, seq_len=64, batch_size=16, streams=4, max_bad_lines=0)
  config.optimizer.update(peak_lr=3e-3, final_lr=1e-4, warmup_steps=4)
  config.train.steps = 24
  config.average.update(fraction=0.25, every=2)
  config.checkpoint.update(every=4, keep_last=2)
  config.eval.update(every=12, batch_size=16, stride=32)
  config.log.peak_flops = 1e12
  config.sample.update(prompts=("Return ",), max_tokens=8)
  return config

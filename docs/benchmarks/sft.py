"""Tokens a second of fine-tuning on packed conversations: ours against TRL's SFT trainer.

    pip install -e '.[peers]'
    python docs/benchmarks/sft.py --rounds 3

Both train the same Llama (hidden 256, 4 layers, 4 heads, 2 key-value heads, ffn 688, vocabulary
4,096) in float32 with AdamW and clipping on 8 rows of 512 tokens, packed from the same random
conversations, each in a process of its own with the same environment, in turns; the medians count.
TRL packs without crossing documents by "bfd", and "wrapped" with crossing, which we never do.
Malloc is glibc's as it is, and tuned so that large blocks are kept.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

TUNED = {
  "MALLOC_MMAP_THRESHOLD_": "1073741824",
  "MALLOC_TRIM_THRESHOLD_": "4294967296",
  "MALLOC_TOP_PAD_": "268435456",
}
ROWS, LENGTH, VOCABULARY = 8, 512, 4_096
SIDES = ("ours", "trl-bfd", "trl-wrapped")


def conversations(count: int = 600):
  """Ids and masks of answers, 16 to 400 tokens each."""
  rng = np.random.default_rng(0)
  for _ in range(count):
    size = int(np.clip(rng.lognormal(4.8, 0.6), 16, 400))
    yield rng.integers(3, VOCABULARY, size).astype(np.int32), np.arange(size) >= size // 3


def ours(steps: int, warmup: int) -> float:
  import jax

  from configs import quickstart
  from data.config import parse
  from data.examples import Example, ExampleLoader, Packed
  from model.config import ComputeConfig, ModelConfig
  from model.params import param_specs
  from train.loss_scale import LossScaleConfig
  from train.losses import SftLossConfig, answer_loss
  from train.optimizer import OptimizerConfig, learning_rate, make_optimizer
  from train.state import init_state
  from train.step import AverageConfig, make_train_step
  from train.xla import prepare

  prepare("none")  # as every stage does
  recipe = quickstart.get_config()
  recipe.model.update(vocab_size=VOCABULARY, d_model=256, num_layers=4, num_heads=4)
  recipe.model.update(num_kv_heads=2, head_dim=64, d_ff=688, qk_norm=False)
  recipe = recipe.to_dict()
  model = parse(ModelConfig, recipe["model"])
  compute = parse(ComputeConfig, recipe["compute"])
  optimizer_config = parse(OptimizerConfig, recipe["optimizer"])
  scale = parse(LossScaleConfig, recipe["loss_scale"])
  specs, total = param_specs(model), 1_000
  optimizer = make_optimizer(optimizer_config, total, specs)
  loss = functools.partial(
    answer_loss, config=model, compute=compute, loss=SftLossConfig(z_loss=0.0, neftune_alpha=0.0)
  )
  step = jax.jit(
    make_train_step(
      loss,
      optimizer,
      learning_rate(optimizer_config, total),
      specs,
      scale=scale,
      average=AverageConfig(0.0, 1),
      total_steps=total,
      microbatches=1,
      row_shards=1,
    ),
    donate_argnums=0,
  )
  examples = [Example(ids, mask) for ids, mask in conversations()]
  batches = Packed([e.length for e in examples], LENGTH, ROWS, 32, 0)
  loader = ExampleLoader(examples, batches, host_index=0, host_count=1, cursors=None)
  state, tokens, start = init_state(specs, optimizer, scale, 0, False), 0, 0.0
  for number in range(warmup + steps):
    if number == warmup:
      jax.block_until_ready(state)
      start = time.perf_counter()
    batch, _ = next(loader)
    state, _ = step(state, batch)
    tokens += np.count_nonzero(batch["segment_ids"]) if number >= warmup else 0
  jax.block_until_ready(state)
  return tokens / (time.perf_counter() - start)


def trl(steps: int, warmup: int, strategy: str) -> float:
  import datasets
  import tokenizers
  import torch
  import transformers
  import trl

  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=256,
    intermediate_size=688,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=LENGTH,
  )
  model = transformers.LlamaForCausalLM(config)
  vocabulary = {f"t{i}": i for i in range(VOCABULARY)}
  words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="t1"))
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="t0", eos_token="t2"
  )
  rows = [
    {"input_ids": ids.tolist(), "assistant_masks": mask.astype(int).tolist()}
    for ids, mask in conversations()
  ]
  seen = {"tokens": 0, "start": 0.0}

  class Clock(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
      if state.global_step == warmup:
        seen.update(tokens=0, start=time.perf_counter())

  with tempfile.TemporaryDirectory() as folder:
    trainer = trl.SFTTrainer(
      model,
      args=trl.SFTConfig(
        folder,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        packing=True,
        packing_strategy=strategy,
        max_length=LENGTH,
        per_device_train_batch_size=ROWS,
        max_steps=warmup + steps,
        assistant_only_loss=False,
        save_strategy="no",
        logging_strategy="no",
        dataloader_num_workers=0,
        eos_token="t2",
        pad_token="t0",
      ),
      train_dataset=datasets.Dataset.from_list(rows),
      processing_class=tokenizer,
      callbacks=[Clock()],
    )
    compute_loss = trainer.compute_loss

    def counted(model, inputs, *args, **kwargs):
      mask = inputs.get("attention_mask")
      seen["tokens"] += int(inputs["input_ids"].numel() if mask is None else (mask > 0).sum())
      return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = counted
    trainer.train()
    return seen["tokens"] / (time.perf_counter() - seen["start"])


def measure(side: str, malloc: str, steps: int, warmup: int) -> float:
  """Tokens a second of one side, in a process of its own."""
  environment = os.environ | (TUNED if malloc == "tuned" else {})
  environment |= {"PYTHONPATH": os.getcwd(), "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, __file__, "--side", side, "--steps", str(steps)]
  done = subprocess.run(
    [*command, "--warmup", str(warmup)], env=environment, capture_output=True, text=True
  )
  if done.returncode:
    sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
  return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--steps", type=int, default=6, help="timed steps of a process")
  parser.add_argument("--warmup", type=int, default=2)
  parser.add_argument("--malloc", choices=("default", "tuned", "both"), default="both")
  parser.add_argument("--side", choices=SIDES, help="one side alone, in this process")
  args = parser.parse_args()
  if args.side:
    name, _, strategy = args.side.partition("-")
    speed = (
      ours(args.steps, args.warmup) if name == "ours" else trl(args.steps, args.warmup, strategy)
    )
    print(json.dumps(speed))
    return
  mallocs = ("default", "tuned") if args.malloc == "both" else (args.malloc,)
  found: dict[tuple[str, str], list[float]] = {}
  for number in range(args.rounds):
    for malloc in mallocs:
      for side in SIDES:
        speed = measure(side, malloc, args.steps, args.warmup)
        found.setdefault((malloc, side), []).append(speed)
        print(f"round {number + 1}, {malloc} malloc, {side}: {speed:,.0f} tokens/s", flush=True)
  for malloc in mallocs:
    medians = {side: statistics.median(found[malloc, side]) for side in SIDES}
    for side in SIDES[1:]:
      print(
        f"{malloc} malloc: ours {medians['ours']:,.0f} tokens/s, {side} {medians[side]:,.0f}: "
        f"{medians['ours'] / medians[side]:.2f}x"
      )


if __name__ == "__main__":
  main()

"""Samples a second of PPO, rollout, scoring and update together, beside TRL's PPO trainer.

    pip install -e '.[peers]' trl==1.9.2 && python docs/benchmarks/ppo.py

Both train the same Llama (hidden 256, 4 layers, 4 heads, 2 KV heads, ffn 688, vocabulary 4,096) in
float32: 32-token prompts, 64-token responses that hardly ever stop, 32 samples an iteration, 4
epochs of one minibatch. Each side is a process of its own, in turns, with the same malloc settings;
the first iteration of each, which compiles, is left out. By default ours is rewarded by a function,
and so scores by three models where TRL does by four; `--reward-model` adds the fourth.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {
  "vocab_size": 4096, "d_model": 256, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2,
  "head_dim": 64, "d_ff": 688,
}  # fmt: skip
PROMPT, RESPONSE, SAMPLES, EPOCHS = 32, 64, 32, 4
MALLOC = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}


def ours(iterations: int, reward_model: bool) -> list[float]:
  """Samples a second of each iteration but the first."""

  import numpy as np

  sys.path.insert(0, str(ROOT))
  from model.heads import scorer_specs
  from tests import policy_run
  from tests.build import model_config, numpy_params
  from train import main
  from train import reward_model as models
  from train.metrics import read
  from train.xla import prepare

  prepare("none")  # as the command does; what follows touches devices before it is run
  model = model_config(**SHAPE, qk_norm=False, embed_init_std=0.02)
  with tempfile.TemporaryDirectory() as place:
    folder = policy_run.make(Path(place) / "policy", model=model)
    rng = np.random.default_rng(0)
    words = [policy_run.WORDS[i] for i in rng.integers(0, 15, 31 * 64)]
    rows = [{"prompt": " ".join(words[31 * i : 31 * i + 31])} for i in range(64)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = policy_run.recipe(folder, lambda prompts, responses: [0.5] * len(responses))
    if reward_model:
      one = {n: np.ones(1, np.float32) for n in ("mean_S", "std_S", "weight_S", "temperature_S")}
      data = {
        "tokenizer": str(folder / "tokenizer" / "tokenizer.json"), "eot": policy_run.STOP,
        "chat_template": None, "seq_len": PROMPT + RESPONSE,
      }  # fmt: skip
      params = numpy_params(scorer_specs(model, 1), 1) | {"normalization": one}
      models.save(Path(place) / "reward", params, model, ("reward",), data)
      config.reward.update(function=None, models=(str(Path(place) / "reward"),))
    config.data.update(
      seq_len=PROMPT + RESPONSE, response_tokens=RESPONSE, batch_size=SAMPLES, text_tokens=4
    )
    config.compute.scan_layers = False
    config.optimizer.peak_lr = config.critic.optimizer.peak_lr = 1e-6
    config.train.steps, config.checkpoint.every = iterations, 10_000
    config.log.every = 10_000
    workdir = Path(place) / "run"
    assert main.run(config.to_dict(), workdir) == main.DONE
    lines = [x for x in read(workdir / "metrics.jsonl") if x["kind"] == "train"]
  return [line["samples_per_sec"] for line in lines[1:]]


def theirs(iterations: int) -> list[float]:
  """The same of TRL's trainer."""
  import datasets
  import tokenizers
  import torch
  import transformers
  from trl.experimental.ppo import PPOConfig, PPOTrainer

  words = {"<pad>": 0, "</s>": 1} | {f"w{i}": i for i in range(2, 4096)}
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w2"))
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", padding_side="left"
  )
  shape = transformers.LlamaConfig(
    vocab_size=4096, hidden_size=256, intermediate_size=688, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0,
    eos_token_id=None, num_labels=1,
  )  # fmt: skip
  causal, classes = transformers.LlamaForCausalLM, transformers.LlamaForSequenceClassification
  times = []

  class Clock(transformers.TrainerCallback):
    def on_step_end(self, *args, **kwargs):
      times.append(time.perf_counter())

  data = datasets.Dataset.from_list(
    [{"input_ids": row} for row in torch.randint(2, 4096, (256, PROMPT)).tolist()]
  )
  with tempfile.TemporaryDirectory() as folder:
    trainer = PPOTrainer(
      args=PPOConfig(
        output_dir=folder, per_device_train_batch_size=SAMPLES, num_ppo_epochs=EPOCHS,
        num_mini_batches=1, total_episodes=SAMPLES * iterations, response_length=RESPONSE,
        temperature=1.0, learning_rate=1e-6, report_to=[], num_sample_generations=0, use_cpu=True,
        bf16=False, missing_eos_penalty=None, local_rollout_forward_batch_size=SAMPLES,
        save_strategy="no", gradient_checkpointing=False, disable_tqdm=True,
      ),
      processing_class=tokenizer, model=causal(shape), ref_model=causal(shape),
      reward_model=classes(shape), value_model=classes(shape), train_dataset=data,
      eval_dataset=data, callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
  return [SAMPLES / (b - a) for a, b in itertools.pairwise(times)]


def products() -> float:
  """Seconds of the matrix products that an iteration can't do without, each timed by itself.

  All are taken as `x @ w` of whole rows, which XLA multiplies fastest, though a gradient's product
  has other axes. What nothing depends on is left out, also where ours computes it: the last layer
  of tokens that predict none, what causality masks, and a forward pass of policy and critic for the
  scoring, which the first update's could be. Those of the rollout are not among them.
  """
  import jax
  import numpy as np

  sys.path.insert(0, str(ROOT))
  from train.xla import prepare

  prepare("none")
  d, ff, size = SHAPE["d_model"], SHAPE["d_ff"], SHAPE["head_dim"]
  groups, heads = SHAPE["num_kv_heads"], SHAPE["num_heads"]
  product = jax.jit(lambda x, w: x @ w)
  rng, spent = np.random.default_rng(0), {}

  def seconds(shape):
    if shape not in spent:
      b, m, n, k = shape
      x, w = (jax.numpy.asarray(rng.standard_normal(s), "float32") for s in ((b, m, k), (b, k, n)))
      if b == 1:
        x, w = x[0], w[0]
      times = []
      for _ in range(30):
        begun = time.perf_counter()
        product(x, w).block_until_ready()
        times.append(time.perf_counter() - begun)
      spent[shape] = min(times)
    return spent[shape]

  def work(shape, share=1.0):
    return share * np.array([seconds(shape), 2 * math.prod(shape)])

  def layer(tokens):
    rows, all_rows, length = SAMPLES * tokens, SAMPLES * (PROMPT + RESPONSE), PROMPT + RESPONSE
    total = 2 * work((1, rows, d, d)) + 2 * work((1, all_rows, groups * size, d))
    total += 2 * work((1, rows, ff, d)) + work((1, rows, d, ff))
    seen = (length - (tokens - 1) / 2) / length
    attention = SAMPLES * groups, heads // groups * tokens
    return total + sum(work((*attention, *s), seen) for s in ((length, size), (size, length)))

  critic = (SHAPE["num_layers"] - 1) * layer(PROMPT + RESPONSE) + layer(RESPONSE)
  policy = critic + work((1, SAMPLES * RESPONSE, SHAPE["vocab_size"], d))
  # An update is three forward passes' products; of the scoring the reference's pass is left.
  total = EPOCHS * 3 * (policy + critic) + policy
  print(f"{total[1] / 1e9:.0f} GFLOP of products at {total[1] / total[0] / 1e9:.0f} GFLOP/s")
  return total[0]


def rollouts(iterations: int) -> float:
  """Seconds of the fastest rollout of ours."""
  sys.path.insert(0, str(ROOT))
  from train import iteration

  spent, respond = [], iteration.respond

  def timed(*args):
    begun = time.perf_counter()
    found = respond(*args)
    spent.append(time.perf_counter() - begun)
    return found

  iteration.respond = timed
  ours(iterations, reward_model=False)
  return min(spent)


def side(name: str, options: argparse.Namespace) -> float:
  """The median samples a second of one side, in a process of its own."""
  arguments = [sys.executable, __file__, "--side", name, "--iterations", str(options.iterations)]
  done = subprocess.run(
    arguments + ["--reward-model"] * options.reward_model,
    env=os.environ | MALLOC | {"JAX_PLATFORMS": "cpu"},
    text=True,
    capture_output=True,
  )
  if done.returncode:
    sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
  line = next(x for x in done.stdout.splitlines() if x.startswith("FOUND"))
  return statistics.median(json.loads(line.removeprefix("FOUND")))


def floor(options: argparse.Namespace) -> None:
  """Prints the most that ours could be of TRL, were there nothing but products and rollouts."""
  product, rollout = products(), rollouts(options.iterations)
  theirs = SAMPLES / side("theirs", options)
  least = product + rollout
  print(f"products {product:.2f} s, rollout {rollout:.2f} s, together {least:.2f} s an iteration")
  print(f"TRL {theirs:.2f} s: at most {theirs / least:.2f}x, with nothing between the products")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--iterations", type=int, default=5)
  parser.add_argument("--reward-model", action="store_true")
  parser.add_argument("--floor", action="store_true", help="the most that can be had")
  parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.floor:
    return floor(options)
  if options.side:
    found = (
      theirs(options.iterations)
      if options.side == "theirs"
      else ours(options.iterations, options.reward_model)
    )
    print("FOUND", json.dumps(found))
    return
  medians = {"ours": [], "theirs": []}
  for number in range(options.rounds):
    for name, kept in medians.items():
      kept.append(side(name, options))
    a, b = medians["ours"][-1], medians["theirs"][-1]
    print(f"round {number + 1}: {a:.2f} samples/s, TRL {b:.2f}: {a / b:.2f}x", flush=True)
  a, b = (statistics.median(x) for x in medians.values())
  print(f"median: {a:.2f} samples/s, TRL {b:.2f}: {a / b:.2f}x")


if __name__ == "__main__":
  main()

"""Greedy generation beside transformers', on the same float32 weights, prompts and machine.

    pip install -e '.[peers,gguf]'
    python docs/benchmarks/generate.py                        # a model of 20M parameters, random
    python docs/benchmarks/generate.py --gguf SmolLM2.gguf    # a real one, at batch 1, too

128 new tokens after prompts of 128, at batch 1 and 16; both sides take turns, and the medians of
their ratios are printed. At batch 1 a token costs at least one reading of the weights, so the speed
is also compared with the machine's bandwidth, measured in the same round by as many threads as
there are cores. Then 64 requests of mixed lengths, by continuous batching and one after another.

For several rows what XLA can reach is printed too: the matrix products alone, and the cache read
once a step at the memory's speed, without attention's arithmetic, norms and the choice of tokens.
"""

import argparse
import functools
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from model import hf
from model.batching import Batcher, Request
from model.config import ComputeConfig, ModelConfig
from model.decode import prepare
from model.generate import request_keys, rollout
from model.params import count, param_specs
from model.sampling import SamplingConfig, settings
from train import xla

PROMPT, NEW, QUEUE, SLOTS = 128, 128, 64, (16, 32, 64)
COMPUTE = {
  dtype: ComputeConfig(
    dtype=dtype,
    scan_layers=False,
    remat="none",
    remat_save=(),
    remat_offload=(),
    attention="auto",
    max_segments=None,
    fuse_qkv=False,
    gradients_in_order=False,
    reduce_gradients_in_fp32=True,
    loss_chunks=1,
  )
  for dtype in ("float32", "bfloat16")
}


def seconds(call) -> float:
  began = time.perf_counter()
  call()
  return time.perf_counter() - began


def bandwidth() -> float:
  """Bytes a second that all cores read together."""
  parts = np.array_split(_memory(), os.cpu_count())
  with ThreadPoolExecutor(len(parts)) as pool:
    return _memory().nbytes / seconds(lambda: list(pool.map(np.max, parts)))


@functools.cache
def _memory() -> np.ndarray:
  return np.ones(2**27, np.float32)


def ours(weights: dict, config: ModelConfig, compute: ComputeConfig, batch: int, max_tokens: int):
  """A function that generates for a batch of prompts, and waits."""
  ids = prompts(config, batch)
  rows = settings([SamplingConfig(0.0, 1.0)] * batch, config.vocab_size)
  keys, lengths = request_keys(jax.random.key(0), np.arange(batch)), np.full(batch, PROMPT)
  return lambda: jax.block_until_ready(
    rollout(
      weights,
      ids,
      lengths.astype(np.int32),
      keys,
      rows,
      None,
      max_tokens=max_tokens,
      config=config,
      compute=compute,
    )
  )


def products(weights: dict, config: ModelConfig, rows: int, times: int) -> float:
  """Seconds of the matrix products of `rows` tokens through all layers and to their logits.

  The weights are [outputs, inputs]; of a prompt only the last token's logits are needed.
  """

  def once(_, x_DB):
    for layer in weights["layers"]:
      qkv_XB = layer["qkv_GHKD"].reshape(-1, config.d_model) @ x_DB
      x_DB += layer["out_DX"] @ qkv_XB[: layer["out_DX"].shape[1]]
      both_FB = layer["gate_up_CFD"].reshape(-1, config.d_model) @ x_DB
      x_DB += layer["down_DF"] @ both_FB[: config.d_ff]
    if rows <= max(SLOTS):
      x_DB += 1e-9 * jnp.max(weights["embedding_VD"] @ x_DB, axis=0, keepdims=True)
    return 1e-3 * x_DB

  run = jax.jit(lambda weights, x_DB: jax.lax.fori_loop(0, times, once, x_DB))
  x_DB = np.ones((config.d_model, rows), np.float32)
  call = lambda: jax.block_until_ready(run(weights, x_DB))  # noqa: E731
  call()  # compiles
  return min(seconds(call) for _ in range(3)) / times


def cache_bytes(config: ModelConfig, tokens: float) -> float:
  return 2 * 4 * config.num_layers * config.num_kv_heads * config.head_dim * tokens


def theirs(model, config: ModelConfig, batch: int):
  import torch

  ids = torch.from_numpy(prompts(config, batch)).long()
  options = {"do_sample": False, "min_new_tokens": NEW, "max_new_tokens": NEW, "pad_token_id": 0}

  def run():
    with torch.inference_mode():
      return model.generate(ids, attention_mask=torch.ones_like(ids), **options)

  return run


def prompts(config: ModelConfig, batch: int) -> np.ndarray:
  return np.random.default_rng(0).integers(0, config.vocab_size, (batch, PROMPT), np.int32)


def compare(name: str, folder: Path, batches: list[int], rounds: int) -> tuple[dict, ModelConfig]:
  """Prints our speed, theirs and the memory's; returns our parameters."""
  import transformers

  config, params = hf.load(folder)
  model = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()
  print(f"\n{name}: {count(param_specs(config)) / 1e6:.1f}M parameters", flush=True)
  params = hf.as_jax(params)
  for dtype, compute in COMPUTE.items():
    for batch in batches:
      weights = prepare(params, config, compute, one_row=batch == 1)
      read = sum(x.nbytes for x in jax.tree.leaves(weights)) - weights["embedding_VD"].nbytes
      sides = [ours(weights, config, compute, batch, new) for new in (NEW, 1)]
      sides.append(theirs(model, config, batch))
      for side in sides:
        side()  # compiles
      times = []
      for _ in range(rounds):
        fast = bandwidth()
        whole, first, peer = (seconds(side) for side in sides)
        times.append((whole, first, peer, fast))
      whole, _, peer, fast = (statistics.median(column) for column in zip(*times, strict=True))
      ratio = statistics.median(peer / whole for whole, _, peer, _ in times)
      print(
        f"  {dtype}, batch {batch}: {batch * NEW / whole:,.1f} tokens/s, transformers (float32) "
        f"{batch * NEW / peer:,.1f}; ratio {ratio:.2f}"
      )
      if dtype == "float32" and batch > 1:
        first, later = (
          products(weights, config, PROMPT * batch, 2),
          products(weights, config, batch, 20),
        )
        later += cache_bytes(config, batch * (PROMPT + NEW / 2)) / fast
        least = first + (NEW - 1) * later
        print(
          f"    products and cache alone: {least:.2f} s of {whole:.2f}; ratio {peer / least:.2f}"
        )
      if batch == 1:
        speed = [(NEW - 1) * read / (whole - first) for whole, first, _, _ in times]
        share = statistics.median(s / row[3] for s, row in zip(speed, times, strict=True))
        print(
          f"    decoding reads weights at {statistics.median(speed) / 1e9:.1f} GB/s; the memory "
          f"gives {fast / 1e9:.1f}: {share:.0%}",
          flush=True,
        )
  return params, config


def queue(params: dict, config: ModelConfig, rounds: int) -> None:
  """Prints how much faster continuous batching is than one request after another."""
  weights, one = (prepare(params, config, COMPUTE["float32"], one_row=o) for o in (False, True))
  rng = np.random.default_rng(0)
  requests = [
    Request(
      number=number,
      prompt=tuple(rng.integers(0, config.vocab_size, rng.integers(16, PROMPT + 1)).tolist()),
      max_tokens=int(rng.integers(16, NEW + 1)),
      sampling=SamplingConfig(0.0, 1.0),
    )
    for number in range(QUEUE)
  ]
  batchers = {
    slots: Batcher(
      one if slots == 1 else weights,
      config,
      COMPUTE["float32"],
      slots=slots,
      length=PROMPT + NEW,
      like=requests,
      chunk=NEW if slots == 1 else 16,
      decode=lambda ids: "",
    )
    for slots in (1, *SLOTS)
  }
  runs = [functools.partial(lambda b: list(b.run(requests)), b) for b in batchers.values()]
  alone, *others = [sorted((d.number, d.tokens) for d in run()) for run in runs]
  times = [[seconds(run) for run in runs] for _ in range(rounds)]
  tokens, longer = sum(len(ids) for _, ids in alone), sum(len(r.prompt) for r in requests)
  reading = longer * products(weights, config, 1_024, 3) / 1_024
  print(f"  {QUEUE} requests of mixed lengths, one after another: ", end="")
  print(f"{tokens / statistics.median(row[0] for row in times):,.0f} tokens/s")
  for column, (slots, outputs) in enumerate(zip(SLOTS, others, strict=True), start=1):
    ratio = statistics.median(row[0] / row[column] for row in times)
    same = sum(a == b for a, b in zip(alone, outputs, strict=True))
    speed = tokens / statistics.median(row[column] for row in times)
    print(
      f"    in {slots} slots: {speed:,.0f} tokens/s; ratio {ratio:.2f} ({same} of {QUEUE} with the "
      "same tokens)",
      flush=True,
    )
    step = products(weights, config, slots, 20)
    step += cache_bytes(config, slots * (longer + tokens / 2) / QUEUE) / bandwidth()
    least = reading + tokens / slots * step
    print(f"      products and cache alone: ratio {times[0][0] / least:.2f}", flush=True)


def random_model(folder: Path) -> None:
  """A Llama of 20M parameters."""
  import torch
  import transformers

  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=16_384,
    hidden_size=384,
    intermediate_size=1_024,
    num_hidden_layers=8,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=2_048,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
  )
  transformers.LlamaForCausalLM(config).save_pretrained(folder)


def from_gguf(file: Path, folder: Path) -> None:
  from train.export import export_run, import_model

  import_model(file, folder / "run")
  export_run(folder / "run", folder / "hf")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--gguf", type=Path, help="a model at batch 1 beside the random one")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--only", choices=("small", "gguf"), help="one of the two")
  arguments = parser.parse_args()
  xla.prepare("none")  # as every command does
  with tempfile.TemporaryDirectory() as scratch:
    if arguments.only != "gguf":
      random_model(Path(scratch) / "small")
      params, config = compare("random", Path(scratch) / "small", [1, 16], arguments.rounds)
      queue(params, config, arguments.rounds)
    if arguments.gguf is not None and arguments.only != "small":
      from_gguf(arguments.gguf, Path(scratch))
      compare(arguments.gguf.stem, Path(scratch) / "hf", [1], arguments.rounds)


if __name__ == "__main__":
  main()

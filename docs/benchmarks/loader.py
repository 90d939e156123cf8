"""Raw text to packed batches on one core: tokens a second by tokenizer, and how full the rows are.

    python docs/benchmarks/loader.py 'corpus/*.jsonl' --tokenizer tokenizer.json

Prints tokens a second of the whole loader in one thread (reading, tokenizing, packing, stacking),
by the tiktoken engine and by Hugging Face's own, what share of the rows is not padding, and how
many documents were cut, at rows of 2,048 and 8,192 tokens.
"""

import argparse
import dataclasses
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from data import sources, tokenizer
from data.batch import stack_rows
from data.config import DataConfig, SourceConfig
from data.mixture import make_mixture
from data.streams import Stream


def measure(config, mixture, tokens, seconds: float) -> dict[str, float]:
  """Runs one stream for a time."""
  rows, filled = 0, 0
  stream = Stream(mixture, tokens, config, 0)
  for _ in range(config.open_bins):
    next(stream)  # the first row comes when all bins are in use
  began, cpu = time.perf_counter(), time.process_time()
  while time.perf_counter() - began < seconds:
    batch = stack_rows([next(stream)], config.seq_len)
    rows, filled = rows + 1, filled + int(np.count_nonzero(batch["segment_ids"]))
  spent = time.process_time() - cpu
  split = stream.cursor()["split"] / stream.cursor()["drawn"]
  return {"rate": filled / spent, "share": filled / (rows * config.seq_len), "split": split}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("documents", help="a path, glob or fsspec URL of JSONL or text files")
  parser.add_argument("--tokenizer", required=True, help="a byte-level BPE, as tokenizer.json")
  parser.add_argument("--eot", default="<|endoftext|>")
  parser.add_argument("--seconds", type=float, default=10, help="for each figure")
  arguments = parser.parse_args()
  os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core
  config = DataConfig(
    sources={"all": SourceConfig(arguments.documents, 1.0)},
    tokenizer=arguments.tokenizer,
    vocab_size=0,
    eot=arguments.eot,
    seq_len=8_192,
    batch_size=1,
    streams=1,
    workers=0,
    prefetch=1,
    max_segments=256,
    open_bins=64,
    heldout_fraction=0.0,
    dedup_threshold=None,
    max_bad_lines=1_000,
  )
  with TemporaryDirectory() as folder:
    corpus = sources.open_corpus(config, Path(folder))
    fast = sources.open_tokenizer(config, corpus, Path(folder))
  exact = tokenizer.load(arguments.tokenizer, arguments.eot)
  for name, engine in (("tiktoken", fast), ("tokenizers", exact)):
    if name == "tiktoken" and type(engine) is type(exact):
      print("tiktoken: its ids differ; see the warning")
      continue
    mixture = make_mixture(config, corpus, engine, seed=0)
    for seq_len in (2_048, 8_192):
      sized = dataclasses.replace(config, seq_len=seq_len)
      result = measure(sized, mixture, engine, arguments.seconds)
      print(
        f"{name:10} rows of {seq_len:,}: {result['rate'] / 1e6:.2f}M tokens a CPU-second, "
        f"{result['share']:.2%} filled, {result['split']:.2%} of the documents split"
      )


if __name__ == "__main__":
  main()

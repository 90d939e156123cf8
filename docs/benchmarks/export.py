"""Peak memory of importing and exporting a model, beside its largest file.

    python docs/benchmarks/export.py

A random Llama of 1.3 GB in fp32, in files of up to 182 MB, goes into a run's folder and out again,
each in a process of its own that does not find transformers (comparing with that holds the whole
model). Printed is how far anonymous memory rises, sampled every millisecond, over where it is once
the process has done the same with a tiny model. Pages of files are the system's to take back, and
are not counted.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from model import hf, hf_config, safetensors
from model.config import ModelConfig
from train import export

SHARD_BYTES = 182_000_000
CONFIG = ModelConfig(
  vocab_size=32_768,
  d_model=1_024,
  num_layers=16,
  num_heads=16,
  num_kv_heads=4,
  head_dim=64,
  d_ff=4_224,
  tie_embeddings=False,
  qk_norm=False,
  qkv_bias=False,
  rope_theta=10_000.0,
  rope_scaling=None,
  sliding_window=None,
  attention_softcap=None,
  logit_softcap=None,
  norm_eps=1e-5,
  embed_init_std=0.02,
)


TINY = dataclasses.replace(CONFIG, vocab_size=64, d_model=64, num_layers=2, num_heads=4, d_ff=64)


def write_model(folder: Path, config: ModelConfig) -> None:
  rng = np.random.default_rng(0)
  shapes = hf.stored_shapes(config)
  arrays = ((n, 0.02 * rng.standard_normal(shape, np.float32)) for n, shape in shapes.items())
  folder.mkdir()
  described = hf_config.from_model(config, 1_024)
  (folder / "config.json").write_text(json.dumps(described))
  safetensors.write_directory(folder, shapes, arrays, SHARD_BYTES)


def anonymous() -> int:
  """Bytes of memory of this process that are no file's."""
  for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith("RssAnon:"):
      return 1024 * int(line.split()[1])
  raise ValueError("/proc/self/status has no RssAnon; this needs Linux.")


def measure(command: str, source: Path, out: Path) -> None:
  """Runs a command here and prints, as JSON, the rise of memory and the seconds."""
  sys.modules["transformers"] = None  # not found
  with tempfile.TemporaryDirectory() as scratch:
    write_model(Path(scratch) / "model", TINY)
    export.import_model(Path(scratch) / "model", Path(scratch) / "run")
    export.export_run(Path(scratch) / "run", Path(scratch) / "out")
  start, peak, done = anonymous(), 0, threading.Event()

  def watch():
    nonlocal peak
    while not done.wait(0.001):
      peak = max(peak, anonymous())

  thread = threading.Thread(target=watch)
  thread.start()
  began = time.perf_counter()
  if command == "import":
    export.import_model(source, out)
  else:
    export.export_run(source, out, shard_bytes=SHARD_BYTES)
  seconds = time.perf_counter() - began
  done.set()
  thread.join()
  print(json.dumps({"rise": peak - start, "seconds": seconds}))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--measure", nargs=3, metavar=("COMMAND", "SOURCE", "OUT"))
  arguments = parser.parse_args()
  if arguments.measure:
    command, source, out = arguments.measure
    measure(command, Path(source), Path(out))
    return
  with tempfile.TemporaryDirectory() as scratch:
    folder = Path(scratch)
    write_model(folder / "model", CONFIG)
    files = [file.stat().st_size for file in (folder / "model").glob("*.safetensors")]
    leaf = max(
      np.prod(shape) * (CONFIG.num_layers if "layers" in name else 1)
      for name, shape in hf.stored_shapes(CONFIG).items()
    )
    print(
      f"{sum(files) / 1e9:.2f} GB in {len(files)} files of up to {max(files) / 1e6:.0f} MB; the "
      f"largest parameter has {4 * leaf / 1e6:.0f} MB"
    )
    for command, source, out in (("import", "model", "run"), ("export", "run", "again")):
      call = [sys.executable, __file__, "--measure", command, folder / source, folder / out]
      done = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True)
      found = json.loads(done.stdout.splitlines()[-1])
      rise = found["rise"]
      print(
        f"  {command}: memory rises by {rise / 1e6:,.0f} MB, {rise / max(files):.2f} of the "
        f"largest file, in {found['seconds']:.0f} s",
        flush=True,
      )


if __name__ == "__main__":
  main()

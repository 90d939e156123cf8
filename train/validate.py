"""The plan's model against published runs: constants fitted on some of them, tested on the others.

    python -m train.plan --validate            what the committed constants say
    python -m train.plan --validate --fit      and which constants these runs would give

The runs, with sources, are in train/published.json and, as recipes of our own step, in
configs/published.py. Each is compiled for its cluster once and kept in the cache.
"""

import dataclasses
import importlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from model.params import flops_per_token
from train import hlo, pretrain
from train.cluster import Cluster, load_cluster
from train.config import PretrainConfig
from train.cost import Gemm, gemm_seconds
from train.program import compile_program
from train.schedule import estimate

RUNS = Path(__file__).with_name("published.json")
# The rest is not seen well enough by these runs, or is of one of their networks.
FITTED = ("gemm_efficiency", "gemm_depth", "hbm_efficiency")
NOISE = 0.04  # of a step's seconds: what two runs of one recipe on two clusters differ by


@dataclasses.dataclass(frozen=True)
class Run:
  """A published run, with its program.

  Attributes:
    seconds: of a step, published, from and to.
    extra: matrix products that theirs has and ours does not.
  """

  name: str
  role: str
  source: str
  cluster: Cluster
  config: PretrainConfig
  module: hlo.Module
  mesh: dict[str, int]
  seconds: tuple[float, float]
  extra: tuple[Gemm, ...]

  def predicted(self, constants: Mapping[str, float]) -> float:
    cluster = self.cluster.replaced(constants)
    theirs = sum(gemm_seconds(gemm, cluster) for gemm in self.extra)
    return estimate(self.module, self.mesh, cluster).seconds + theirs

  def error(self, predicted: float) -> float:
    """Relative to the published seconds, 0 between the two ends of a range."""
    low, high = self.seconds
    return predicted / min(max(predicted, low), high) - 1


def load_runs(cache: Path | None, only: str | None = None) -> list[Run]:
  """Compiles the runs of published.json, or those of one role, for their clusters."""
  published = importlib.import_module("configs.published")  # recipes are data to the library
  runs = []
  for name, entry in json.loads(RUNS.read_text()).items():
    if only not in (None, entry["role"]):
      continue
    cluster = load_cluster(entry["cluster"])
    config = pretrain.parse_config(published.get_config(name).to_dict())
    print(f"  {name}: {entry['nodes']} nodes of {cluster.name}", flush=True)
    program = compile_program(config, entry["nodes"], cluster, cache)
    if not program.on_gpu:
      raise ValueError("--validate compiles for GPUs; install the extra: pip install -e '.[plan]'.")
    runs.append(
      Run(
        name=name,
        role=entry["role"],
        source=entry["source"],
        cluster=cluster,
        config=config,
        module=hlo.parse(program.text),
        mesh=program.mesh,
        seconds=published_seconds(entry, config, program.mesh),
        extra=extra_work(entry, config, program.mesh),
      )
    )
  return runs


def published_seconds(
  entry: Mapping[str, Any], config: PretrainConfig, mesh: Mapping[str, int]
) -> tuple[float, float]:
  """Of a step, from seconds or from TFLOP/s a device that count attention in full."""
  if "seconds" in entry:
    return tuple(entry["seconds"])
  tokens = config.data.batch_size * config.data.seq_len / math.prod(mesh.values())
  _, full = flops_per_token(config.model, config.data.seq_len)
  slow, fast = entry["tflops_full"]
  return tokens * full / (fast * 1e12), tokens * full / (slow * 1e12)


def extra_work(
  entry: Mapping[str, Any], config: PretrainConfig, mesh: Mapping[str, int]
) -> tuple[Gemm, ...]:
  """MaxText's `use_iota_embed`: the embedding as a product with one-hot rows, and its gradient."""
  if entry.get("extra_work") != "one_hot_embedding":
    return ()
  tokens = config.data.batch_size * config.data.seq_len // math.prod(mesh.values())
  v, d = config.model.vocab_size, config.model.d_model
  return (Gemm(1, tokens, d, v), Gemm(1, v, d, tokens))


def fit(runs: list[Run], rounds: int = 4) -> dict[str, float]:
  """Constants that the runs give: least squares of log seconds, held to their ranges.

  Gauss-Newton with NOISE a run and, a constant, half its range around the middle: so what the runs
  do not say is left in the middle. The ranges are those of the first run's cluster.
  """
  names = list(FITTED)
  low, high = np.array([runs[0].cluster.ranges[n] for n in names]).T
  middle, width = (low + high) / 2, (high - low) / 2

  def residuals(x):
    constants = dict(zip(names, x.tolist(), strict=True))
    off = [math.log1p(run.error(run.predicted(constants))) / NOISE for run in runs]
    return np.concatenate([off, (x - middle) / width])

  x = middle
  for _ in range(rounds):
    here = residuals(x)
    steps = 0.02 * width
    slope = np.stack([(residuals(x + s) - here) / s.sum() for s in np.diag(steps)], axis=1)
    x = np.clip(x - np.linalg.lstsq(slope, here, rcond=None)[0], low, high)
    print("  " + ", ".join(f"{n} {v:.4g}" for n, v in zip(names, x, strict=True)), flush=True)
  return dict(zip(names, x.tolist(), strict=True))


def table(runs: list[Run], constants: Mapping[str, float]) -> str:
  """Markdown: a run a row, published and predicted seconds of a step."""
  lines = [
    "| run | | published s | predicted s | off | MFU, causal |",
    "|---|---|---|---|---|---|",
  ]
  for run in runs:
    predicted = run.predicted(constants)
    low, high = run.seconds
    published = f"{low:.3g} to {high:.3g}" if low < high else f"{low:.4g}"
    causal, _ = flops_per_token(run.config.model, run.config.data.seq_len)
    tokens = run.config.data.batch_size * run.config.data.seq_len / math.prod(run.mesh.values())
    mfu = tokens * causal / predicted / run.cluster.peak_flops
    lines.append(
      f"| {run.name} | {run.role} | {published} | {predicted:.4g} | {run.error(predicted):+.1%} | "
      f"{mfu:.1%} |"
    )
  return "\n".join(lines)

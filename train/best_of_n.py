"""The best of n responses to every prompt, by reward models or a Python function.

  python -m train.main --config configs/best_of_n.py:runs/sft
  python -m train.main --config configs/rejection.py:runs/sft

candidates.jsonl has all responses with their rewards, a line a prompt, and is what a restart goes
on with. From it come best.jsonl, the report, and for rejection sampling rows.jsonl: conversations
that end with the best responses, which configs/sft.py trains on.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data.config import parse
from data.questions import PromptConfig, Prompts, open_prompts
from model.config import ComputeConfig, ModelConfig
from model.decode import prepare
from model.sharding import MeshConfig, batch_shards, make_mesh
from train.experience import Responses, respond, sequences
from train.ppo_config import RolloutConfig
from train.ranking import KeepConfig, kept_rows, make_report, ranking, table
from train.rewards import ResponseRewardConfig, Rewards, refuse_name, rewards
from train.sample import whole_lines
from train.scorers import Scorer, load_members, make_scorer
from train.signals import StopRequest
from train.weights import open_run, read_weights
from train.workdir import write_atomically, write_config

CANDIDATES, BEST, ROWS, REPORT = "candidates.jsonl", "best.jsonl", "rows.jsonl", "best_of_n.json"


@dataclasses.dataclass(frozen=True)
class BestOfNConfig:
  """Every section of a recipe of best-of-n.

  Attributes:
    run: the policy: the folder of a run, or of an imported model.
    weights, step: of the run, as `train.weights.read_weights` takes them.
    model: the architecture of the run.
    rollout: its `samples` are n.
    counts: the numbers of which the best one is reported, each up to n.
  """

  stage: str
  seed: int
  run: str
  weights: str | None
  step: int | None
  model: ModelConfig
  compute: ComputeConfig
  mesh: MeshConfig
  data: PromptConfig
  reward: ResponseRewardConfig
  rollout: RolloutConfig
  counts: tuple[int, ...]
  keep: KeepConfig

  def __post_init__(self):
    n = self.rollout.samples
    if not self.counts or not all(1 <= count <= n for count in self.counts):
      raise ValueError(f"counts is {self.counts}; they must be from 1 to rollout.samples={n}.")
    if self.keep.rows > n:
      raise ValueError(f"keep.rows={self.keep.rows} is more than rollout.samples={n}.")
    if not 0 <= self.seed < 2**32:
      raise ValueError(f"seed is {self.seed}; it must be in [0, 2**32).")


def parse_config(config: Mapping[str, Any]) -> BestOfNConfig:
  """The recipe, checked. Raises ValueError where a key or value is wrong."""
  refuse_name(config)
  return parse(BestOfNConfig, config)


def execute(
  config: Mapping[str, Any], parsed: BestOfNConfig, workdir: Path, stop: StopRequest
) -> bool:
  """Samples and scores what is not there yet, then reports; returns whether that is all."""
  mesh = make_mesh(parsed.mesh)
  rows, shards = parsed.data.batch_size * parsed.rollout.samples, batch_shards(mesh)
  if rows % shards:
    raise ValueError(
      f"data.batch_size x rollout.samples = {rows} is not divisible by the {shards} row shards of "
      f"mesh {dict(mesh.shape)}; use a multiple."
    )
  run = open_run(Path(parsed.run))
  if run.model != parsed.model:
    raise ValueError(f"`model` is not that of {parsed.run}; take the section of its config.json.")
  prompts = open_prompts(parsed.data, parsed.model.vocab_size)
  with jax.set_mesh(mesh):
    found = read_weights(run, mesh, parsed.weights, parsed.step)
    score = make_scorer(parsed, prompts, load_members(parsed, mesh), mesh)
    print(f"{run.folder}, step {found.step}, {found.which} weights; {len(prompts.ids):,} prompts.")
    write_config(workdir, config)
    policy = prepare(found.params, parsed.model, parsed.compute)
    lines = sample(policy, prompts, score, parsed, workdir, mesh, stop)
  if lines is None:
    return False
  if jax.process_index() == 0:
    finish(lines, parsed, workdir)
  return True


def sample(
  policy: dict,
  prompts: Prompts,
  score: Scorer,
  config: BestOfNConfig,
  workdir: Path,
  mesh: Mesh,
  stop: StopRequest,
) -> list[dict[str, Any]] | None:
  """The line of every prompt, those of an earlier start as they are; None if stopped.

  A batch of prompts is drawn with a key of its own, so a restart goes on with the same responses.
  """
  path, size, count = workdir / CANDIDATES, config.data.batch_size, len(prompts.ids)
  lines = list(whole_lines(path).values())
  if any(
    line["number"] != number or number >= count or line["prompt"] != prompts.texts[number]
    for number, line in enumerate(lines)
  ):
    raise ValueError(f"{path} has responses to other prompts; use another --workdir.")
  if lines:
    print(f"{len(lines):,} of {count:,} prompts are in {path}.")
  if len(lines) == count:
    return lines
  with open(path, "a", encoding="utf-8") as file:
    for batch in range(len(lines) // size, math.ceil(count / size)):
      if stop.wanted():
        return None
      numbers = range(batch * size, (batch + 1) * size)
      rows = np.repeat([min(n, count - 1) for n in numbers], config.rollout.samples)
      key = jax.random.fold_in(jax.random.key(config.seed), batch)
      responses = respond(policy, prompts, rows, key, config, mesh)
      scores = score(responses, sequences(responses, prompts, config))
      reward = rewards(scores, responses.stopped_B, config.reward)
      new = [_line(n, batch, prompts, responses, reward, config) for n in numbers if n < count]
      new = new[len(lines) - batch * size :]  # of a batch that a kill left in the middle
      lines += new
      if jax.process_index() == 0:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in new)
        file.flush()
        os.fsync(file.fileno())
      mean = np.mean(reward.total_B[reward.kept_B]) if reward.kept_B.any() else math.nan
      print(f"{len(lines):,}/{count:,} prompts  reward {mean:.4f}", flush=True)
  return lines


def _line(
  number: int,
  batch: int,
  prompts: Prompts,
  responses: Responses,
  reward: Rewards,
  config: BestOfNConfig,
) -> dict[str, Any]:
  first = (number - batch * config.data.batch_size) * config.rollout.samples
  return {
    "number": number,
    "place": prompts.places[number],
    "prompt": prompts.texts[number],
    "messages": prompts.messages[number],
    "responses": [
      {
        "response": responses.texts[row],
        "total": float(reward.total_B[row]) if reward.kept_B[row] else None,
        "rewards": {
          name: float(x[row]) if np.isfinite(x[row]) else None
          for name, x in reward.scores.dimensions.items()
        },
        "ended": bool(responses.stopped_B[row]),
        "tokens": int(responses.counts_B[row]),
      }
      for row in range(first, first + config.rollout.samples)
    ],
  }


# What comes of all candidates.


def finish(lines: Sequence[dict[str, Any]], config: BestOfNConfig, workdir: Path) -> None:
  """Writes best.jsonl, the report, and rows.jsonl where rows are kept; shows the report.

  Raises:
    ValueError: no response has a reward, or none is good enough for a row.
  """
  ranked = [ranking(line["responses"]) for line in lines]
  if not any(ranked):
    raise ValueError("no response has a reward; see reward.bad_rows.")
  best = [
    {key: line[key] for key in ("number", "place", "prompt", "messages")} | one[0]
    for line, one in zip(lines, ranked, strict=True)
    if one
  ]
  _write_lines(workdir / BEST, best)
  report = make_report(ranked, config.counts)
  if config.keep.rows:
    rows, said = kept_rows(lines, ranked, config.keep)
    _write_lines(workdir / ROWS, rows)
    report["rows"] = said
  write_atomically(workdir / REPORT, json.dumps(report, indent=2) + "\n")
  print(f"{table(report)}\nAll of it is in {workdir}: {CANDIDATES}, {BEST}, {REPORT}", end="")
  if config.keep.rows:
    print(
      f", and {said['rows']:,} rows of {said['prompts']:,} prompts in {ROWS}. To train on them:\n"
      f"python -m train.main --config configs/sft.py:{config.run} --workdir runs/more "
      f"--config.data.sources.main={workdir / ROWS}",
      end="",
    )
  print(".")


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
  write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

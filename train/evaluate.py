"""Evaluation: published benchmarks, safety sets and held-out texts, scored by a run's weights.

  python -m train.main --config configs/evaluate.py:runs/quickstart

items.jsonl in the workdir has a line an item as soon as it is computed; a restart goes on after
them. eval.json has the whole at the end.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data import chat
from data.config import parse
from model import batching, decode
from model.config import ComputeConfig, ModelConfig
from model.params import count, param_specs
from model.sampling import SamplingConfig
from model.sharding import MeshConfig, make_mesh
from train import results
from train.requests import Encoder, open_encoder
from train.scorer import Group, Request, Scorer
from train.signals import StopRequest
from train.suite import (
  SuiteConfig,
  Task,
  answer_scores,
  contaminated,
  groups,
  item_scores,
  read_suite,
)
from train.weights import open_run, read_weights
from train.workdir import write_config

_PROGRESS_SECONDS = 10
_CHUNK = 16  # tokens of an answer between two looks for its end


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
  """Every section of a recipe of evaluation.

  Attributes:
    run: the folder of a run, or of an imported model.
    weights: "raw" or "average"; None for the average where the run keeps one.
    step: of the checkpoint; None for the newest.
  """

  stage: str
  run: str
  weights: str | None
  step: int | None
  compute: ComputeConfig
  mesh: MeshConfig
  suite: SuiteConfig


parse_config = functools.partial(parse, EvaluateConfig)


def execute(
  config: dict[str, Any], parsed: EvaluateConfig, workdir: Path, stop: StopRequest
) -> bool:
  """Evaluates what is not evaluated yet; returns whether that is all."""
  run = open_run(Path(parsed.run))
  encoder = open_encoder(run.tokenizer, run.eot, run.model.vocab_size)
  template = None
  if parsed.suite.chat_template is not None:
    template = chat.load_template(parsed.suite.chat_template, str(run.tokenizer), run.eot)
  tasks = read_suite(parsed.suite, encoder, run.max_length, template)
  dirty = None if parsed.suite.corpus is None else contaminated(tasks, parsed.suite)
  mesh = make_mesh(parsed.mesh)
  weights = read_weights(run, mesh, parsed.weights, parsed.step)
  identity = {
    "run": str(run.folder),
    "step": weights.step,
    "weights": weights.which,
    "tokenizer": encoder.fingerprint,
    "bos": list(encoder.bos),
  }
  write_config(workdir, config)
  said = f"begins a text with the ids {list(encoder.bos)}" if encoder.bos else "adds no BOS"
  print(f"{run.folder}, step {weights.step}, {weights.which} weights; the tokenizer {said}.")
  stops = template.stop_ids if template else (encoder.eot,)
  model = Model(weights.params, run.model, parsed.compute, mesh, encoder, stops)
  items = results.Items(workdir / results.ITEMS, identity, jax.process_index() == 0)
  try:
    with jax.set_mesh(mesh):
      scorer = Scorer(run.model, parsed.compute, mesh, parsed.suite.batch_tokens)
      finished = compute(tasks, model, scorer, parsed.suite, items, stop.wanted, Progress())
  finally:
    items.close()
  if not finished:
    return False
  summary = results.summarize(tasks, items.done, dirty)
  described = identity | {"parameters": count(param_specs(run.model))}
  if jax.process_index() == 0:
    results.write(workdir / results.SUMMARY, {"model": described, "tasks": summary})
  print(f"\n{results.table(summary)}\n\nEvery item is in {workdir / results.SUMMARY}.")
  return True


@dataclasses.dataclass(frozen=True)
class Model:
  """All that scoring and generation need of a model; `stop` are the ids that end an answer."""

  params: dict
  config: ModelConfig
  compute: ComputeConfig
  mesh: Mesh
  encoder: Encoder
  stop: Sequence[int]


class Progress:
  """A line of progress every few seconds."""

  def __init__(self):
    self._last = self._start = time.monotonic()

  def __call__(self, task: str, done: int, total: int, requests: int) -> None:
    now = time.monotonic()
    if now - self._last >= _PROGRESS_SECONDS:
      self._last = now
      rate = requests / (now - self._start)
      print(f"{task}: {done:,} of {total:,} items; {rate:.1f} requests/s in all", flush=True)


def compute(
  tasks: Sequence[Task],
  model: Model,
  scorer: Scorer,
  config: SuiteConfig,
  items: results.Items,
  stopping: Callable[[], bool],
  progress: Callable[[str, int, int, int], None],
) -> bool:
  """Computes the items that `items` has not, batch by batch; False if it was asked to stop.

  Call it under `jax.set_mesh(model.mesh)`.
  """
  requests = 0
  for task in tasks:
    lines = _generated if task.generates else _scored
    done = sum((task.name, entry.item.id) in items.done for entry in task.entries)
    for batch in lines(task, model, scorer, config, items):
      items.add(batch)
      done += len(batch)
      requests += sum(len(line.get("log_likelihoods", [0])) for line in batch)
      progress(task.name, done, len(task.entries), requests)
      if stopping():
        return False
  return True


def _scored(
  task: Task, model: Model, scorer: Scorer, config: SuiteConfig, items: results.Items
) -> Iterator[list[dict]]:
  """The lines of a task's items, batch by batch."""
  for indices in groups(task).values():
    left = [i for i in indices if (task.name, task.entries[i].item.id) not in items.done]
    group = Group([task.entries[i].requests for i in left])
    for batch in scorer.batches(model.params, group):
      lines = []
      for index, found in batch:
        entry = task.entries[left[index]]
        values = {
          "log_likelihoods": [result.sum for result in found],
          "greedy": [result.greedy for result in found],
        }
        lines.append(results.line(task, entry, item_scores(task, entry, found), **values))
      yield lines


def _generated(
  task: Task, model: Model, scorer: Scorer, config: SuiteConfig, items: results.Items
) -> Iterator[list[dict]]:
  """The same of generated answers, as they are completed: greedy, longest prompts first."""
  left = [e for e in task.entries if (task.name, e.item.id) not in items.done]
  left.sort(key=lambda entry: -len(entry.context))
  requests = [
    batching.Request(
      number=number,
      prompt=entry.context,
      max_tokens=config.max_tokens,
      sampling=SamplingConfig(temperature=0.0, top_p=1.0),
      stop_ids=tuple(model.stop),
      stop_strings=task.form.until,
    )
    for number, entry in enumerate(left)
  ]
  if not requests:
    return
  batcher = batching.Batcher(
    decode.prepare(model.params, model.config, model.compute),
    model.config,
    model.compute,
    slots=config.batch_rows,
    length=len(left[0].context) + config.max_tokens,
    like=requests[:1],
    chunk=_CHUNK,
    decode=model.encoder.decode,
  )
  for completion in batcher.run(requests):
    entry, answer = left[completion.number], completion.text
    values = {"text": answer, "finish_reason": completion.finish_reason}
    yield [results.line(task, entry, answer_scores(task, entry, answer), **values)]


@dataclasses.dataclass(frozen=True)
class TaskScore:
  """A task's metrics, {name: {"value", "stderr", "n"}}, as they are logged during training."""

  metrics: dict[str, dict[str, Any]]

  def __str__(self) -> str:
    return ", ".join(f"{name} {results.shown(name, m)}" for name, m in self.metrics.items())


def make_evaluator(
  suite: SuiteConfig,
  tokenizer: Path,
  eot: str,
  max_length: int,
  config: ModelConfig,
  compute_config: ComputeConfig,
  mesh: Mesh,
) -> Callable[[dict], dict[str, TaskScore]]:
  """Makes `evaluate(params)` for the cadence of a training run; its items are read once.

  Args:
    tokenizer, eot: the file, and the name of its end of text.
    max_length: tokens of the context.

  Raises:
    ValueError: a set is missing or damaged.
  """
  encoder = open_encoder(tokenizer, eot, config.vocab_size)
  template = None
  if suite.chat_template is not None:
    template = chat.load_template(suite.chat_template, str(tokenizer), eot)
  tasks = read_suite(suite, encoder, max_length, template)
  scorer = Scorer(config, compute_config, mesh, suite.batch_tokens)
  stops = template.stop_ids if template else (encoder.eot,)

  def evaluate(params: dict) -> dict[str, TaskScore]:
    model = Model(params, config, compute_config, mesh, encoder, stops)
    items = results.Items(None, {}, False)
    compute(tasks, model, scorer, suite, items, lambda: False, lambda *_: None)
    summary = results.summarize(tasks, items.done)
    return {name: TaskScore(found["metrics"]) for name, found in summary.items()}

  return evaluate


def make_score_fn(params: dict, scorer: Scorer, mesh: Mesh) -> Callable[[Any], list]:
  """Makes the `score_fn` of `seqio.Evaluator` for tasks of `data.tasks.register_benchmark`.

  It takes the dataset of (index, {"inputs", "targets"}), as `data.tasks.Unpadded` leaves them, and
  gives (index, log-likelihood of the targets).
  """

  def score(examples) -> list[tuple[int, float]]:
    items: dict[bytes, list[tuple[int, Request]]] = {}
    for index, example in examples.as_numpy_iterator():
      ids = np.concatenate([example["inputs"], example["targets"]]).astype(np.int32)
      request = Request(ids, len(example["targets"]))
      items.setdefault(example["inputs"].tobytes(), []).append((int(index), request))
    members = list(items.values())
    group = Group([[request for _, request in item] for item in members])
    found = []
    with jax.set_mesh(mesh):
      for batch in scorer.batches(params, group):
        for number, results in batch:
          pairs = zip(members[number], results, strict=True)
          found += [(index, result.sum) for (index, _), result in pairs]
    return sorted(found)

  return score

"""The corpus pipeline beyond one machine: its stages as steps of datatrove's executors.

  python -m data.executors --config configs/corpus.py:raw --workdir out --executor slurm \\
    --tasks 500 --options time=04:00:00,partition=cpu

The workdir must be on a file system that all machines share. Six jobs follow each other: the first
pass over the documents, their order, comparisons, clusters, the second pass, and the report. Jobs
and tasks that were completed are not run again; the output is that of `python -m data.corpus`.
"""

import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from ml_collections import config_flags

from data import corpus, duplicates, publish, refine, stages
from data.config import parse
from data.corpus_config import CorpusConfig
from data.parallel import Workers
from data.record import Fault
from data.units import Input, Unit

EXECUTORS = ("local", "slurm", "ray")


@dataclasses.dataclass(frozen=True)
class Run:
  """What every task of a run knows.

  Attributes:
    config, settings: the recipe, parsed and as JSON values.
    workdir: on a file system that all tasks share.
    inputs, units: what is read.
  """

  config: CorpusConfig
  settings: Mapping[str, Any]
  workdir: Path
  inputs: Sequence[Input]
  units: Sequence[Unit]


class Read(PipelineStep):
  """Yields the documents and faults of a task's units, those that are finished left out."""

  name, type = "read", "Straits"

  def __init__(self, run: Run):
    super().__init__()
    self._run = run

  def run(self, data=None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
    for unit in self._run.units[rank::world_size]:
      if refine.paths(self._run.workdir, unit).stats.exists():
        continue
      seconds: dict[str, float] = {}
      for number, item in enumerate(refine.read(unit, self._run.config, seconds)):
        text = "" if isinstance(item, Fault) else item.text
        metadata = {"item": item, "unit": unit, "seconds": seconds}
        yield Document(text, f"{unit.name}/{number}", metadata=metadata)


class Judge(PipelineStep):
  """One stage of the pipeline, for the documents of those sources that go through it.

  A document that is rejected stays, as its provenance does; `data.stages` has what a stage does.
  """

  type = "Straits"

  def __init__(self, run: Run, place: int):
    super().__init__()
    self._run, self._place = run, place
    self.name = f"stage {place + 1}"

  def run(self, data, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
    steps = functools.cache(functools.partial(stages.make_stages, self._run.config))
    for document in data:
      draft, unit = document.metadata["item"], document.metadata["unit"]
      mine = steps(unit.source)[self._place : self._place + 1]
      if mine and not isinstance(draft, Fault) and not draft.rejected:
        draft = stages.run(draft, mine, document.metadata["seconds"])
        document.metadata["item"], document.text = draft, draft.text
        self.stat_update("rejected" if draft.rejected else "passed")
      yield document


class Store(PipelineStep):
  """Keeps the documents of each unit, with their hashes and signatures."""

  name, type = "store", "Straits"

  def __init__(self, run: Run):
    super().__init__()
    self._run = run

  def run(self, data, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
    groups = itertools.groupby(data, key=lambda document: document.metadata["unit"])
    for unit, documents in groups:
      first = next(documents)
      drafts = (d.metadata["item"] for d in itertools.chain([first], documents))
      seconds = first.metadata["seconds"]
      refine.store(unit, drafts, self._run.config, self._run.workdir, seconds)
    yield from ()


class Calls(PipelineStep):
  """A task's share of the calls of a function."""

  type = "Straits"

  def __init__(self, name: str, function: Callable[..., Any], calls: Sequence[tuple]):
    super().__init__()
    self.name, self._function, self._calls = name, function, calls

  def run(self, data=None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
    for arguments in self._calls[rank::world_size]:
      self._function(*arguments)
    yield from ()


def jobs(run: Run, tasks: int) -> list[tuple[str, list[PipelineStep], int]]:
  """The jobs of a run, each after the one before it: (name, pipeline, tasks).

  Args:
    run: what is to be done.
    tasks: of the jobs that are done in parts, at most; no job has more than it has parts.
  """
  most = max(len(source.stages) for source in run.config.sources.values())
  first = [Read(run), *(Judge(run, place) for place in range(most)), Store(run)]
  compared = duplicates.comparisons(run.units, run.config, run.workdir)
  published = [(unit, run.units, run.config, run.workdir) for unit in run.units]
  alone = [(run,)]
  return [
    ("refine", first, min(tasks, len(run.units))),
    ("order", [Calls("order", _order, alone)], 1),
    ("compare", [Calls("compare", duplicates.compare, compared)], min(tasks, len(compared))),
    ("connect", [Calls("connect", _connect, alone)], 1),
    ("publish", [Calls("publish", publish.publish, published)], min(tasks, len(published))),
    ("finish", [Calls("finish", _finish, alone)], 1),
  ]


def _order(run: Run) -> None:
  with Workers(0) as workers:
    duplicates.order(run.units, run.config, run.workdir, workers, corpus.Progress())


def _connect(run: Run) -> None:
  with Workers(run.config.workers) as workers:
    duplicates.connect(run.config, run.workdir, workers, corpus.Progress())


def _finish(run: Run) -> None:
  began = (run.workdir / "plan.json").stat().st_mtime
  elapsed = time.time() - began
  corpus.finish(run.config, run.settings, run.inputs, run.units, run.workdir, elapsed)


def executors(run: Run, kind: str, tasks: int, options: Mapping[str, Any]) -> list[Any]:
  """An executor a job, in order; those of Slurm each depend on the one before.

  Args:
    run: what is to be done.
    kind: one of EXECUTORS.
    tasks: as of `jobs`.
    options: further arguments of datatrove's executor, such as workers, time and partition.

  Raises:
    ValueError: an unknown option.
  """
  import datatrove.executor

  make = getattr(datatrove.executor, f"{kind.capitalize()}PipelineExecutor")
  made: list[Any] = []
  for name, pipeline, count in jobs(run, tasks):
    named = dict(options, logging_dir=str(run.workdir / "work" / "jobs" / name))
    if kind == "slurm":
      named |= {"job_name": name, "depends": made[-1] if made else None}
    try:
      made.append(make(pipeline=pipeline, tasks=count, **named))
    except TypeError as error:
      raise ValueError(f"--options: {error}.") from error
  return made


def execute(
  config: Mapping[str, Any], workdir: Path, kind: str, tasks: int, options: Mapping[str, Any]
) -> int:
  """Runs a recipe under an executor, or submits it to Slurm; returns the exit code."""
  workdir = workdir.absolute()
  try:
    parsed = parse(CorpusConfig, config)
    settings = corpus.settings_of(config)
    inputs, work = corpus.prepare(parsed, settings, workdir)
    made = executors(Run(parsed, settings, workdir, inputs, work), kind, tasks, options)
    if kind == "slurm":
      made[-1].run()  # which submits those that it depends on first
      print(f"Submitted; {workdir / 'manifest.json'} is written last.")
      return corpus.DONE
    for executor in made:
      executor.run()
      if failed := executor.get_incomplete_ranks():
        where = workdir / "work" / "jobs"
        print(f"error: {len(failed)} tasks failed; {where} says why.", file=sys.stderr)
        return corpus.STOPPED
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return corpus.BAD_INPUT
  return corpus.DONE


def parse_options(pairs: Iterable[str]) -> dict[str, Any]:
  """KEY=VALUE as arguments of an executor; whole numbers are numbers.

  Raises:
    ValueError: one has no "=".
  """
  options = {}
  for pair in pairs:
    key, equals, value = pair.partition("=")
    if not equals:
      raise ValueError(f"--options has {pair!r}; it must be KEY=VALUE.")
    options[key] = int(value) if value.lstrip("-").isdigit() else value
  return options


def main(argv: Sequence[str]) -> int:
  if len(argv) > 1 or _CONFIG.value is None or _WORKDIR.value is None:
    print("error: needed are --config and --workdir; --help explains them.", file=sys.stderr)
    return corpus.BAD_INPUT
  logging.set_verbosity(logging.WARNING)
  try:
    options = parse_options(_OPTIONS.value)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return corpus.BAD_INPUT
  config = _CONFIG.value.to_dict()
  return execute(config, Path(_WORKDIR.value), _EXECUTOR.value, _TASKS.value, options)


if __name__ == "__main__":
  _CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe: a file of configs/.")
  _WORKDIR = flags.DEFINE_string("workdir", None, "Where the corpus and its report are kept.")
  _EXECUTOR = flags.DEFINE_enum("executor", "local", EXECUTORS, "Of datatrove.")
  _TASKS = flags.DEFINE_integer("tasks", 2, "How many parts a job has at most.", lower_bound=1)
  _OPTIONS = flags.DEFINE_list("options", [], "Further arguments of the executor: time=1:00:00")
  app.run(main, flags_parser=corpus.parse_flags)

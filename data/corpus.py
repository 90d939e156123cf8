"""Makes a training set from raw dumps, by a recipe.

  python -m data.corpus --config configs/corpus.py:raw --workdir out

Any key of the recipe can be set as --config.KEY=VALUE. Written to the workdir:

  documents/   what is kept, for people: zstd JSONL or Parquet
  training/    the same texts as ArrayRecord, to train on: data.sources.web.path=out/training/web-*
  provenance/  every document that was read, kept or not: where it came from, each stage's decision
  manifest.json, report.json, report.html
  work/        what a stopped run goes on from; may be deleted when it is done

Started again, it goes on at the shard where it stopped. The output depends on the recipe and the
files only: not on their order, on `workers` or on restarts.

Exit codes: 0 done, 2 bad input, 75 stopped and wants to be started again.
"""

import contextlib
import fcntl
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

DONE, BAD_INPUT, STOPPED = 0, 2, 75


def run(config: Mapping[str, Any], workdir: Path) -> int:
  """Makes the corpus of a recipe, or goes on with it; returns the exit code."""
  from data.config import parse
  from data.corpus_config import CorpusConfig
  from data.parallel import Stopped, StopSignals

  try:
    parsed = parse(CorpusConfig, config)
    with StopSignals(), _only_run(workdir):
      manifest = make(parsed, settings_of(config), workdir)
  except Stopped as signal:
    print(f"\n{signal}: stopped. The same command goes on in {workdir}.", file=sys.stderr)
    return STOPPED
  except (ValueError, OSError) as error:
    print(f"\nerror: {error}", file=sys.stderr)
    if isinstance(error, OSError):
      print(f"What is finished is kept; the same command goes on in {workdir}.", file=sys.stderr)
    return BAD_INPUT
  print(_closing(manifest, workdir))
  return DONE


def make(config, settings: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
  """Makes the corpus, or what is missing of it; returns the manifest.

  Args:
    config: CorpusConfig.
    settings: the part of the recipe that the output depends on, as JSON values.
    workdir: where it is kept.

  Raises:
    ValueError: of the recipe or its files.
    OSError: what can't be read or written.
  """
  from data import duplicates, files
  from data.parallel import Workers

  start = time.monotonic()
  inputs, work = prepare(config, settings, workdir)
  if (workdir / "manifest.json").exists():
    return files.read_json(workdir / "manifest.json")
  _remove_partials(workdir)
  progress = Progress()
  with Workers(min(config.workers, len(work))) as workers:
    documents = 0
    calls = workers.map(_refine, [(unit, config, workdir) for unit in work])
    for number, stats in enumerate(calls, start=1):
      documents += stats["passed"].get("read", [0])[0]
      progress(f"reading and filtering: {documents:,} documents", number, len(work))
    duplicates.find(work, config, workdir, workers, progress)
    kept = 0
    calls = workers.map(_publish, [(unit, work, config, workdir) for unit in work])
    for number, stats in enumerate(calls, start=1):
      kept += stats["kept"]
      progress(f"writing: {kept:,} documents kept", number, len(work))
  return finish(config, settings, inputs, work, workdir, time.monotonic() - start)


def prepare(config, settings: Mapping[str, Any], workdir: Path):
  """Begins a run, or finds that it was begun so; returns its inputs and units.

  Raises:
    ValueError: of the recipe or its files; or the run was begun with others.
  """
  from data import publish, stages, units

  inputs = units.find(config)
  if not units.begun(inputs, settings, workdir):
    stages.check(config)
    publish.write_index(config, workdir)
    units.begin(inputs, settings, workdir)
  return inputs, units.group(inputs, config.shard_bytes)


def finish(config, settings, inputs, work, workdir: Path, seconds: float) -> dict[str, Any]:
  """Writes the report and then the manifest, which is returned."""
  from data import corpus_report, files, publish, refine

  first = [refine.refine(unit, config, workdir) for unit in work]
  second = [publish.publish(unit, work, config, workdir) for unit in work]
  report = corpus_report.collect(config, work, first, second, workdir)
  corpus_report.write(report | {"seconds": seconds}, workdir)
  manifest = publish.manifest(config, settings, inputs, work, second)
  files.write_json(workdir / "manifest.json", manifest)
  return manifest


def _refine(unit, config, workdir):
  from data import refine

  return refine.refine(unit, config, workdir)


def _publish(unit, units, config, workdir):
  from data import publish

  return publish.publish(unit, units, config, workdir)


class Progress:
  """A line on stderr that is written over on a terminal, and else now and then."""

  def __init__(self):
    self._start = time.monotonic()
    self._shown = -1e9
    self._terminal = sys.stderr.isatty()

  def __call__(self, what: str, done: int, total: int) -> None:
    now = time.monotonic()
    if done < total and now - self._shown < (0.2 if self._terminal else 5):
      return
    self._shown = now
    line = f"{what}  {done}/{total}  {now - self._start:.0f} s"
    end = "\n" if done == total or not self._terminal else ""
    print(f"\r{line:<100}" if self._terminal else line, end=end, file=sys.stderr, flush=True)


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
  """What the output depends on, as JSON values."""
  kept = {key: value for key, value in config.items() if key != "workers"}
  return json.loads(json.dumps(kept, sort_keys=True, default=list))


@contextlib.contextmanager
def _only_run(workdir: Path):
  """Two runs at once would write the same files.

  Raises:
    ValueError: another run is at work here.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / ".lock").open("w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(f"another run is at work in {workdir}; wait for it, or stop it.") from None
    yield


def _remove_partials(workdir: Path) -> None:
  """What a killed run left half written."""
  for path in workdir.rglob(".*.partial"):
    path.unlink()


def _closing(manifest: Mapping[str, Any], workdir: Path) -> str:
  lines = [f"{'source':<16}{'weight':>8}{'documents':>12}{'bytes':>16}"]
  for name, source in manifest["sources"].items():
    lines.append(
      f"{name:<16}{source['weight']:>8.3g}{source['documents']:>12,}{source['bytes']:>16,}"
    )
  lines += [f"manifest {workdir / 'manifest.json'}", f"report   {workdir / 'report.html'}"]
  return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
  if len(argv) > 1:
    print(f"error: unexpected argument {argv[1]!r}; flags begin with --.", file=sys.stderr)
    return BAD_INPUT
  if _CONFIG.value is None or _WORKDIR.value is None:
    print("error: --config and --workdir are needed; --help explains them.", file=sys.stderr)
    return BAD_INPUT
  logging.set_verbosity(logging.WARNING)
  return run(_CONFIG.value.to_dict(), Path(_WORKDIR.value))


def parse_flags(argv: Sequence[str]) -> list[str]:
  """The arguments that are no flags; a wrong flag, key or recipe is one message and exit code 2."""
  try:
    rest = flags.FLAGS(argv)
    if flags.FLAGS["config"].value is not None:
      flags.FLAGS["config"].value.to_dict()  # says why a recipe could not be loaded
    return rest
  except (AttributeError, KeyError) as error:
    near = str(error.args[0]).replace("\\n", " ").replace("\n", " ")
    print(f"error: the recipe has no key {near}", file=sys.stderr)
  except (flags.Error, OSError, ValueError, TypeError) as error:
    print(f"error: {error}", file=sys.stderr)
  except (SyntaxError, ImportError) as error:
    print(f"error: the recipe can't be loaded: {error}", file=sys.stderr)
  sys.exit(BAD_INPUT)


if __name__ == "__main__":
  _CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe: a file of configs/.")
  _WORKDIR = flags.DEFINE_string("workdir", None, "Where the corpus and its report are kept.")
  if {"--help", "-h", "-help", "--helpfull"} & set(sys.argv[1:]):
    print(__doc__)
    sys.exit(DONE)
  app.run(main, flags_parser=parse_flags)

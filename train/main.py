"""Trains by a recipe.

  python -m train.main --config configs/quickstart.py
  python -m train.main --config configs/pretrain.py --config.data.sources.main.path='docs/*.jsonl'

Any key of the recipe can be set as --config.KEY=VALUE; --help together with --config lists them.
All that a run writes is in its --workdir (default runs/<config>): config.json, metrics.jsonl,
checkpoints/, samples.txt. Started again, it continues where it stopped. Ctrl-C and SIGTERM save
first.

Exit codes: 0 done, 2 bad input, 3 diverged, 75 saved and wants to be started again.
"""

# The heavy imports are in the functions: a loader's worker process imports this file again.
import importlib
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from train.command_line import BAD_INPUT, DONE, parse_flags

# Each is train/<name>.py with parse_config(config) and
#   TRAINING: run(parsed, workdir, recorder, stop) -> whether it came to its end, and
#             closing(parsed, workdir) -> what to say then;
#   COMMANDS: execute(config, parsed, workdir, stop) -> the same; it has no steps and no recorder,
#             calls `write_config(workdir, config)` once all is checked, and says what it did.
TRAINING = ("pretrain", "sft", "reward", "dpo", "ppo")
COMMANDS = ("evaluate", "sample", "calibrate", "diversity", "best_of_n", "pipeline")
DIVERGED, STOPPED = 3, 75

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe: a file of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is kept; runs/<config> by default.")
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, where a run has several; found out under Slurm."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes the run has.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_HANG_MINUTES = flags.DEFINE_float(
  "hang_minutes", 30.0, "End a process in which nothing has moved for so long; 0: never."
)
_ALLOW = flags.DEFINE_list(
  "allow", [], "Keys, or sections, that may differ from the run in the workdir: mesh,train.steps"
)
_FLAGS = (
  *(_CONFIG, _WORKDIR, _ALLOW, _COORDINATOR, _PROCESSES, _PROCESS_ID),
  _HANG_MINUTES,
)


def run(
  config: Mapping[str, Any], workdir: Path, allow: Sequence[str] = (), hang_minutes: float = 0
) -> int:
  """Runs the stage that the recipe names, or continues it; returns the exit code.

  Args:
    config: a recipe, as nested mappings; see `configs/pretrain.py`.
    workdir: the run's folder.
    allow: keys that may differ from those that the run in `workdir` began with.
    hang_minutes: how long a phase of training may take before the process ends; 0: any time.
  """
  from train.distributed import HangWatch
  from train.recorder import Diverged, Recorder
  from train.signals import StopRequest
  from train.workdir import check_workdir, named
  from train.xla import prepare

  try:
    stages = TRAINING + COMMANDS
    if config.get("stage") not in stages:
      raise ValueError(f"stage is {config.get('stage')!r}; it must be one of {', '.join(stages)}.")
    stage = importlib.import_module(f"train.{config['stage']}")
    parsed = stage.parse_config(config)
    config = named(config)
    changed = check_workdir(workdir, config, allow)
    if config["stage"] in TRAINING:
      prepare(parsed.train.xla_profile)
    with StopRequest() as stop:
      if config["stage"] in COMMANDS:
        finished = stage.execute(config, parsed, workdir, stop)
      else:
        with Recorder(workdir, config, parsed, changed) as recorder:
          if recorder.finished is not None:
            print(f"The run in {workdir} is finished, at step {recorder.finished}.")
            return DONE
          with HangWatch(lambda: recorder.ledger.moved, 60 * hang_minutes, workdir):
            finished = stage.run(parsed, workdir, recorder, stop)
          if finished:
            recorder.done()
            print(stage.closing(parsed, workdir))
    if not finished:
      print(f"Saved. The same command continues the run in {workdir}.")
      return STOPPED
  except Diverged as error:
    return _report(error, workdir, DIVERGED)
  except (ValueError, OSError) as error:
    return _report(error, workdir, BAD_INPUT)
  return DONE


def _report(error: Exception, workdir: Path, code: int) -> int:
  """One message for the user; where it came from is kept for whoever wants to know."""
  print(f"error: {error}", file=sys.stderr)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "traceback.txt"
    path.write_text("".join(traceback.format_exception(error)))
    print(f"(traceback in {path})", file=sys.stderr)
  except OSError:
    pass  # the folder itself is what could not be written; the message says so
  return code


def default_workdir(config_flag: str) -> Path:
  """runs/a for "configs/a.py", and runs/a-b for its variants "configs/a.py:b" and "...:x/b"."""
  file, _, variant = config_flag.partition(":")
  return Path("runs") / "-".join(filter(None, (Path(file).stem, Path(variant).name)))


def describe(config: Mapping[str, Any] | None) -> str:
  """What --help prints: this page, the flags, and the keys of the recipe if one is named."""
  from train.workdir import flatten

  lines = [__doc__, "Flags:"]
  lines += [f"  --{f.name}: {flags.FLAGS[f.name].help}" for f in _FLAGS]
  if config is not None:
    lines += ["", "Keys of the recipe, with their values:"]
    lines += [f"  --config.{key}={value}" for key, value in flatten(config).items()]
  return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
  if len(argv) > 1:
    print(f"error: unexpected argument {argv[1]!r}; flags begin with --.", file=sys.stderr)
    return BAD_INPUT
  if _CONFIG.value is None:
    print("error: --config is missing; try --config configs/quickstart.py", file=sys.stderr)
    return BAD_INPUT
  logging.set_verbosity(logging.WARNING)
  workdir = _WORKDIR.value or default_workdir(
    config_flags.get_config_filename(flags.FLAGS["config"])
  )
  workdir = Path(workdir)
  from jax.errors import JaxRuntimeError

  from train import distributed

  try:
    several = distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS_ID.value)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return BAD_INPUT
  try:
    code = run(_CONFIG.value.to_dict(), workdir, _ALLOW.value, _HANG_MINUTES.value)
  except JaxRuntimeError as error:
    if several:
      distributed.end_without_peers(f"another process is gone, or a link: {error}", workdir)
    raise
  if several and code not in (DONE, STOPPED):
    distributed.end_without_peers("it can't go on; its message is above", workdir)
  return code


def entry() -> None:
  """The command line; --help explains it, and lists the recipe's keys where one is named."""
  arguments = [a for a in sys.argv[1:] if a not in ("--help", "-h", "-help", "--helpfull")]
  wants_help = len(arguments) < len(sys.argv) - 1

  def help_or_main(argv):
    if wants_help:
      print(describe(_CONFIG.value and _CONFIG.value.to_dict()))
      return DONE
    return main(argv)

  app.run(help_or_main, argv=[sys.argv[0], *arguments], flags_parser=parse_flags)


if __name__ == "__main__":
  entry()

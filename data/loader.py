"""The loader at work: a hash over the global batches, or a packed row to look at.

  python -m data.loader --config configs/quickstart.py --steps 100 --hosts 4 --workers 2 --hash
  python -m data.loader --config configs/quickstart.py --show

The first prints the SHA-256 of the stream of global batches, which no number of hosts or workers
and no restart changes; the second a packed row as text.
"""

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import multiprocessing.connection
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from data import sources
from data.batch import Batch
from data.batches import Cursors, Loader
from data.config import DataConfig, parse
from data.mixture import make_mixture
from data.tokenizer import Tokenizer

BAD_INPUT = 2

Part = tuple[Batch, Cursors]


def define_flags() -> dict[str, flags.FlagHolder]:
  """The flags by name; other commands have some of the same names, so none is defined at import."""
  return {
    "config": config_flags.DEFINE_config_file("config", None, "The recipe: a file of configs/."),
    "workdir": flags.DEFINE_string(
      "workdir",
      None,
      "A run's folder, for its tokenizer and embedded corpus; else a temporary one.",
    ),
    "hosts": flags.DEFINE_integer("hosts", 1, "Hosts that read different rows.", lower_bound=1),
    "processes": flags.DEFINE_bool("processes", False, "Make each host a process of its own."),
    "workers": flags.DEFINE_integer("workers", None, "Worker processes a host, not the recipe's."),
    "steps": flags.DEFINE_integer("steps", 10, "Global batches to read.", lower_bound=1),
    "restart": flags.DEFINE_string(
      "restart", None, "STEP:HOSTS: stop after STEP, and go on from its cursors with HOSTS hosts."
    ),
    "hash": flags.DEFINE_bool("hash", False, "Print the SHA-256 of all batches."),
    "show": flags.DEFINE_bool("show", False, "Print a row of the last batch as text."),
    "row": flags.DEFINE_integer("row", 0, "Which row --show prints.", lower_bound=0),
  }


def main(argv: Sequence[str], values: dict) -> int:
  """Reads the batches; returns the exit code."""
  logging.set_verbosity(logging.WARNING)
  try:
    if len(argv) > 1:
      raise ValueError(f"unexpected argument {argv[1]!r}; flags begin with --.")
    if values["config"] is None:
      raise ValueError("--config is missing; try --config configs/quickstart.py")
    recipe = dict(values["config"].to_dict())
    if values["workers"] is not None:
      recipe["data"] = recipe["data"] | {"workers": values["workers"]}
    plan = _plan(values["hosts"], values["steps"], values["restart"])
    with contextlib.ExitStack() as stack:
      folder = values["workdir"] or stack.enter_context(tempfile.TemporaryDirectory())
      _read(parse(DataConfig, recipe["data"], "config.data"), recipe["seed"], folder, plan, values)
  except (KeyError, OSError, ValueError) as error:
    print(f"error: {error}", file=sys.stderr)
    return BAD_INPUT
  return 0


def _plan(hosts: int, steps: int, restart: str | None) -> list[tuple[int, int]]:
  """(hosts, steps) of each start."""
  if restart is None:
    return [(hosts, steps)]
  at, _, then = restart.partition(":")
  if not (at.isdigit() and then.isdigit() and 0 < int(at) < steps and int(then) > 0):
    raise ValueError(f"--restart={restart} must be STEP:HOSTS, with STEP below --steps={steps}.")
  return [(hosts, int(at)), (int(then), steps - int(at))]


def _read(config: DataConfig, seed: int, folder: str, plan, values) -> None:
  corpus = sources.open_corpus(config, Path(folder))
  tokenizer = sources.open_tokenizer(config, corpus, Path(folder))
  mixture = make_mixture(config, corpus, tokenizer, seed)
  if values["row"] >= config.batch_size:
    raise ValueError(f"--row={values['row']} is not below data.batch_size={config.batch_size}.")
  sha, filled, done, began, cursors = hashlib.sha256(), 0, 0, time.perf_counter(), None
  for hosts, steps in plan:
    read = _in_processes if values["processes"] else _in_turn
    with contextlib.closing(read(config, mixture, tokenizer, hosts, cursors)) as batches:
      for part in itertools.islice(batches, steps):
        batch, cursors = part
        for key in sorted(batch):
          sha.update(key.encode() + batch[key].tobytes())
        filled, done = filled + int(np.count_nonzero(batch["segment_ids"])), done + 1
        if sys.stderr.isatty():
          print(f"\rbatch {done}/{values['steps']}", end="", file=sys.stderr)
    cursors = json.loads(json.dumps(cursors))  # as a checkpoint would keep them
  if sys.stderr.isatty():
    print(file=sys.stderr)
  if values["show"]:
    print(show(batch, values["row"], tokenizer))
  places, seconds = done * config.batch_size * config.seq_len, time.perf_counter() - began
  print(f"{done} batches, {filled:,} tokens, {filled / places:.2%} of the places, {seconds:.1f} s")
  if values["hash"]:
    print(f"sha256 {sha.hexdigest()}")


def _in_turn(config, mixture, tokenizer, hosts, cursors) -> Iterator[Part]:
  """Global batches, from loaders in this process."""
  with contextlib.ExitStack() as stack:
    loaders = [
      Loader(config, mixture, tokenizer, host_index=host, host_count=hosts, cursors=cursors)
      for host in range(hosts)
    ]
    for each in loaders:
      stack.callback(each.close)
    while True:
      yield _merge([next(each) for each in loaders])


def _in_processes(config, mixture, tokenizer, hosts, cursors) -> Iterator[Part]:
  """Global batches, from a process for each host."""
  context = multiprocessing.get_context("spawn")
  pipes, processes = [], []
  for host in range(hosts):
    ours, theirs = context.Pipe()
    arguments = (theirs, config, mixture, tokenizer, host, hosts, cursors)
    processes.append(context.Process(target=_host, args=arguments))
    processes[-1].start()
    theirs.close()
    pipes.append(ours)
  try:
    while True:
      parts = [pipe.recv() for pipe in pipes]
      for part in parts:
        if isinstance(part, Exception):
          raise part
      yield _merge(parts)
  except EOFError:
    raise ValueError("a host's process ended; see its message above.") from None
  finally:
    for pipe in pipes:
      pipe.close()
    for process in processes:
      process.join()


def _host(pipe, config, mixture, tokenizer, host, hosts, cursors) -> None:
  try:
    each = Loader(config, mixture, tokenizer, host_index=host, host_count=hosts, cursors=cursors)
    try:
      for part in each:
        pipe.send(part)
    finally:
      each.close()
  except ConnectionError:
    pass  # enough was read
  except ValueError as error:
    pipe.send(error)


def _merge(parts: Sequence[Part]) -> Part:
  batch = {key: np.concatenate([rows[key] for rows, _ in parts]) for key in parts[0][0]}
  return batch, {v: cursor for _, cursors in parts for v, cursor in cursors.items()}


def show(batch: Batch, row: int, tokenizer: Tokenizer) -> str:
  """A row as text: a line of figures before each of its documents."""
  segments, lines = batch["segment_ids"][row], []
  for segment in range(1, int(segments.max()) + 1):
    at = segments == segment
    ids = [int(i) for i in batch["tokens"][row][at]]
    ends = batch["targets"][row][at][-1] == tokenizer.eot
    begins = ids[0] == tokenizer.eot
    parts = ("" if begins else ", goes on from another row") + (
      "" if ends else ", goes on elsewhere"
    )
    lines.append(f"--- segment {segment}: {len(ids)} places{parts}")
    lines.append(_printable(tokenizer.decode(ids[begins:])))
  lines.append(f"--- padding: {int(np.count_nonzero(segments == 0))} places")
  return "\n".join(lines)


def _printable(text: str) -> str:
  """A document's text without what would steer the terminal."""
  return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def parse_flags(argv: Sequence[str]) -> list[str]:
  """The arguments that are no flags; a wrong flag, key or recipe is one message and exit code 2."""
  try:
    return flags.FLAGS(argv)
  except (AttributeError, KeyError, OSError, ValueError, flags.Error) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def entry() -> None:
  """The command line; --help explains it."""
  holders = define_flags()
  if {"--help", "-h"} & set(sys.argv):
    print(__doc__ + "\nFlags:")
    print("\n".join(f"  --{name}: {flags.FLAGS[name].help}" for name in holders))
    return
  app.run(
    lambda argv: main(argv, {name: holder.value for name, holder in holders.items()}),
    flags_parser=parse_flags,
  )


if __name__ == "__main__":
  entry()

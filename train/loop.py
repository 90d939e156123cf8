"""The one loop of every supervised stage: when to log, save, evaluate and stop."""

import concurrent.futures
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data.batch import Batch
from data.batches import Cursors
from model.sharding import batch_shards
from train import xla
from train.average import snapshot_steps
from train.checkpoint import Checkpointer
from train.config import RunConfig
from train.heldout import Score
from train.initial import given_params
from train.optimizer import learning_rate, make_optimizer
from train.placement import from_parts, sharding_of
from train.recorder import Recorder
from train.signals import StopRequest
from train.state import TrainState, abstract_state, init_state, state_shardings
from train.step import LossFn, make_train_step

MODEL = "model"


class Loader(Iterator[tuple[Batch, Cursors]], Protocol):
  """Batches with the cursors after them; closed after use. See `data.batches.Loader`."""

  def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Stage:
  """What a supervised stage brings to the loop.

  Attributes:
    specs: the parameters.
    loss_fn: the objective, as `train.step` documents it.
    rows: one row of a batch, for its shapes, of each length that rows may have.
    make_loader: a loader that continues from the streams' cursors, or starts with None.
    evaluate: held-out scores, by the name of the set, of given weights.
    progress: what a training line says of the data position that cursors describe.
    sample: writes what given weights say at a step; None where only the end of a run is sampled.
    sample_every: steps from one such sample to the next.
  """

  specs: dict
  loss_fn: LossFn
  rows: tuple[Batch, ...]
  make_loader: Callable[[Cursors | None], Loader]
  evaluate: Callable[[dict], dict[str, Score]]
  progress: Callable[[Cursors], dict[str, float]]
  sample: Callable[[int, dict], None] | None
  sample_every: int


def train(
  stage: Stage,
  config: RunConfig,
  workdir: Path,
  mesh: Mesh,
  recorder: Recorder,
  stop: StopRequest,
) -> tuple[TrainState, bool]:
  """Trains to `config.train.steps`, continuing from the newest checkpoint in `workdir`.

  Call it under `jax.set_mesh(mesh)`. At a step that is due for both, it saves before it evaluates,
  so that an evaluation that fails costs nothing.

  Returns:
    the state, and whether that is the end; otherwise a signal stopped the run, which is saved.

  Raises:
    train.recorder.Diverged: too many steps in a row were not finite.
    ValueError, OSError: bad input, or what could not be read or written.
  """
  total, ledger = config.train.steps, recorder.ledger
  optimizer = make_optimizer(config.optimizer, total, stage.specs)
  abstract = abstract_train_state(stage.specs, config, optimizer, mesh)
  with ledger("compile"):
    fixed = (config, optimizer, abstract, mesh)
    step_fns = {
      row["tokens"].shape[1]: compile_step(
        trace_step(stage.specs, stage.loss_fn, row, *fixed).lower(), config
      )
      for row in stage.rows
    }
  checkpoints = open_checkpoints(config, workdir)
  try:
    with ledger("compile" if checkpoints.latest() is None else "checkpoint"):
      state, extra = restore_or_init(checkpoints, stage.specs, config, optimizer, abstract)
    start = int(state.step)
    recorder.start(config, start, extra["tokens"])
    loader = stage.make_loader(extra["cursors"])
    batches = _placed(loader, mesh)
    try:
      # What a kill, or new files, left to do; and what the given weights are worth.
      if _due(start, config.eval.every, total) or (start == 0 and config.train.init_from):
        recorder.evaluate(start, stage.evaluate, state)
        _sample(stage, start, state, total, recorder)
      recorder.mark()
      for step in range(start + 1, total + 1):
        with ledger("data_wait"):
          rows, cursors, batch = next(batches)
        step_fn = step_fns[rows["tokens"].shape[1]]
        state = recorder.run_step(step, step_fn, state, batch, rows, stage.progress(cursors))
        stopping = stop.wanted()
        if stopping or _due(step, config.checkpoint.every, total):
          recorder.drain()  # every step is looked at before it is saved
          with ledger("checkpoint"):
            extra = {
              "cursors": all_cursors(cursors),
              "tokens": recorder.tokens,
              "average_window": average_window(config),
            }
            checkpoints.save(step, {MODEL: state}, extra)
        if stopping and step < total:
          return state, False
        if _due(step, config.eval.every, total):
          recorder.drain()
          recorder.evaluate(step, stage.evaluate, state)
        _sample(stage, step, state, total, recorder)
      return state, True
    finally:
      batches.close()
      loader.close()
  finally:
    with ledger("checkpoint"):
      checkpoints.close()


def _placed(
  loader: Iterator[tuple[Batch, Cursors]], mesh: Mesh
) -> Iterator[tuple[Batch, Cursors, dict[str, jax.Array]]]:
  """What the loader yields, and the batch on the devices: sent while the step before it runs."""

  def fetch():
    rows, cursors = next(loader)
    return rows, cursors, from_parts(rows, mesh)

  with concurrent.futures.ThreadPoolExecutor(1, "batches") as thread:
    ahead = thread.submit(fetch)
    while True:
      placed, ahead = ahead.result(), thread.submit(fetch)
      yield placed


def _due(step: int, every: int, total: int) -> bool:
  return step > 0 and (step % every == 0 or step == total)


def _sample(stage: Stage, step: int, state: TrainState, total: int, recorder: Recorder) -> None:
  if stage.sample is not None and (step == 0 or _due(step, stage.sample_every, total)):
    with recorder.ledger("evaluation"):
      stage.sample(step, state.params)


def check_sizes(config: RunConfig, mesh: Mesh, buckets: Sequence[int] = ()) -> None:
  """Raises ValueError, naming both, where a size of the data is not divisible by the mesh."""
  shards, context = batch_shards(mesh), mesh.shape["context"]
  parts = shards * config.train.microbatches
  chunks = config.compute.loss_chunks * context
  for name, size, divisor, what in (
    ("data.batch_size", config.data.batch_size, parts, "row shards x train.microbatches"),
    ("eval.batch_size", config.eval.batch_size, shards, "row shards"),
    ("data.seq_len", config.data.seq_len, context, "parts of the context axis"),
    ("data.seq_len", config.data.seq_len, chunks, "loss chunks"),
    *(("data.buckets", length, context, "parts of the context axis") for length in buckets),
    *(("data.buckets", length, chunks, "loss chunks") for length in buckets),
  ):
    if size % divisor:
      raise ValueError(
        f"{name}={size} is not divisible by the {divisor} {what} of mesh {dict(mesh.shape)}; "
        f"use a multiple of {divisor}."
      )


def abstract_train_state(
  specs: dict, config: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
  """Shapes, dtypes and shardings of the state, without an array."""
  return abstract_state(
    functools.partial(_initial, specs, config, optimizer),
    lambda state: state_shardings(state, optimizer, specs, mesh),
  )


def _initial(specs: dict, config: RunConfig, optimizer) -> TrainState:
  average = config.average.fraction > 0
  return init_state(specs, optimizer, config.loss_scale, config.seed, average)


def trace_step(
  specs: dict,
  loss_fn: LossFn,
  row: Batch,
  config: RunConfig,
  optimizer: optax.GradientTransformation,
  abstract: TrainState,
  mesh: Mesh,
) -> jax.stages.Traced:
  """The training step for the mesh, to lower and compile: where training runs, or elsewhere.

  It takes over the memory of the state that it is given. Call it under `jax.set_mesh(mesh)`.
  `row` is one row of a batch, for its shapes; shorter ones than data.seq_len are so many more.
  """
  step = make_train_step(
    loss_fn,
    optimizer,
    learning_rate(config.optimizer, config.train.steps),
    specs,
    scale=config.loss_scale,
    average=config.average,
    total_steps=config.train.steps,
    microbatches=config.train.microbatches,
    row_shards=batch_shards(mesh),
  )
  rows = config.data.batch_size * config.data.seq_len // row["tokens"].shape[1]
  batch = {
    name: jax.ShapeDtypeStruct(
      (rows, *array.shape[1:]), array.dtype, sharding=sharding_of(name, mesh)
    )
    for name, array in row.items()
  }
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  metrics = NamedSharding(mesh, PartitionSpec())
  jitted = jax.jit(step, out_shardings=(shardings, metrics), donate_argnums=0)
  return jitted.trace(abstract, batch)


def compile_step(lowered: jax.stages.Lowered, config: RunConfig) -> jax.stages.Compiled:
  """Compiles with the recipe's options. Raises ValueError for one that this XLA does not have."""
  options = xla.step_options(config.train.xla_profile, config.train.xla_options)
  try:
    return lowered.compile(compiler_options=options or None)
  except jax.errors.JaxRuntimeError as error:
    if "option" not in str(error) or not options:
      raise
    raise ValueError(
      f"train.xla_profile {config.train.xla_profile!r} and train.xla_options make {options}: "
      f"{error}; correct the option, or leave it out."
    ) from error


def open_checkpoints(config: RunConfig, workdir: Path) -> Checkpointer:
  """The run's checkpoints, kept as its config says."""
  average = config.average
  return Checkpointer(
    workdir / "checkpoints",
    keep_last=config.checkpoint.keep_last,
    keep_every=config.checkpoint.keep_every,
    average_steps=snapshot_steps(config.train.steps, average.fraction, average.every),
    verify=config.checkpoint.verify,
  )


def average_window(config: RunConfig) -> list[float]:
  """What decides which steps are in the running mean of the weights."""
  return [config.train.steps, config.average.fraction, config.average.every]


def restore_or_init(
  checkpoints: Checkpointer,
  specs: dict,
  config: RunConfig,
  optimizer: optax.GradientTransformation,
  abstract: TrainState,
) -> tuple[TrainState, dict]:
  """The state, cursors and token count of the newest checkpoint, or of a new run.

  A new run has random weights, or those of `train.init_from`.
  """
  if checkpoints.latest() is not None:
    _, trees, extra = checkpoints.restore({MODEL: abstract})
    state = trees[MODEL]
    if int(state.step) > config.train.steps:
      raise ValueError(
        f"the newest checkpoint is of step {int(state.step)}, past train.steps="
        f"{config.train.steps}; use at least as many steps, or another workdir."
      )
    if extra["average_window"] != average_window(config):
      # Snapshots of another window are no part of this one's mean.
      state = state.replace(average_count=0 * state.average_count)
    return state, extra
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  make = jax.jit(functools.partial(_initial, specs, config, optimizer), out_shardings=shardings)
  state = make()
  if config.train.init_from is not None:
    given = given_params(config.train.init_from, abstract.params)
    state = state.replace(
      params=jax.tree.map(
        lambda g, p: p if g is None else g, given, state.params, is_leaf=lambda x: x is None
      )
    )
  return state, {"cursors": None, "tokens": 0.0}


def all_cursors(cursors: Cursors) -> Cursors:
  """The cursors of every process's streams, on every process."""
  if jax.process_count() == 1:
    return cursors
  mine = np.frombuffer(json.dumps(cursors).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(mine.size))
  padded = np.pad(mine, (0, int(sizes.max()) - mine.size))
  gathered = multihost_utils.process_allgather(padded)
  merged: Cursors = {}
  for row, size in zip(gathered, sizes, strict=True):
    merged |= json.loads(row[:size].tobytes())
  return merged

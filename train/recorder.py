"""What a run tells while it trains: metrics, progress, evaluations, skipped steps, the ledger."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from model.params import flops_per_token
from train import monitor
from train.config import RunConfig
from train.heldout import Score
from train.metrics import MetricsLog, Pending, Progress, progress_text, read
from train.profiler import Profiler
from train.state import TrainState
from train.workdir import write_config

METRICS = "metrics.jsonl"
# What `train.step` reports beside the loss function's own sums.
_OF_THE_STEP = ("grad_norm", "weight", "lr", "loss_scale", "skipped", "updates")


class Diverged(RuntimeError):
  """Training can't go on: too many steps in a row were not finite."""


class Recorder:
  """The record of one run, from its start to its end or stop.

  Attributes:
    ledger: the wall-clock by category.
    finished: the step at which the run in the workdir had come to its end before, or None.
    tokens: targets that counted in the loss, up to the last step recorded.

  Args:
    workdir: the run's folder.
    raw: the config as given, for config.json.
    config: the same, parsed.
    changed: {key: (old, new)} of what may differ from the run in the workdir.
  """

  def __init__(self, workdir: Path, raw: Mapping[str, Any], config: RunConfig, changed: Mapping):
    self.ledger = monitor.Ledger()
    self.tokens = 0.0
    self._workdir, self._raw, self._config, self._changed = workdir, raw, config, changed
    self._log: MetricsLog | None = None
    self._pending = Pending()
    self._waiting: dict[int, tuple[dict, dict]] = {}
    self._bad_in_a_row = 0
    self._skipped = 0
    last = read(workdir / METRICS)[-1:] if (workdir / METRICS).exists() else []
    done = bool(last) and last[0]["kind"] == "done" and not changed
    self.finished: int | None = last[0]["step"] if done else None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._log is not None:
      self._progress.close()
      self._log.write("ledger", **self.ledger.seconds())
      self._log.close()

  def start(
    self, config: RunConfig, step: int, tokens: float, text: Callable[..., str] = progress_text
  ) -> None:
    """Begins the record of steps after `step`; from here on the folder is a run of this config.

    `config` is that of the run with the number of its steps, `text` makes its progress line.
    """
    self._config = config
    self.tokens = tokens
    if jax.process_index() == 0:
      write_config(self._workdir, self._raw)
    self._log = MetricsLog(self._workdir / METRICS, resume_step=step or None)
    for key, (old, new) in self._changed.items():
      self._log.write("config", step=step, key=key, old=old, new=new)
    self._progress = Progress(config.train.steps, config.log.every, text=text)
    self._profiler = Profiler(config.log.profile_every)
    if config.log.peak_flops is None:
      self._peak, source = monitor.peak_flops(config.compute.dtype)
    else:
      self._peak, source = config.log.peak_flops * jax.device_count(), "log.peak_flops"
    self._flops = functools.cache(functools.partial(flops_per_token, config.model))
    device = {"device": jax.devices()[0].device_kind, "devices": jax.device_count()}
    self._log.write("peak_flops", value=self._peak, source=source, **device)
    print(f"Peak for MFU: {source}." + (f" Continuing at step {step}." if step else ""))
    self.mark()

  def run_step(
    self,
    step: int,
    step_fn: Callable,
    state: TrainState,
    batch: dict,
    rows: dict[str, np.ndarray],
    progress: dict[str, float],
  ) -> TrainState:
    """`step_fn(state, batch)`, its metrics taken into the record; returns the new state.

    Args:
      rows: this process's part of the batch, on the host.
      progress: further fields of the training line.

    Raises:
      Diverged: too many steps in a row were not finite.
    """
    with self.ledger("step"):
      with self._profiler.around(step):
        state, metrics = step_fn(state, batch)
      self._waiting[step] = rows, progress
      self._record(self._pending.push(step, metrics))
    return state

  def drain(self) -> None:
    """Waits for and records all steps so far."""
    with self.ledger("step"):
      self._record(self._pending.drain())
    self._log.sync()

  def write(self, kind: str, **fields) -> None:
    """Adds a line of a stage's own."""
    self._progress.close()
    self._log.write(kind, **fields)

  def write_step(self, step: int, line: Mapping[str, Any]) -> None:
    """Adds the training line of a stage that measures its own steps."""
    self._log.write("train", **({"step": step} | line))
    self._progress.update({"step": step} | line)

  def evaluate(
    self, step: int, evaluate: Callable[[dict], dict[str, Score]], state: TrainState
  ) -> None:
    """Evaluates the raw weights, and their mean once there is one; logs what is not logged yet."""
    with self.ledger("evaluation"):
      scores = {"raw": evaluate(state.params)}
      if state.average is not None and int(state.average_count):
        scores["average"] = evaluate(state.average)
    self._progress.close()
    logged = self._evaluations(step)
    for weights, by_set in scores.items():
      for name, score in by_set.items():
        if (name, weights) in logged:
          continue
        self._log.write(
          "eval",
          step=step,
          set=name,
          weights=weights,
          **dataclasses.asdict(score),
        )
        print(f"step {step:,}: held-out {name} ({weights} weights): {score}", flush=True)

  def _evaluations(self, step: int) -> set[tuple[str, str]]:
    """(set, weights) of the evaluations at `step` that the log holds."""
    if jax.process_index() != 0:
      return set()
    lines = read(self._workdir / METRICS)
    return {
      (line["set"], line["weights"])
      for line in lines
      if line["kind"] == "eval" and line["step"] == step
    }

  def done(self) -> None:
    """Ends the record of a run that came to its end."""
    if self._skipped == self._config.train.steps:
      raise Diverged("not one step was finite, so nothing was learned; see the lines of kind skip.")
    self._log.write("ledger", **self.ledger.seconds())
    self._log.write("done", step=self._config.train.steps)
    self._log.close()
    self._log = None
    print(f"Where the time went:\n{self.ledger.table()}")

  def mark(self) -> None:
    """Begins the first step's time."""
    spent = self.ledger.seconds()
    self._data_wait = spent["data_wait"]
    self._last = time.perf_counter()
    self._aside = spent["checkpoint"] + spent["evaluation"]

  def _record(self, steps: list[tuple[int, dict[str, np.generic]]]) -> None:
    """Writes the training lines of steps whose metrics have arrived."""
    for step, metrics in steps:
      now, spent = time.perf_counter(), self.ledger.seconds()
      aside = spent["checkpoint"] + spent["evaluation"]
      seconds = max(now - self._last - (aside - self._aside), 1e-6)
      self._last, self._aside = now, aside
      wait, self._data_wait = spent["data_wait"] - self._data_wait, spent["data_wait"]
      rows, fields = self._waiting.pop(step)
      self.tokens += float(metrics["weight"])
      speed = self._config.data.batch_size * self._config.data.seq_len / seconds
      in_use, peak, source = monitor.device_memory()
      self._skipped = step - int(metrics["updates"])
      flops = self._flops(rows["segment_ids"].shape[1])
      line = {
        "step": step,
        "tokens": self.tokens,
        **{name: value for name, value in metrics.items() if name not in _OF_THE_STEP},
        "grad_norm": metrics["grad_norm"],
        "lr": metrics["lr"],
        "loss_scale": metrics["loss_scale"],
        "skipped": self._skipped,
        "tokens_per_sec": speed,
        "step_time": seconds,
        "data_wait": min(wait, seconds),
        "mfu": monitor.mfu(speed, flops[0], self._peak),
        "mfu_full": monitor.mfu(speed, flops[1], self._peak),
        "mfu_segments": monitor.mfu(speed, self._segment_flops(rows, flops), self._peak),
        "device_memory_bytes": in_use,
        "device_memory_peak": peak,
        "device_memory_source": source,
        **fields,
        **self._profiler.fields,
      }
      self._log.write("train", **line)
      self._progress.update({**line, "loss": float(metrics["loss"])})
      self._check(step, metrics, rows)

  def _segment_flops(self, rows: dict[str, np.ndarray], flops: tuple[float, float]) -> float:
    """FLOPs a place in the rows, with attention inside documents only and none for padding."""
    segment_ids, model = rows["segment_ids"], self._config.model
    matmuls = 2 * flops[0] - flops[1]  # without attention
    tokens = np.count_nonzero(segment_ids)
    attention = monitor.segment_attention_flops(segment_ids, model)
    return (matmuls * tokens + attention) / segment_ids.size

  def _check(self, step: int, metrics: dict[str, np.generic], rows: dict) -> None:
    """Keeps the batch of a skipped step; too many in a row end the run."""
    if not metrics["skipped"]:
      self._bad_in_a_row = 0
      return
    self._bad_in_a_row += 1
    kept = self._workdir / "skipped" / f"{step}-process{jax.process_index()}.npz"
    kept.parent.mkdir(exist_ok=True)
    np.savez_compressed(kept, **rows)
    self._log.write(
      "skip",
      step=step,
      loss=metrics["loss"],
      grad_norm=metrics["grad_norm"],
      loss_scale=metrics["loss_scale"],
      batch=str(kept.relative_to(self._workdir)),
    )
    at_floor = self._config.loss_scale.dynamic and metrics["loss_scale"] <= 1
    if at_floor or self._bad_in_a_row >= self._config.train.max_skipped:
      self._progress.close()
      why = "at loss scale 1" if at_floor else f"for {self._bad_in_a_row} steps in a row"
      raise Diverged(
        f"at step {step} the loss is {float(metrics['loss'])} and the gradient norm "
        f"{float(metrics['grad_norm'])}: not finite {why}. The weights are those from before "
        f"these steps; the batches are in {kept.parent}. Lower optimizer.peak_lr, compute in "
        "bfloat16 or float32, or turn on model.qk_norm, and continue from the last checkpoint."
      )

"""Temperature scaling of a run: fits on one part of the data, reports on another.

  python -m train.main --config configs/calibrate.py:runs/quickstart

For the next tokens of held-out documents, and where files are named for the options of
multiple-choice questions and the pairs of a reward model. The temperatures are kept with the model,
in its calibration.json, for probabilities that are reported; sampling does not look at them.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data import sources
from data.config import DataConfig, parse
from data.documents import Documents
from model.config import ComputeConfig, ModelConfig
from model.decode import prefill, prepare, token_logits
from model.sharding import MeshConfig, batch_shards, make_mesh
from train import calibration
from train.calibration import Sums
from train.requests import Encoder, open_encoder
from train.signals import StopRequest
from train.weights import Run, open_run, read_weights
from train.workdir import write_atomically, write_config

NEXT_TOKEN, CHOICE, PAIR = "next_token", "multiple_choice", "reward_pairs"
_CHUNK = 256  # positions whose logits are held at one time
_READ = 64  # documents


@dataclasses.dataclass(frozen=True)
class CalibrateConfig:
  """Every section of a recipe of calibration.

  Attributes:
    run: the folder of a run, or of an imported model.
    weights: "raw" or "average"; None for the average where the run keeps one.
    step: of the checkpoint; None for the newest.
    documents: a path or glob of documents that the model was not trained on; None for those that
      the run held out.
    tokens: so many targets are taken, about half to fit and half to report.
    seq_len: tokens of a row.
    batch_size: rows that are computed together.
    evaluation: an eval.json, or its folder, whose questions with one right option are calibrated.
    pairs: JSONL with a reward model's scores, {"chosen": number, "rejected": number} a line, or the
      folder of the run that trained it, with those of its held-out pairs.
    max_bad_lines: malformed lines that a file of documents may have.
  """

  stage: str
  run: str
  weights: str | None
  step: int | None
  compute: ComputeConfig
  mesh: MeshConfig
  documents: str | None
  tokens: int
  seq_len: int
  batch_size: int
  evaluation: str | None
  pairs: str | None
  max_bad_lines: int

  def __post_init__(self):
    for name in ("tokens", "seq_len", "batch_size"):
      if getattr(self, name) < 2 - (name == "batch_size"):
        raise ValueError(f"{name} is {getattr(self, name)}; it is too small.")


parse_config = functools.partial(parse, CalibrateConfig)


def execute(
  config: Mapping[str, Any], parsed: CalibrateConfig, workdir: Path, stop: StopRequest
) -> bool:
  """Fits and reports; writes calibration.json into the workdir and beside the model."""
  del stop  # it takes less than a checkpoint's time
  run = open_run(Path(parsed.run))
  mesh = make_mesh(parsed.mesh)
  shards = batch_shards(mesh)
  if parsed.batch_size % shards:
    raise ValueError(f"batch_size={parsed.batch_size} must be a multiple of the {shards} shards.")
  # Files first: a wrong one should not cost the time of the tokens.
  choices = None if parsed.evaluation is None else read_choices(Path(parsed.evaluation))
  pairs = None if parsed.pairs is None else read_pairs(Path(parsed.pairs))
  encoder = open_encoder(run.tokenizer, run.eot, run.model.vocab_size)
  documents = _documents(parsed, run)
  with jax.set_mesh(mesh):
    found = read_weights(run, mesh, parsed.weights, parsed.step)
    weights = prepare(found.params, run.model, parsed.compute)
    identity = {"step": found.step, "weights": found.which}
    del found
    report = {NEXT_TOKEN: _next_tokens(weights, documents, encoder, run.model, parsed)}
  for name, items in ((CHOICE, choices), (PAIR, pairs)):
    if items is not None:
      report[name] = _choices(items)
  write_config(workdir, config)
  text = json.dumps(identity | report, indent=2) + "\n"
  if jax.process_index() == 0:
    write_atomically(workdir / calibration.FILE, text)
    write_atomically(run.folder / calibration.FILE, text)
  print(f"{table(report)}\n\nThe temperatures are in {run.folder / calibration.FILE}.")
  return True


def table(report: Mapping[str, Mapping[str, Any]]) -> str:
  """What is reported, before and after."""
  lines = [f"{'':16} {'T':>7} {'':>7} {'NLL':>8} {'Brier':>8} {'ECE':>8} {'accuracy':>9} {'n':>8}"]
  for name, part in report.items():
    for when in ("before", "after"):
      m = part[when]
      label, shown = (name, "") if when == "before" else ("", f"{part['temperature']:.4f}")
      lines.append(
        f"{label:16} {shown:>7} {when:>7} {m['nll']:8.4f} {m['brier']:8.4f} {m['ece']:8.4f} "
        f"{m['accuracy']:9.4f} {part['reported_on']:8,}"
      )
  return "\n".join(lines)


# Next tokens.


def _documents(config: CalibrateConfig, run: Run) -> Documents:
  if config.documents is not None:
    return sources.open_files(config.documents, config.max_bad_lines)
  section = run.recipe["data"]
  if "heldout_fraction" not in section or run.recipe.get("stage") != "pretrain":
    raise ValueError(
      f"{run.folder} holds no documents out; name some that it was not trained on: documents=PATH."
    )
  corpus = sources.open_saved_corpus(parse(DataConfig, section, "config.data"), run.folder)
  held = [documents for documents in corpus.heldout.values() if len(documents)]
  if not held:
    raise ValueError(f"{run.folder} holds no documents out; name others: documents=PATH.")
  return held[0]


@dataclasses.dataclass
class Part:
  """Positions of documents: their hidden states [n,D] and next tokens [n]."""

  hidden: list[np.ndarray] = dataclasses.field(default_factory=list)
  targets: list[np.ndarray] = dataclasses.field(default_factory=list)
  size: int = 0


def _next_tokens(weights, documents, encoder: Encoder, model: ModelConfig, config) -> dict:
  """Documents whose hash is even are fitted on, the others reported on."""
  parts, half = (Part(), Part()), config.tokens // 2
  forward = jax.jit(lambda weights, rows: prefill(weights, rows, model, config.compute)[0])
  for index, rows in _batches(documents, encoder, config):
    part = parts[index]
    if part.size >= half:
      continue
    tokens = np.zeros((config.batch_size, config.seq_len), np.int32)
    for row, ids in zip(tokens, rows, strict=False):
      row[: len(ids) - 1] = ids[:-1]
    for hidden_LD, ids in zip(np.asarray(forward(weights, tokens)), rows, strict=False):
      part.hidden.append(hidden_LD[: len(ids) - 1])
      part.targets.append(np.asarray(ids[1:], np.int32))
      part.size += len(ids) - 1
    if min(p.size for p in parts) >= half:
      break
  if not all(part.size for part in parts):
    raise ValueError("there are too few documents to fit on some and report on others; add some.")
  fitted, reported = (functools.partial(_token_sums, weights, model, part) for part in parts)
  return _fitted(fitted, reported, parts[0].size, parts[1].size)


def _batches(
  documents: Documents, encoder: Encoder, config: CalibrateConfig
) -> Iterator[tuple[int, list[list[int]]]]:
  """(0 to fit on or 1 to report on, rows of ids): documents cut to rows that do not overlap."""
  waiting: tuple[list, list] = ([], [])
  for first in range(0, len(documents), _READ):
    for text in documents.read(range(first, min(first + _READ, len(documents)))):
      part = hashlib.blake2b(text.encode("utf-8"), digest_size=1).digest()[0] % 2
      ids = [*encoder.encode(text), encoder.eot]
      for start in range(0, len(ids) - 1, config.seq_len):
        waiting[part].append(ids[start : start + config.seq_len + 1])
      while len(waiting[part]) >= config.batch_size:
        yield part, [waiting[part].pop(0) for _ in range(config.batch_size)]
  for part, rows in enumerate(waiting):
    if rows:
      yield part, rows


def _token_sums(weights: dict, model: ModelConfig, part: Part, b: float) -> Sums:
  hidden, targets = np.concatenate(part.hidden), np.concatenate(part.targets)
  found = []
  for first in range(0, len(targets), _CHUNK):
    some, wanted = hidden[first : first + _CHUNK], targets[first : first + _CHUNK]
    missing = _CHUNK - len(wanted)
    wanted = np.pad(wanted, (0, missing), constant_values=-1)
    some = np.pad(some, ((0, missing), (0, 0)))
    out = jax.device_get(_chunk_sums(weights, some, wanted, np.float32(b), config=model))
    found.append(Sums(*(np.asarray(x, np.float64) for x in out)))
  total = calibration.add(found)
  scalars = ("count", "nll", "slope", "curve", "brier")
  return dataclasses.replace(total, **{name: float(getattr(total, name)) for name in scalars})


@functools.partial(jax.jit, static_argnames="config")
def _chunk_sums(weights, hidden_BD, targets_B, b, *, config: ModelConfig):
  """`calibration.Sums` of positions, in its order; a target of -1 does not count."""
  logits_BV = token_logits(weights, hidden_BD, config)
  logits_BV -= jnp.max(logits_BV, axis=-1, keepdims=True)
  real_B = (targets_B >= 0).astype(jnp.float32)
  at_B1 = jnp.maximum(targets_B, 0)[:, None]
  log_p_BV = jax.nn.log_softmax(b * logits_BV, axis=-1)
  p_BV = jnp.exp(log_p_BV)
  mean_B = jnp.sum(p_BV * logits_BV, axis=-1)
  variance_B = jnp.sum(p_BV * jnp.square(logits_BV - mean_B[:, None]), axis=-1)
  log_p_B = jnp.take_along_axis(log_p_BV, at_B1, axis=-1)[:, 0]
  target_B = jnp.take_along_axis(logits_BV, at_B1, axis=-1)[:, 0]
  best_B = jnp.argmax(logits_BV, axis=-1)
  confidence_B = jnp.max(p_BV, axis=-1)
  brier_B = jnp.sum(jnp.square(p_BV), axis=-1) - 2 * jnp.exp(log_p_B) + 1
  bins = calibration.BINS
  bin_B = jnp.clip(jnp.ceil(confidence_B * bins).astype(jnp.int32) - 1, 0, bins - 1)
  right_B = (best_B == targets_B).astype(jnp.float32)
  columns = jnp.stack([real_B, real_B * confidence_B, real_B * right_B], axis=-1)
  return (
    jnp.sum(real_B),
    -jnp.sum(real_B * log_p_B),
    jnp.sum(real_B * (mean_B - target_B)),
    jnp.sum(real_B * variance_B),
    jnp.sum(real_B * brier_B),
    jnp.zeros((bins, 3)).at[bin_B].add(columns),
  )


# Choices.


@dataclasses.dataclass(frozen=True)
class Choice:
  """Scores of options, which of them is right, and what tells fitting from reporting."""

  name: str
  scores: tuple[float, ...]
  right: int


def read_choices(path: Path) -> list[Choice]:
  """The questions of an eval.json whose options have log-likelihoods, and one of them is right."""
  path = path / "eval.json" if path.is_dir() else path
  try:
    tasks = json.loads(path.read_text(encoding="utf-8"))["tasks"]
    items = [(name, item) for name, task in tasks.items() for item in task["items"]]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path} can't be read as an eval.json: {error}") from error
  found = [
    Choice(f"{name} {item['id']}", tuple(item["log_likelihoods"]), item["answer"])
    for name, item in items
    if isinstance(item.get("answer"), int)
    and len(item.get("log_likelihoods", ())) >= 2
    and 0 <= item["answer"] < len(item["log_likelihoods"])
  ]
  return _checked(found, path)


def read_pairs(path: Path) -> list[Choice]:
  """The comparisons of a reward model, of which the first is the better one."""
  path = path / calibration.SCORES if path.is_dir() else path
  found = []
  try:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
      pair = json.loads(line)
      found.append(Choice(f"{number}", (float(pair["chosen"]), float(pair["rejected"])), 0))
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path}, after {len(found)} pairs: {error!r}") from error
  return _checked(found, path)


def _checked(found: list[Choice], path: Path) -> list[Choice]:
  for choice in found:
    if not all(map(math.isfinite, choice.scores)):
      raise ValueError(f"{path}: {choice.name} has a score that is not finite.")
  if len(found) < 4:
    raise ValueError(f"{path} has {len(found)} items to calibrate; it needs at least 4.")
  return found


def _choices(items: Sequence[Choice]) -> dict:
  """Items whose hash is even are fitted on, the others reported on."""
  parts: tuple[list, list] = ([], [])
  for item in items:
    parts[hashlib.blake2b(item.name.encode(), digest_size=1).digest()[0] % 2].append(item)
  if not all(parts):
    raise ValueError(f"{len(items)} items are too few to fit on some and report on others.")
  fitted, reported = (
    functools.partial(calibration.choice_sums, [i.scores for i in part], [i.right for i in part])
    for part in parts
  )
  return _fitted(fitted, reported, len(parts[0]), len(parts[1]))


def _fitted(fitted, reported, count: int, others: int) -> dict[str, Any]:
  """The temperature of one part, and the measures of the other before and after."""
  temperature = calibration.fit(fitted)
  return {
    "temperature": temperature,
    "fitted_on": count,
    "reported_on": others,
    "before": reported(1.0).report(),
    "after": reported(1 / temperature).report(),
  }

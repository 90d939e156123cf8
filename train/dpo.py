"""Direct preference optimization: a policy from comparisons, without a reward model or rollouts.

The reference's log-probabilities of all answers are computed once, before the first step, from the
weights of its folder, and kept in the workdir: no step holds two models. With LoRA the reference is
the trunk that the policy shares, without its adapters.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from data.batch import Batch
from data.chat import ChatTemplate
from data.config import parse
from data.examples import fingerprint
from data.pair_batches import PairLoader
from data.preferences import DIMENSION, Preference, preference_batch, preferred
from model import lora
from model.params import param_specs
from model.sharding import abstract_params, host_rows, make_mesh
from train import loop, pairwise, reward_report
from train.checkpoint import Checkpointer
from train.config import DpoConfig
from train.initial import given_params
from train.preference_loss import answer_log_probs, pair_losses, preference_loss
from train.recorder import Recorder
from train.sft import Asked, open_template, progress, with_steps, write_answers
from train.signals import StopRequest
from train.step import LossFn
from train.workdir import write_atomically

REPORT, REFERENCE = "preference_report.json", "reference.npz"

parse_config = functools.partial(parse, DpoConfig)


@dataclasses.dataclass(frozen=True)
class PreferenceScore:
  """Of held-out pairs: mean loss, the share of positive margins (0 is half), mean margin."""

  loss: float
  accuracy: float
  margin: float

  def __str__(self) -> str:
    return f"loss {self.loss:.4f}, accuracy {self.accuracy:.1%}, margin {self.margin:.3f}"


def run(config: DpoConfig, workdir: Path, recorder: Recorder, stop: StopRequest) -> bool:
  """Trains, then reports; returns whether the run came to its end."""
  mesh = make_mesh(config.mesh)
  loop.check_sizes(config, mesh)
  data = config.data
  template = open_template(data, config.model.vocab_size)
  judge = functools.partial(preferred, weights=config.preference)
  train, held_out = pairwise.open_pairs(data, tuple(config.preference), template, workdir, judge)
  log_probs = make_log_probs(config, mesh)
  with jax.set_mesh(mesh):
    with recorder.ledger("evaluation"):
      train, held_out = with_reference(train, held_out, log_probs, config, workdir, mesh)
    index, count = host_rows(mesh, data.batch_size)
    make_loader = functools.partial(
      PairLoader,
      train,
      functools.partial(pair_batch, config=config),
      config.seed,
      batch_size=data.batch_size,
      seq_len=data.seq_len,
      max_pairs=data.max_segments // 2,
      host_index=index,
      host_count=count,
    )
    batches = make_loader(cursors=None).batches_an_epoch
    config = with_steps(config, batches)
    specs, loss_fn = objective(config)
    asked = prompts(held_out, template, config)
    stage = loop.Stage(
      specs=specs,
      loss_fn=loss_fn,
      rows=(empty_row(config),),
      make_loader=lambda cursors: make_loader(cursors=cursors),
      progress=functools.partial(progress, batches_an_epoch=batches),
      evaluate=lambda params: {"pairs": score(log_probs(params, held_out), held_out, config)},
      sample=functools.partial(write_answers, asked, template, config, workdir, recorder)
      if asked
      else None,
      sample_every=config.sample.every,
    )
    state, finished = loop.train(stage, config, workdir, mesh, recorder, stop)
    if finished:
      with recorder.ledger("evaluation"):
        finish(log_probs(state.params, held_out), train, held_out, config, workdir)
  return finished


def closing(config: DpoConfig, workdir: Path) -> str:
  """What a run that came to its end says."""
  del config
  return f"All of it is in {workdir}: {REPORT}, metrics.jsonl, samples/, checkpoints/."


def objective(config: DpoConfig) -> tuple[dict, LossFn]:
  """The parameters' specs and the loss: what the training step is made of."""
  loss_fn = functools.partial(
    preference_loss, model=config.model, compute=config.compute, config=config.loss
  )
  return lora.add(param_specs(config.model), config.lora), loss_fn


def pair_batch(rows: Sequence[Sequence[Preference]], config: DpoConfig) -> Batch:
  """The arrays of rows of preferences."""
  return preference_batch(rows, config.data.seq_len, config.data.max_segments // 2)


def empty_row(config: DpoConfig) -> Batch:
  """One row of a batch, for its shapes."""
  return pair_batch([[]], config)


def make_log_probs(config: DpoConfig, mesh: Mesh) -> pairwise.PairMap:
  """Makes `log_probs(params, pairs)`: [N,2], of both answers of each pair."""
  return pairwise.make_pair_map(
    functools.partial(answer_log_probs, model=config.model, compute=config.compute),
    functools.partial(pair_batch, config=config),
    config.data,
    config.eval.batch_size,
    mesh,
  )


def prompts(
  held_out: Sequence[Preference], template: ChatTemplate, config: DpoConfig
) -> list[Asked]:
  """The prompts of the first held-out pairs, each once, with the chosen answer."""
  chosen = {pair.group: pair for pair in reversed(held_out)}
  pairs = list(reversed(chosen.values()))[: config.sample.prompts]
  return [
    Asked(
      pair.prompt,
      template.prompt_ids(pair.prompt),
      template.decode(pair.chosen.ids[pair.chosen.mask]).strip(),
    )
    for pair in pairs
  ]


# The reference.


def with_reference(
  train: Sequence[Preference],
  held_out: Sequence[Preference],
  log_probs: pairwise.PairMap,
  config: DpoConfig,
  workdir: Path,
  mesh: Mesh,
) -> tuple[list[Preference], list[Preference]]:
  """The pairs with the reference's log-probabilities, those of the first start at every other.

  Raises:
    ValueError: the run goes on, and what it began with is not there, or is of other pairs.
  """
  pairs = [*train, *held_out]
  name = fingerprint([side for pair in pairs for side in (pair.chosen, pair.rejected)])
  path = workdir / REFERENCE
  if Checkpointer(workdir / "checkpoints").steps():
    found = _read(path, name)  # the folder of the reference may have changed meanwhile
  else:
    folder = config.reference or config.train.init_from
    params = given_params(folder, abstract_params(param_specs(config.model), mesh))
    found = log_probs(params, pairs)
    if jax.process_index() == 0:
      temporary = path.with_name(f".{REFERENCE}.tmp")
      with open(temporary, "wb") as file:
        np.savez(file, fingerprint=name, log_probs=found)
        file.flush()
        os.fsync(file.fileno())
      temporary.replace(path)
  done = [
    dataclasses.replace(pair, reference=(float(chosen), float(rejected)))
    for pair, (chosen, rejected) in zip(pairs, found, strict=True)
  ]
  return done[: len(train)], done[len(train) :]


def _read(path: Path, name: str) -> np.ndarray:
  try:
    with np.load(path) as file:
      there, found = str(file["fingerprint"]), file["log_probs"]
  except (OSError, ValueError, KeyError) as error:
    raise ValueError(
      f"{path}, the reference's log-probabilities that this run began with, can't be read "
      f"({error}); restore it, or start in a new workdir."
    ) from error
  if there != name:
    raise ValueError(
      f"{path} is of the pairs {there}, and the sources now give {name}; restore the files, or "
      "start in a new workdir."
    )
  return found


# What it is worth.


def score(found: np.ndarray, pairs: Sequence[Preference], config: DpoConfig) -> PreferenceScore:
  """Of the policy's log-probabilities [N,2]."""
  margin = margins(found, pairs, config)
  loss = np.asarray(pair_losses(margin, config.loss))
  right = np.where(margin == 0, 0.5, margin > 0)
  return PreferenceScore(float(loss.mean()), float(right.mean()), float(margin.mean()))


def margins(found: np.ndarray, pairs: Sequence[Preference], config: DpoConfig) -> np.ndarray:
  """beta times the difference of log-ratios, chosen minus rejected, [N]."""
  ratios = found - np.array([pair.reference for pair in pairs], np.float32)
  return config.loss.beta * (ratios[:, 0] - ratios[:, 1])


def finish(
  found: np.ndarray,
  train: Sequence[Preference],
  held_out: Sequence[Preference],
  config: DpoConfig,
  workdir: Path,
) -> None:
  """Writes the report on held-out pairs, and shows it."""
  margin = margins(found, held_out, config)
  longer = reward_report.length_baseline(train, DIMENSION)
  none = np.zeros(len(held_out), bool)  # no temperature is fitted
  one = reward_report.dimension_report(held_out, margin, DIMENSION, 1.0, longer, none)
  report = dataclasses.asdict(score(found, held_out, config)) | {
    "pairs": one,
    "length": length_report(margin, held_out),
    "log_probs": log_prob_report(found, held_out),
  }
  if jax.process_index() == 0:
    write_atomically(workdir / REPORT, json.dumps(report, indent=2) + "\n")
  print(f"Held-out pairs:\n{reward_report.table({DIMENSION: one})}")
  moved = {side: report["log_probs"][side]["change"] for side in ("chosen", "rejected")}
  print(
    f"Log-probability against the reference: chosen {moved['chosen']:+.2f} nats, rejected "
    f"{moved['rejected']:+.2f}."
  )


def length_report(margin: np.ndarray, pairs: Sequence[Preference]) -> dict:
  """Whether the policy has learned length: accuracy where the better answer is the longer one."""
  lengths = np.array([pair.lengths for pair in pairs], float)
  gap = lengths[:, 0] - lengths[:, 1]
  right = np.where(margin == 0, 0.5, margin > 0)
  varies = len(gap) > 1 and gap.std() > 0 and margin.std() > 0
  return {
    "tokens": {"chosen": float(lengths[:, 0].mean()), "rejected": float(lengths[:, 1].mean())},
    "chosen_longer": reward_report.accuracy(right[gap > 0]),
    "chosen_shorter": reward_report.accuracy(right[gap < 0]),
    "correlation_of_margin_and_length": float(np.corrcoef(margin, gap)[0, 1]) if varies else None,
  }


def log_prob_report(found: np.ndarray, pairs: Sequence[Preference]) -> dict:
  """How probable the answers are now and under the reference, in nats, by side."""
  reference = np.array([pair.reference for pair in pairs])
  tokens = np.array([pair.lengths for pair in pairs], float)
  return {
    side: {
      "reference": float(reference[:, s].mean()),
      "policy": float(found[:, s].mean()),
      "change": float((found - reference)[:, s].mean()),
      "change_a_token": float((found - reference)[:, s].sum() / tokens[:, s].sum()),
    }
    for s, side in enumerate(("chosen", "rejected"))
  }

"""The reward model: scores of several dimensions on a shared trunk, from comparisons."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from data import conversations
from data.batch import Batch
from data.chat import ChatTemplate
from data.config import parse
from data.heldout import is_held_out
from data.pair_batches import PairLoader, to_batch
from data.pairs import Pair
from model import heads, lora
from model.config import ModelConfig
from model.generate import request_keys, rollout
from model.hf_config import read_json
from model.params import param_specs
from model.sampling import SamplingConfig, pad_ids, settings
from model.sharding import abstract_params, host_rows, make_mesh
from train import calibration, loop, pairwise, reward_model, reward_report
from train.config import RewardConfig
from train.initial import given_params
from train.pair_loss import comparison_loss, pair_scores, reward_loss
from train.recorder import Recorder
from train.sft import open_template, progress, with_steps
from train.signals import StopRequest
from train.step import LossFn
from train.workdir import CONFIG, write_atomically

REPORT = "reward_report.json"
# Of held-out prompts: those on which temperatures are fitted, and no calibration is reported.
CALIBRATED = 0.5

parse_config = functools.partial(parse, RewardConfig)


@dataclasses.dataclass(frozen=True)
class PairScore:
  """The mean loss of held-out comparisons, and the accuracy by dimension."""

  loss: float
  accuracy: dict[str, float]

  def __str__(self) -> str:
    shown = ", ".join(f"{name} {value:.1%}" for name, value in self.accuracy.items())
    return f"loss {self.loss:.4f}, accuracy: {shown}"


def run(config: RewardConfig, workdir: Path, recorder: Recorder, stop: StopRequest) -> bool:
  """Trains, then freezes the scale and reports; returns whether the run came to its end."""
  mesh = make_mesh(config.mesh)
  loop.check_sizes(config, mesh)
  template = open_template(config.data, config.model.vocab_size)
  data, dimensions = config.data, dimensions_of(config)
  train, held_out = pairwise.open_pairs(data, dimensions, template, workdir)
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
  scorer = make_pair_scorer(config, mesh)
  specs, loss_fn = objective(config)
  stage = loop.Stage(
    specs=specs,
    loss_fn=loss_fn,
    rows=(empty_row(config),),
    make_loader=lambda cursors: make_loader(cursors=cursors),
    progress=functools.partial(progress, batches_an_epoch=batches),
    evaluate=lambda params: {"pairs": pair_score(scorer(params, held_out), held_out, config)},
    sample=None,
    sample_every=1,
  )
  with jax.set_mesh(mesh):
    state, finished = loop.train(stage, config, workdir, mesh, recorder, stop)
    if finished:
      with recorder.ledger("evaluation"):
        finish(state.params, train, held_out, template, config, workdir, mesh, scorer)
  return finished


def closing(config: RewardConfig, workdir: Path) -> str:
  """What a run that came to its end says."""
  del config
  return (
    f"All of it is in {workdir}: {REPORT}, {calibration.SCORES}, metrics.jsonl, and the reward "
    f"model with its scale in {reward_model.SCORER}/."
  )


def dimensions_of(config: RewardConfig) -> tuple[str, ...]:
  """The dimensions in the order of the scores: by name."""
  return tuple(sorted(config.score.weights))


def objective(config: RewardConfig) -> tuple[dict, LossFn]:
  """The parameters' specs and the loss: what the training step, or a plan of it, is made of."""
  loss_fn = functools.partial(
    reward_loss, model=config.model, compute=config.compute, config=config.loss
  )
  specs = heads.scorer_specs(config.model, len(config.score.weights))
  return lora.add(specs, config.lora), loss_fn


def pair_batch(rows: Sequence[Sequence[Pair]], config: RewardConfig) -> Batch:
  """The arrays of rows of pairs."""
  data = config.data
  return to_batch(rows, dimensions_of(config), data.seq_len, data.max_segments // 2)


def empty_row(config: RewardConfig) -> Batch:
  """One row of a batch, for its shapes."""
  return pair_batch([[]], config)


# Scores of pairs.


def make_pair_scorer(config: RewardConfig, mesh: Mesh) -> pairwise.PairMap:
  """Makes `score(params, pairs)`: fp32 [N,2,S] of chosen and rejected answers, raw."""

  def both(params, batch):
    return jnp.stack(pair_scores(params, batch, config.model, config.compute), axis=2)

  return pairwise.make_pair_map(
    both,
    functools.partial(pair_batch, config=config),
    config.data,
    config.eval.batch_size,
    mesh,
  )


def pair_score(scores: np.ndarray, pairs: Sequence[Pair], config: RewardConfig) -> PairScore:
  """Loss and accuracy of raw scores [N,2,S]."""
  dimensions = dimensions_of(config)
  sign, strength, rated = (np.zeros(scores[:, 0].shape, np.float32) for _ in range(3))
  for n, pair in enumerate(pairs):
    for s, name in enumerate(dimensions):
      if name in pair.signs:
        sign[n, s], strength[n, s], rated[n, s] = pair.signs[name], pair.strengths[name], 1
  loss, weight = comparison_loss(scores[:, 0], scores[:, 1], sign, strength, rated, config.loss)
  right = sign * (scores[:, 0] - scores[:, 1]) > 0
  decided = np.abs(sign) * rated
  accuracy = {
    name: float((right * decided)[:, s].sum() / decided[:, s].sum())
    for s, name in enumerate(dimensions)
    if decided[:, s].any()
  }
  return PairScore(float(np.sum(loss) / max(np.sum(weight), 1)), accuracy)


# The end of a run: scale, temperatures, report.


def finish(
  params: dict,
  train: Sequence[Pair],
  held_out: Sequence[Pair],
  template: ChatTemplate,
  config: RewardConfig,
  workdir: Path,
  mesh: Mesh,
  scorer: pairwise.PairMap,
) -> None:
  """Freezes the scale of the scores, fits temperatures, writes the report and the scorer."""
  dimensions = dimensions_of(config)
  raw = scorer(params, held_out)
  if config.score.reference is None:
    sampled, where = raw.reshape(-1, len(dimensions)), "the held-out comparisons' answers"
  else:
    answers = reference_answers(held_out, template, config, mesh)
    sampled = score_texts(params, answers, config)
    where = f"{len(answers)} answers of {config.score.reference}"
  mean, std = sampled.mean(0), np.maximum(sampled.std(0), 1e-6)
  difference = (raw[:, 0] - raw[:, 1]) / std
  fitting = np.array(
    [is_held_out("fit\n" + conversations.prompt_text(p.prompt), CALIBRATED) for p in held_out]
  )
  report = {"normalization": where, "mean": mean.tolist(), "std": std.tolist(), "dimensions": {}}
  temperatures = []
  for s, name in enumerate(dimensions):
    fitted = [n for n, p in enumerate(held_out) if fitting[n] and p.signs.get(name)]
    signs = np.array([held_out[n].signs[name] for n in fitted], float)
    chosen = reward_report.fit_temperature(difference[fitted, s], signs) if fitted else 1.0
    temperatures.append(chosen)
    report["dimensions"][name] = reward_report.dimension_report(
      held_out,
      difference[:, s],
      name,
      chosen,
      reward_report.length_baseline(train, name),
      fitting,
    )
  report["between"] = reward_report.between_dimensions(held_out, difference, dimensions)
  report["annotators"] = reward_report.annotator_agreement([*train, *held_out], dimensions)
  weights = [config.score.weights[name] for name in dimensions]
  scale = {
    "mean_S": mean,
    "std_S": std,
    "weight_S": np.array(weights),
    "temperature_S": np.array(temperatures),
  }
  done = lora.merge(params) if lora.is_adapted(params) else params
  done = done | {"normalization": {name: np.asarray(x, np.float32) for name, x in scale.items()}}
  data = {name: getattr(config.data, name) for name in ("tokenizer", "eot", "chat_template")}
  data["seq_len"] = config.data.seq_len
  reward_model.save(workdir / reward_model.SCORER, done, config.model, dimensions, data)
  if jax.process_index() == 0:
    write_atomically(workdir / REPORT, json.dumps(report, indent=2) + "\n")
    write_atomically(
      workdir / calibration.SCORES, score_lines(held_out, (raw - mean) / std, dimensions)
    )
  print(
    f"Held-out pairs; the scale is that of {where}:\n{reward_report.table(report['dimensions'])}"
  )


def score_lines(pairs: Sequence[Pair], scores: np.ndarray, dimensions: Sequence[str]) -> str:
  """JSONL of what the better and the worse answer of held-out pairs score, by dimension."""
  lines = []
  for pair, both in zip(pairs, scores.tolist(), strict=True):
    for name, chosen, rejected in zip(dimensions, *both, strict=True):
      if sign := pair.signs.get(name):
        better, worse = (chosen, rejected) if sign > 0 else (rejected, chosen)
        lines.append(json.dumps({"dimension": name, "chosen": better, "rejected": worse}) + "\n")
  return "".join(lines)


def reference_answers(
  pairs: Sequence[Pair], template: ChatTemplate, config: RewardConfig, mesh: Mesh
) -> list[np.ndarray]:
  """The reference policy's answers to held-out prompts, each with its prompt: ids that end a turn.

  An answer that `max_tokens` cut ends by the stop token as well.

  Raises:
    ValueError: the policy has another vocabulary.
  """
  chosen = {pair.group: pair.prompt for pair in pairs}
  prompts = [template.prompt_ids(messages) for messages in chosen.values()]
  room = config.data.seq_len - config.score.max_tokens
  prompts = [ids for ids in prompts if len(ids) <= room][: config.score.prompts]
  if len(prompts) < 2:
    raise ValueError(
      f"{len(prompts)} held-out prompts leave room for score.max_tokens={config.score.max_tokens} "
      f"in rows of {config.data.seq_len}; lower it, or raise data.seq_len."
    )
  described = read_json(Path(config.score.reference) / CONFIG)
  model = parse(ModelConfig, described["model"], "config.model")
  if model.vocab_size != config.model.vocab_size:
    raise ValueError(
      f"score.reference={config.score.reference!r} has a vocabulary of {model.vocab_size} and the "
      f"reward model one of {config.model.vocab_size}; they must be of one tokenizer."
    )
  policy = given_params(config.score.reference, abstract_params(param_specs(model), mesh))
  sampling = SamplingConfig(config.score.temperature, 1.0)
  length, size = max(map(len, prompts)), config.eval.batch_size
  answers = []
  for first in range(0, len(prompts), size):
    part = prompts[first : first + size]
    rows = [*part, *[part[0]] * (size - len(part))]
    padded = np.zeros((size, length), np.int32)
    for row, ids in zip(padded, rows, strict=True):
      row[: len(ids)] = ids
    out = jax.device_get(
      rollout(
        policy,
        padded,
        np.array([len(ids) for ids in rows], np.int32),
        request_keys(jax.random.key(config.seed), np.arange(first, first + size)),
        settings([sampling] * size, model.vocab_size),
        pad_ids([template.stop_ids] * size, model.vocab_size),
        max_tokens=config.score.max_tokens,
        config=model,
        compute=config.compute,
      )
    )
    for ids, row, count, stopped in zip(
      part, out.tokens_BT, out.counts_B, out.stopped_B, strict=False
    ):
      end = row[count - 1] if stopped else template.end_id
      answers.append(np.concatenate([ids, row[: count - 1], [end]]).astype(np.int32))
  return answers


def score_texts(params: dict, texts: Sequence[np.ndarray], config: RewardConfig) -> np.ndarray:
  """Raw scores [N,S] of ids, each at its last one."""
  compiled = jax.jit(
    functools.partial(heads.text_scores, config=config.model, compute=config.compute)
  )
  size, length = config.eval.batch_size, config.data.seq_len
  found = []
  for first in range(0, len(texts), size):
    tokens, mask = np.zeros((2, size, length), np.int32)
    for row, ids in enumerate(texts[first : first + size]):
      tokens[row, : len(ids)], mask[row, : len(ids)] = ids, 1
    found.append(jax.device_get(compiled(params, tokens, mask)))
  return np.concatenate(found)[: len(texts)]

"""Supervised fine-tuning: the loss on what the assistant says, in packed conversations."""

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from data import conversations, curate, instructions
from data.batch import Batch
from data.chat import ChatTemplate, load_template
from data.config import parse
from data.examples import Buckets, Example, ExampleLoader, Packed, pack, to_batch
from data.heldout import EvaluationSet, is_held_out
from model import lora
from model.generate import request_keys, rollout
from model.params import param_specs
from model.sampling import SamplingConfig, pad_ids, settings
from model.sharding import host_rows, make_mesh
from train import loop
from train.config import SftConfig
from train.heldout import make_scorer
from train.losses import answer_loss
from train.recorder import Recorder
from train.signals import StopRequest
from train.step import LossFn
from train.workdir import write_atomically

EMBEDDED = "embedded"
PROMPTS = "prompts.json"

parse_config = functools.partial(parse, SftConfig)


def run(config: SftConfig, workdir: Path, recorder: Recorder, stop: StopRequest) -> bool:
  """Curates, trains, evaluates and samples; returns whether the run came to its end."""
  mesh = make_mesh(config.mesh)
  loop.check_sizes(config, mesh, config.data.buckets)
  template = open_template(config.data, config.model.vocab_size)
  train, held_out = open_conversations(config, template, workdir)
  examples = [Example(one.chat.ids, one.chat.mask) for one in train]
  data = config.data
  batches = make_batches([e.length for e in examples], config)
  config = with_steps(config, batches.batches_an_epoch)
  index, count = host_rows(mesh, data.batch_size)
  score = make_scorer(config, mesh)
  rows = evaluation_set(held_out, config)
  specs, loss_fn = objective(config)
  asked = prompts(held_out, template, config)
  stage = loop.Stage(
    specs=specs,
    loss_fn=loss_fn,
    rows=tuple(to_batch([[]], length) for length in batches.lengths),
    make_loader=lambda cursors: ExampleLoader(
      examples, batches, host_index=index, host_count=count, cursors=cursors
    ),
    progress=functools.partial(progress, batches_an_epoch=batches.batches_an_epoch),
    evaluate=lambda params: {"answers": score(params, rows)},
    sample=functools.partial(write_answers, asked, template, config, workdir, recorder)
    if asked
    else None,
    sample_every=config.sample.every,
  )
  with jax.set_mesh(mesh):
    _, finished = loop.train(stage, config, workdir, mesh, recorder, stop)
  return finished


def closing(config: SftConfig, workdir: Path) -> str:
  """What a run that came to its end says: where it all is, and what to do next."""
  del config
  return (
    f"All of it is in {workdir}: curation.json, metrics.jsonl, samples/, checkpoints/.\n"
    "Next, train on conversations of your own (JSONL, JSON or Parquet): the same command with\n"
    "--workdir runs/mine --config.data.sources.main='my/*.jsonl'"
  )


def objective(config: SftConfig) -> tuple[dict, LossFn]:
  """The parameters' specs and the loss: what the training step, or a plan of it, is made of."""
  loss_fn = functools.partial(
    answer_loss, config=config.model, compute=config.compute, loss=config.loss
  )
  return lora.add(param_specs(config.model), config.lora), loss_fn


def empty_row(config: SftConfig) -> Batch:
  """One row of a batch, for its shapes."""
  return to_batch([[]], config.data.seq_len)


def open_template(data, vocab_size: int) -> ChatTemplate:
  """The chat template of a section `data`; raises ValueError where the model lacks its ids."""
  template = load_template(data.chat_template, data.tokenizer, data.eot)
  if template.vocab_size > vocab_size:
    raise ValueError(
      f"the tokenizer {data.tokenizer} has {template.vocab_size} ids and model.vocab_size is "
      f"{vocab_size}; they do not belong together."
    )
  return template


def open_conversations(
  config: SftConfig, template: ChatTemplate, workdir: Path
) -> tuple[list[curate.Kept], list[curate.Kept]]:
  """The curated conversations, to train on and held out; writes what was dropped, and says so.

  Raises:
    ValueError: a source has no rows, a row is one to refuse, or none is left.
  """
  data = config.data
  paths = {
    name: str(instructions.write(workdir / "corpus" / "instructions.jsonl"))
    if path == EMBEDDED
    else path
    for name, path in data.sources.items()
  }
  curated = curate.curate(
    {name: conversations.read(path) for name, path in paths.items()},
    template,
    max_tokens=data.seq_len + 1,
    too_long=data.too_long,
    dedup_threshold=data.dedup_threshold,
    leaks=data.leaks,
  )
  curate.refuse(curated, data.refuse)
  held = [is_held_out(conversations.prompt_text(k.messages), data.heldout_fraction)
          for k in curated.kept]  # fmt: skip
  train = [one for one, out in zip(curated.kept, held, strict=True) if not out]
  held_out = [one for one, out in zip(curated.kept, held, strict=True) if out]
  report = curated.report()
  said = ", ".join(f"{count} {reason}" for reason, count in report["dropped"].items()) or "none"
  summary = f"{report['rows']:,} rows: {report['kept']:,} kept; dropped: {said}"
  if not train:
    raise ValueError(f"no conversation is left to train on. {summary}")
  if jax.process_index() == 0:
    curate.write_report(curated, workdir)
    keys = sorted(set(curate.prompt_keys(train)))
    write_atomically(workdir / PROMPTS, json.dumps(keys) + "\n")
  print(f"{summary} ({workdir / 'curation.json'}). {len(held_out):,} are held out.")
  return train, held_out


def make_batches(lengths: Sequence[int], config: SftConfig) -> Packed | Buckets:
  """Packed rows, or length buckets where the recipe names any; says how full they are."""
  data = config.data
  sizes = (data.batch_size, data.max_segments, config.seed)
  if data.buckets:
    batches = Buckets(lengths, data.buckets, *sizes)
  else:
    batches = Packed(lengths, data.seq_len, *sizes)
  rows = " or ".join(f"{data.batch_size * data.seq_len // n:,} of {n:,}" for n in batches.lengths)
  print(f"Rows of a batch, and places in each: {rows}; {batches.filled:.1%} of them are filled.")
  return batches


def with_steps(config, batches_an_epoch: float):
  """The config with `train.steps`: by data.epochs, where the recipe leaves it open."""
  if config.train.steps is not None:
    return config
  steps = math.ceil(config.data.epochs * batches_an_epoch)
  return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))


def progress(cursors: dict, batches_an_epoch: float) -> dict[str, float]:
  """What a training line says of the place in the data."""
  return {"epoch": round(cursors["examples"]["batch"] / batches_an_epoch, 4)}


def evaluation_set(held_out: Sequence[curate.Kept], config: SftConfig) -> EvaluationSet:
  """The held-out conversations as rows; the tokens and bytes counted are those of answers.

  Raises:
    ValueError: none is held out.
  """
  if not held_out:
    raise ValueError("no conversation is held out; raise data.heldout_fraction, or add data.")
  data = config.data
  examples = [Example(one.chat.ids, one.chat.mask) for one in held_out]
  rows = pack([e.length for e in examples], data.seq_len, data.max_segments)
  rows += [[]] * (-len(rows) % config.eval.batch_size)
  batch = to_batch([[examples[i] for i in row] for row in rows], data.seq_len)
  answers = [m["content"] for one in held_out for m in one.messages if m["role"] == "assistant"]
  return EvaluationSet(
    batch,
    int(batch["loss_weights"].sum()),
    sum(len(answer.encode("utf-8")) for answer in answers),
  )


# Answers to held-out prompts.


@dataclasses.dataclass(frozen=True)
class Asked:
  """A held-out question, as messages and as ids, and the answer that is known to it."""

  messages: list[dict[str, str]]
  ids: np.ndarray
  answer: str


def prompts(
  held_out: Sequence[curate.Kept], template: ChatTemplate, config: SftConfig
) -> list[Asked]:
  """The last questions of the first held-out conversations."""
  chosen = held_out[: config.sample.prompts]
  return [
    Asked(one.messages[:-1], template.prompt_ids(one.messages[:-1]), one.messages[-1]["content"])
    for one in chosen
  ]


def write_answers(
  asked: Sequence[Asked],
  template: ChatTemplate,
  config: SftConfig,
  workdir: Path,
  recorder: Recorder,
  step: int,
  params: dict,
) -> None:
  """Writes samples/<step>.jsonl, and logs which share of the answers came to an end.

  What is there already, before a restart at that step, stays.
  """
  path = workdir / "samples" / f"{step}.jsonl"
  if path.exists() and step:
    return
  answers, ended, lengths = answer(
    params,
    [one.ids for one in asked],
    template,
    config,
    jax.random.fold_in(jax.random.key(config.seed), step),
  )
  lines = [
    {"messages": one.messages, "answer": text, "ended": bool(end), "reference": one.answer}
    for one, text, end in zip(asked, answers, ended, strict=True)
  ]
  share, mean = float(np.mean(ended)), float(np.mean(lengths))
  recorder.write("sample", step=step, answers=len(lines), ended=share, tokens=mean)
  if jax.process_index() == 0:
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
  print(
    f"step {step:,}: {len(lines)} answers, {share:.1%} ended by themselves, {mean:.1f} tokens "
    f"each; such as {answers[0][:100]!r} to {asked[0].messages[-1]['content'][-100:]!r}",
    flush=True,
  )


def answer(
  params: dict,
  prompt_ids: Sequence[np.ndarray],
  template: ChatTemplate,
  config: SftConfig,
  key: jax.Array,
) -> tuple[list[str], np.ndarray, np.ndarray]:
  """Texts of sampled answers, whether each ended by itself, and how many tokens each has."""
  lengths = np.array([len(ids) for ids in prompt_ids], np.int32)
  padded = np.zeros((len(lengths), lengths.max()), np.int32)
  for row, ids in zip(padded, prompt_ids, strict=True):
    row[: len(ids)] = ids
  sampling = SamplingConfig(config.sample.temperature, config.sample.top_p)
  out = jax.device_get(
    rollout(
      params,
      padded,
      lengths,
      request_keys(key, np.arange(len(lengths))),
      settings([sampling] * len(lengths), config.model.vocab_size),
      pad_ids([template.stop_ids] * len(lengths), config.model.vocab_size),
      max_tokens=config.sample.max_tokens,
      config=config.model,
      compute=config.compute,
    )
  )
  counts = out.counts_B - out.stopped_B  # without the stop token
  texts = [
    template.decode(row[:count]).strip() for row, count in zip(out.tokens_BT, counts, strict=True)
  ]
  return texts, out.stopped_B, out.counts_B

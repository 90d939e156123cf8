"""Pretraining: next-token loss on packed documents, from nothing."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from data import data_log, heldout, sources
from data.batch import Batch, empty_batch
from data.batches import Loader
from data.config import parse
from data.mixture import make_mixture, weights_of
from data.streams import progress, resumed_step
from data.tokenizer import Tokenizer
from model.generate import generate
from model.params import param_specs
from model.sharding import host_rows, make_mesh
from train import evaluate, loop
from train.config import PretrainConfig
from train.heldout import make_scorer
from train.losses import next_token_loss
from train.recorder import Recorder
from train.signals import StopRequest
from train.step import LossFn
from train.workdir import CONFIG, write_atomically

parse_config = functools.partial(parse, PretrainConfig)


def run(config: PretrainConfig, workdir: Path, recorder: Recorder, stop: StopRequest) -> bool:
  """Trains, evaluates and samples; returns whether the run came to its end."""
  mesh = make_mesh(config.mesh)
  loop.check_sizes(config, mesh)
  corpus = sources.open_corpus(config.data, workdir)
  if not (workdir / CONFIG).exists():  # left by a start that failed, perhaps of another recipe
    (workdir / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
  tokenizer = sources.open_tokenizer(config.data, corpus, workdir)
  if tokenizer.vocab_size > config.model.vocab_size:
    raise ValueError(
      f"the tokenizer has {tokenizer.vocab_size} ids and model.vocab_size is "
      f"{config.model.vocab_size}; the embedding must hold them all. Raise model.vocab_size, or "
      "train a smaller tokenizer by data.vocab_size."
    )
  mixture = make_mixture(config.data, corpus, tokenizer, config.seed)
  index, count = host_rows(mesh, config.data.batch_size)
  held_out = evaluation_sets(config, corpus, tokenizer)
  score = make_scorer(config, mesh)
  suite = _suite(config, workdir, mesh)
  specs, loss_fn = objective(config)

  def make_loader(cursors):
    weights = weights_of(config.data, resumed_step(cursors, config.data))
    log = data_log.continued(data_log.read(workdir), weights)
    if jax.process_index() == 0:
      data_log.write(workdir, log)
    now = dataclasses.replace(mixture, log=log)
    return Loader(config.data, now, tokenizer, host_index=index, host_count=count, cursors=cursors)

  stage = loop.Stage(
    specs=specs,
    loss_fn=loss_fn,
    rows=(empty_row(config),),
    make_loader=make_loader,
    progress=functools.partial(progress, mixture=mixture),
    evaluate=lambda params: (
      {name: score(params, rows) for name, rows in held_out.items()} | suite(params)
    ),
    sample=None,
    sample_every=config.train.steps,
  )
  with jax.set_mesh(mesh):
    state, finished = loop.train(stage, config, workdir, mesh, recorder, stop)
    if finished:
      weights = state.params if state.average is None else state.average
      write_samples(weights, config, tokenizer, workdir / "samples.txt")
  return finished


def _suite(config: PretrainConfig, workdir: Path, mesh) -> Callable[[dict], dict]:
  """The benchmarks of `eval.suite`, by weights; none without it."""
  if config.eval.suite is None:
    return lambda params: {}
  own = workdir / "tokenizer" / "tokenizer.json"
  tokenizer = own if config.data.tokenizer == "train" else Path(config.data.tokenizer)
  data = config.data
  return evaluate.make_evaluator(
    config.eval.suite, tokenizer, data.eot, data.seq_len, config.model, config.compute, mesh
  )


def closing(config: PretrainConfig, workdir: Path) -> str:
  """What to say at the end: where everything is, and what to do next."""
  source = next(iter(config.data.sources))
  return (
    f"All of it is in {workdir}: metrics.jsonl, samples.txt, checkpoints/.\n"
    "Next, train on documents of your own (JSONL with a key `text`, or text files): the same\n"
    f"command with --workdir runs/mine --config.data.sources.{source}.path='my/*.jsonl'"
  )


def objective(config: PretrainConfig) -> tuple[dict, LossFn]:
  """The parameters' specs and the loss: what the training step, or a plan of it, is made of."""
  loss_fn = functools.partial(
    next_token_loss, config=config.model, compute=config.compute, z_loss=config.loss.z_loss
  )
  return param_specs(config.model), loss_fn


def empty_row(config: PretrainConfig) -> Batch:
  """One row of a batch, for its shapes."""
  return empty_batch(1, config.data.seq_len)


def evaluation_sets(
  config: PretrainConfig, corpus: sources.Corpus, tokenizer: Tokenizer
) -> dict[str, heldout.EvaluationSet]:
  """The held-out part of every source, and the documents of `eval.files` and `eval.sets`."""
  documents = {name: held for name, held in corpus.heldout.items() if len(held)}
  further = config.eval.sets | ({"files": config.eval.files} if config.eval.files else {})
  for name, path in further.items():
    if name in documents:
      raise ValueError(f"eval has a set {name!r}, and so has data.sources; rename either.")
    documents[name] = sources.open_files(path, config.data.max_bad_lines)
  if not documents:
    print("No document is held out (data.heldout_fraction) or in eval.files: no evaluation.")
  options = {"stride": config.eval.stride, "batch_size": config.eval.batch_size}
  return {
    name: heldout.evaluation_set(held, tokenizer, config.data, **options)
    for name, held in documents.items()
  }


def write_samples(params: dict, config: PretrainConfig, tokenizer: Tokenizer, path: Path) -> None:
  """Writes a continuation of each of `sample.prompts`, and prints them."""
  prompts = [[tokenizer.eot, *ids] for ids in tokenizer.encode_batch(config.sample.prompts)]
  lengths = np.array([len(ids) for ids in prompts], np.int32)
  padded = np.full((len(prompts), lengths.max()), tokenizer.eot, np.int32)
  for row, ids in zip(padded, prompts, strict=True):
    row[: len(ids)] = ids
  tokens, counts = generate(
    params,
    padded,
    lengths,
    jax.random.key(config.seed),
    max_tokens=config.sample.max_tokens,
    temperature=config.sample.temperature,
    top_p=config.sample.top_p,
    stop_id=tokenizer.eot,
    config=config.model,
    compute=config.compute,
  )
  texts = []
  for prompt, row, count in zip(config.sample.prompts, tokens, counts, strict=True):
    ids = [int(token) for token in row[:count] if token != tokenizer.eot]
    texts.append(f"{prompt}|{tokenizer.decode(ids)}")
  text = "\n\n---\n\n".join(texts) + "\n"
  if jax.process_index() == 0:
    write_atomically(path, text)
    print(
      f"\nSamples, each after its prompt and a bar (temperature "
      f"{config.sample.temperature}, top-p {config.sample.top_p}):\n\n{text}"
    )

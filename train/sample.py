"""Continuations of prompts, or answers to them, by a run or an imported model.

  python -m train.main --config configs/sample.py:runs/quickstart
  python -m train.main --config configs/sample.py:runs/smollm2 --config.prompts=prompts.jsonl \
    --config.chat_template=model

Without a file of prompts they are read from the terminal.
"""

import contextlib
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from data import chat
from data.config import parse
from data.prompts_file import Prompt, of_text, read_prompts
from model.batching import Batcher, Completion, Request
from model.config import ComputeConfig, ModelConfig
from model.decode import prepare
from model.sampling import SamplingConfig
from model.sharding import MeshConfig, make_mesh
from train import calibration
from train.requests import Encoder, open_encoder
from train.signals import StopRequest
from train.weights import open_run, read_weights
from train.workdir import write_atomically, write_config

SAMPLES, TEXT = "samples.jsonl", "samples.txt"
_PROGRESS_SECONDS = 10
_LENGTH_STEP = 64


@dataclasses.dataclass(frozen=True)
class SampleRunConfig:
  """Every section of a recipe of sampling.

  Attributes:
    run: the folder of a run, or of an imported model.
    weights: "raw" or "average"; None for the average where the run keeps one.
    step: of the checkpoint; None for the newest.
    prompts: a file, see `data.prompts_file`; None for the terminal.
    chat_template: as `data.chat.load_template` takes it; None to continue texts as they are.
    completions: of each prompt.
    max_tokens: of each completion; fewer where the context is full.
    context: tokens of prompt and completion together; None for what the model was trained on.
    stop_strings: texts that end a completion and are not part of it.
    slots: the most completions that go on at a time.
    chunk: tokens between two looks at what came out.
    sample: how a token is chosen.
  """

  stage: str
  seed: int
  run: str
  weights: str | None
  step: int | None
  compute: ComputeConfig
  mesh: MeshConfig
  prompts: str | None
  chat_template: str | None
  completions: int
  max_tokens: int
  context: int | None
  stop_strings: tuple[str, ...]
  slots: int
  chunk: int
  sample: SamplingConfig

  def __post_init__(self):
    for name in ("completions", "max_tokens", "slots", "chunk"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
    if not 0 <= self.seed < 2**32:
      raise ValueError(f"seed is {self.seed}; it must be in [0, 2**32).")
    if not all(self.stop_strings):
      raise ValueError("stop_strings has an empty text; it would end everything.")


parse_config = functools.partial(parse, SampleRunConfig)


@dataclasses.dataclass(frozen=True)
class Sampler:
  """A model with what turns prompts to ids and ids to text.

  `slots` are those of its batchers; `calibration` is the temperature that `train.calibrate` found,
  for the probabilities that are reported, or None.
  """

  weights: dict
  model: ModelConfig
  config: SampleRunConfig
  encoder: Encoder
  template: chat.ChatTemplate | None
  context: int
  slots: int
  calibration: float | None

  @property
  def stop_ids(self) -> tuple[int, ...]:
    return self.template.stop_ids if self.template else (self.encoder.eot,)

  def encode(self, prompt: Prompt) -> tuple[int, ...]:
    """The ids of a prompt. Raises ValueError where it is none for this model, or too long."""
    if self.template is not None:
      messages = prompt.messages or ({"role": "user", "content": prompt.text},)
      try:
        ids = self.template.prompt_ids(messages)
      except chat.ChatError as error:
        raise ValueError(f"{prompt.name}: {error}") from error
    elif prompt.messages:
      raise ValueError(f"{prompt.name} has messages; name a chat_template, such as 'model'.")
    else:
      ids = self.encoder.encode(prompt.text)
    if len(ids) >= self.context:
      raise ValueError(
        f"{prompt.name} has {len(ids):,} tokens, and the context of {self.context:,} must hold "
        "them and at least one more; shorten it, or raise `context` if the model can do more."
      )
    return tuple(int(i) for i in ids)

  def requests(self, prompts: Sequence[tuple[int, ...]]) -> list[Request]:
    """`completions` of each prompt, numbered through."""
    return [
      Request(
        number=index * self.config.completions + copy,
        prompt=ids,
        max_tokens=self.config.max_tokens,
        sampling=self.config.sample,
        stop_ids=self.stop_ids,
        stop_strings=self.config.stop_strings,
        seed=self.config.seed,
      )
      for index, ids in enumerate(prompts)
      for copy in range(self.config.completions)
    ]

  def batcher(self, requests: Sequence[Request], calibration: float | None = None) -> Batcher:
    """Slots for requests like these."""
    longest = max(len(r.prompt) + r.max_tokens for r in requests)
    return Batcher(
      self.weights,
      self.model,
      self.config.compute,
      slots=self.slots,
      length=min(self.context, -(-longest // _LENGTH_STEP) * _LENGTH_STEP),
      like=requests,
      chunk=self.config.chunk,
      decode=self.encoder.decode,
      calibration=calibration,
    )


@contextlib.contextmanager
def open_sampler(config: SampleRunConfig, prompts: int) -> Iterator[Sampler]:
  """Opens the model for so many prompts at a time, and keeps its mesh in force meanwhile."""
  slots = min(config.slots, prompts * config.completions)
  run = open_run(Path(config.run))
  encoder = open_encoder(run.tokenizer, run.eot, run.model.vocab_size)
  template = None
  if config.chat_template is not None:
    template = chat.load_template(config.chat_template, str(run.tokenizer), run.eot)
  mesh = make_mesh(config.mesh)
  with jax.set_mesh(mesh):
    found = read_weights(run, mesh, config.weights, config.step)
    print(f"{run.folder}, step {found.step}, {found.which} weights.", flush=True)
    kept = calibration.read_temperature(run.folder, found.step, found.which, "next_token")
    yield Sampler(
      weights=prepare(found.params, run.model, config.compute, one_row=slots == 1),
      model=run.model,
      config=config,
      encoder=encoder,
      template=template,
      context=config.context or run.max_length,
      slots=slots,
      calibration=kept,
    )


def execute(
  config: Mapping[str, Any], parsed: SampleRunConfig, workdir: Path, stop: StopRequest
) -> bool:
  """Samples what is not sampled yet; returns whether that is all."""
  prompts = None if parsed.prompts is None else read_prompts(Path(parsed.prompts))
  with open_sampler(parsed, 1 if prompts is None else len(prompts)) as sampler:
    if prompts is None:
      return converse(sampler, sys.stdin, stop.wanted)
    requests = sampler.requests([sampler.encode(prompt) for prompt in prompts])
    write_config(workdir, config)
    return sample_file(sampler, prompts, requests, workdir, stop.wanted)


# A file of prompts.


def sample_file(
  sampler: Sampler,
  prompts: Sequence[Prompt],
  requests: Sequence[Request],
  workdir: Path,
  stopping: Callable[[], bool],
) -> bool:
  """Writes a line a completion as they come, and all as text at the end; False if stopped."""
  path, copies = workdir / SAMPLES, sampler.config.completions
  lines = whole_lines(path)
  for number, line in lines.items():
    if number >= len(requests) or line["prompt"] != _shown(prompts[number // copies]):
      raise ValueError(
        f"{path} has completions of other prompts than {sampler.config.prompts}; use another "
        "--workdir."
      )
  left = [request for request in requests if request.number not in lines]
  if lines and left:
    print(f"{len(lines):,} of {len(requests):,} completions are in {path}.")
  if left:
    began = time.monotonic()
    tokens = 0
    with open(path, "a", encoding="utf-8") as file:
      for done in _progress(sampler, left, stopping):
        line = _line(done, prompts[done.number // copies], sampler.calibration)
        lines[done.number] = line
        tokens += len(done.tokens)
        if jax.process_index() == 0:
          file.write(json.dumps(line, ensure_ascii=False) + "\n")
          file.flush()
      os.fsync(file.fileno())
    if len(lines) < len(requests):
      return False
    seconds = time.monotonic() - began
    print(f"{len(left):,} completions, {tokens:,} tokens, {tokens / seconds:,.1f} tokens/s")
  texts = [f"{line['prompt']}|{line['text']}" for _, line in sorted(lines.items())]
  if jax.process_index() == 0:
    write_atomically(workdir / TEXT, "\n\n---\n\n".join(texts) + "\n")
  print(f"All of it is in {path}, and as text in {workdir / TEXT}.")
  return True


def _progress(
  sampler: Sampler, requests: Sequence[Request], stopping: Callable[[], bool]
) -> Iterator[Completion]:
  """The completions as they come, until it should stop; tells how far it is."""
  batcher = sampler.batcher(requests, sampler.calibration)
  for request in requests:
    batcher.submit(request)
  began = last = time.monotonic()
  count = tokens = 0
  while batcher.busy and not stopping():
    for done in batcher.step():
      count, tokens = count + 1, tokens + len(done.tokens)
      yield done
    now = time.monotonic()
    if now - last >= _PROGRESS_SECONDS:
      last = now
      speed = tokens / (now - began)
      print(f"{count:,} of {len(requests):,} completions, {speed:,.1f} tokens/s", flush=True)


def _shown(prompt: Prompt) -> str:
  """A prompt as text: a conversation ends with the newest message."""
  return prompt.messages[-1].get("content", "") if prompt.messages else prompt.text


def _line(done: Completion, prompt: Prompt, calibration: float | None) -> dict[str, Any]:
  """What is written of a completion; its log-probability is calibrated where the model is."""
  return {
    **prompt.source,
    "number": done.number,
    "prompt": _shown(prompt),
    "text": done.text,
    "finish_reason": done.finish_reason,
    "stop": done.stop,
    "tokens": len(done.tokens),
    "log_prob": sum(done.raw_log_probs),
    "calibration": calibration,
    "log_prob_at_temperature": sum(done.log_probs),
  }


def whole_lines(path: Path) -> dict[int, dict[str, Any]]:
  """The lines of an earlier start, by their number; cuts off one that a kill left in the middle."""
  if not path.exists():
    return {}
  lines, size = {}, 0
  with open(path, "rb") as file:
    for raw in file:
      try:
        line = json.loads(raw)
        number = line["number"]
      except (ValueError, KeyError, TypeError):
        break
      if not raw.endswith(b"\n"):
        break
      lines[number] = line
      size += len(raw)
  os.truncate(path, size)
  return lines


# The terminal.


def converse(sampler: Sampler, lines, stopping: Callable[[], bool]) -> bool:
  """Continues, or answers, each line that is read, until there are no more."""
  asks = sys.stdin.isatty()
  if asks:
    print("A prompt a line; an empty line, or Ctrl-D, ends it.")
  said: list[Mapping[str, str]] = []
  batchers: dict[int, Batcher] = {}
  number = 0
  while not stopping():
    if asks:
      print("> ", end="", flush=True)
    line = lines.readline()
    if not line.strip():
      break
    prompt = of_text(line.rstrip("\n"), "the prompt")
    if sampler.template is not None:
      said.append({"role": "user", "content": prompt.text})
      prompt = dataclasses.replace(prompt, messages=tuple(said))
    try:
      ids = sampler.encode(prompt)
    except ValueError as error:
      print(f"error: {error}", file=sys.stderr)
      said.clear()
      continue
    requests = [
      dataclasses.replace(request, number=number + request.number)
      for request in sampler.requests([ids])
    ]
    number += len(requests)
    length = 1 << (len(ids) + sampler.config.max_tokens - 1).bit_length()
    if length not in batchers:
      batchers[length] = sampler.batcher(
        [dataclasses.replace(requests[0], max_tokens=length - len(ids))]
      )
    done = sorted(batchers[length].run(requests), key=lambda one: one.number)
    for one in done:
      print(one.text.strip() if said else f"{prompt.text}|{one.text}", flush=True)
    if said:
      said.append({"role": "assistant", "content": done[0].text.strip()})
  return True

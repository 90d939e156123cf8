"""Prompts for a policy to answer: rows of files to token ids, and which of them come when."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from data.chat import ChatError, ChatTemplate, load_template
from data.conversations import RowError, read, turns
from data.tokenizer import Tokenizer, load


@dataclasses.dataclass(frozen=True)
class PromptConfig:
  """What is answered, and how long prompts and responses may be.

  Attributes:
    path: a path, a glob or an fsspec URL of JSONL, JSON or Parquet. A row has a `prompt` (text or
      messages), `messages` up to the answer that is wanted, an `instruction`, or a `text`, of
      which the first `text_tokens` tokens are continued.
    tokenizer: a Hugging Face `tokenizer.json`, or a sentencepiece `.model` without a template.
    eot: its end-of-text token.
    chat_template: as `data.chat.load_template` has it; null continues the plain text after `eot`.
    seq_len: places for a prompt and its response; a prompt that is too long for what the response
      leaves is left out, and counted.
    response_tokens: the most tokens of a response.
    text_tokens: of a row's `text`.
    batch_size: prompts an iteration.
  """

  path: str
  tokenizer: str
  eot: str
  chat_template: str | None
  seq_len: int
  response_tokens: int
  text_tokens: int
  batch_size: int

  def __post_init__(self):
    for name in ("response_tokens", "text_tokens", "batch_size"):
      if getattr(self, name) < 1:
        raise ValueError(f"data.{name}={getattr(self, name)} must be at least 1.")
    if self.prompt_tokens < 1:
      raise ValueError(
        f"data.seq_len={self.seq_len} has no room for a prompt beside "
        f"data.response_tokens={self.response_tokens}; raise it."
      )

  @property
  def prompt_tokens(self) -> int:
    """The most tokens of a prompt."""
    return self.seq_len - self.response_tokens

  @property
  def max_segments(self) -> int:
    """A row holds one text."""
    return 1


@dataclasses.dataclass(frozen=True)
class Prompts:
  """All prompts of a run.

  Attributes:
    texts: as the model sees them.
    messages: of each, up to the answer that is wanted; [] of a text that is continued.
    ids: int32 ids of each.
    places: file and line of each.
    left_out: how many rows were not taken, by reason.
    stop_ids: the ids that end a response.
    tokenizer: of prompts and responses.
  """

  texts: list[str]
  messages: list[list[dict[str, str]]]
  ids: list[np.ndarray]
  places: list[str]
  left_out: dict[str, int]
  stop_ids: tuple[int, ...]
  tokenizer: Tokenizer

  def decode(self, ids) -> str:
    """The text of a response, without the stop id at its end."""
    ids = [int(i) for i in ids]
    if ids and ids[-1] in self.stop_ids:
      ids = ids[:-1]
    return self.tokenizer.decode(ids)


def open_prompts(config: PromptConfig, vocab_size: int) -> Prompts:
  """Reads all prompts.

  Raises:
    ValueError: no file matches, the tokenizer is another model's, or no prompt is left.
  """
  tokenizer = load(config.tokenizer, config.eot)
  if tokenizer.vocab_size > vocab_size:
    raise ValueError(
      f"the tokenizer {config.tokenizer} has {tokenizer.vocab_size} ids and model.vocab_size is "
      f"{vocab_size}; they do not belong together."
    )
  template = None
  if config.chat_template is not None:
    template = load_template(config.chat_template, config.tokenizer, config.eot)
  texts, said, ids, places, left_out = [], [], [], [], {}
  for row in read(config.path):
    try:
      if isinstance(row.value, RowError):
        raise row.value
      messages, text, tokens = _encode(row.value, config, tokenizer, template)
    except (RowError, ChatError) as error:
      reason = getattr(error, "reason", "template")
    else:
      reason = None if 0 < len(tokens) <= config.prompt_tokens else "too_long"
    if reason is not None:
      left_out[reason] = left_out.get(reason, 0) + 1
      continue
    texts.append(text)
    said.append(messages)
    ids.append(np.asarray(tokens, np.int32))
    places.append(row.place)
  if not ids:
    raise ValueError(
      f"{config.path!r} has no prompt of at most {config.prompt_tokens} tokens (left out: "
      f"{left_out or 'none'}); check its rows, or raise data.seq_len."
    )
  stop_ids = (tokenizer.eot,) if template is None else template.stop_ids
  return Prompts(texts, said, ids, places, left_out, stop_ids, tokenizer)


def _encode(
  row: Mapping[str, Any],
  config: PromptConfig,
  tokenizer: Tokenizer,
  template: ChatTemplate | None,
) -> tuple[list[dict[str, str]], str, np.ndarray | list[int]]:
  if isinstance(row.get("text"), str):
    (ids,) = tokenizer.encode_batch([row["text"]])
    ids = ids[: config.text_tokens]
    return [], tokenizer.decode(ids), [tokenizer.eot, *ids]
  key = next((k for k in ("messages", "prompt", "instruction") if row.get(k) is not None), None)
  if key is None:
    raise RowError("broken_row", "a prompt needs one of: messages, prompt, instruction, text")
  messages = turns(row[key], "user")
  if row.get("input") and key == "instruction":
    messages[-1]["content"] += f"\n\n{row['input']}"
  while messages and messages[-1]["role"] == "assistant":
    messages.pop()
  if not messages:
    raise RowError("broken_row", "a prompt has nothing to answer")
  if template is None:
    text = "\n\n".join(message["content"] for message in messages)
    return messages, text, [tokenizer.eot, *tokenizer.encode_batch([text])[0]]
  template.check(messages)
  return messages, template.render(messages, prompt=True), template.prompt_ids(messages)


def chosen(count: int, iteration: int, size: int, seed: int) -> np.ndarray:
  """The indices int64 [size] of the prompts of an iteration, from 0: a pure function of these.

  Each epoch is one permutation of all prompts, and an iteration goes on where the last one ended.
  """
  out, at = [], iteration * size
  while len(out) < size:
    epoch, offset = divmod(at + len(out), count)
    order = np.random.default_rng([seed, epoch]).permutation(count)
    out.extend(order[offset : offset + size - len(out)])
  return np.array(out, np.int64)


def padded_right(ids: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
  """(tokens int32 [B, length], lengths int32 [B]) of prompts, as `model.generate` takes them."""
  tokens = np.zeros((len(ids), length), np.int32)
  for row, one in zip(tokens, ids, strict=True):
    row[: len(one)] = one
  return tokens, np.array([len(one) for one in ids], np.int32)


def joined(
  ids: list[np.ndarray], length: int, responses_BT: np.ndarray, counts_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """(tokens, mask) int32 [B, length + T]: prompts padded on the left, responses on the right."""
  batch, total = len(ids), length + responses_BT.shape[1]
  tokens, mask = np.zeros((batch, total), np.int32), np.zeros((batch, total), np.int32)
  for row, one in enumerate(ids):
    tokens[row, length - len(one) : length] = one
    tokens[row, length : length + counts_B[row]] = responses_BT[row, : counts_B[row]]
    mask[row, length - len(one) : length + counts_B[row]] = 1
  return tokens, mask

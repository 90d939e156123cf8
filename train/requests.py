"""Prompts as token ids: context and continuation tokenized together, split, and cut to fit."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data import tokenizer as tokenizer_files
from train.scorer import Request


@dataclasses.dataclass(frozen=True)
class Encoder:
  """A tokenizer as lm-evaluation-harness uses it.

  Attributes:
    plain: the ids of a text; special tokens may be spelled in it.
    decode: the text of ids, without special tokens.
    bos: what stands in front of a text by the tokenizer's default; scores depend on it.
    start: what an empty context is: the token that begins a text, or else the one that ends it.
    eot: the id that ends a text.
    fingerprint: of the tokenizer's file.
  """

  plain: Callable[[str], list[int]]
  decode: Callable[[Sequence[int]], str]
  bos: tuple[int, ...]
  start: int
  eot: int
  fingerprint: str

  def encode(self, text: str) -> list[int]:
    """The ids of a text with what the tokenizer puts in front, unless the text spells it."""
    ids = self.plain(text)
    return ids if self.bos and ids[:1] == [self.start] else [*self.bos, *ids]


def open_encoder(path: Path, eot: str, vocab_size: int) -> Encoder:
  """The encoder of a run's tokenizer.

  A text begins with what the post-processor of a tokenizer.json puts there, or the BOS of a
  sentencepiece model unless its tokenizer_config.json has another add_bos_token. For a tokenizer
  without tokenizer_config.json, one of ours, it is the end of text that every training document
  began with.

  Raises:
    ValueError: the file is damaged, or has ids that the model's vocabulary does not.
  """
  known = tokenizer_files.load(str(path), eot)
  if known.vocab_size > vocab_size:
    raise ValueError(
      f"the tokenizer {path} has {known.vocab_size} ids and the model's vocabulary {vocab_size}; "
      "they do not belong together."
    )
  beside = path.with_name("tokenizer_config.json")
  described = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else None
  if path.suffix == ".json":
    plain, decode, front, named = _hugging_face(path, described)
  else:
    plain, decode, front, named = _sentencepiece(path, described)
  if described is None:
    front = (known.eot,)
  return Encoder(
    plain=plain,
    decode=decode,
    bos=front,
    start=front[0] if front else (known.eot if named is None else named),
    eot=known.eot,
    fingerprint=known.fingerprint,
  )


def _hugging_face(path: Path, described: dict | None):
  import tokenizers

  tokenizer = tokenizers.Tokenizer.from_file(str(path))
  tokenizer.no_padding()
  tokenizer.no_truncation()
  named = (described or {}).get("bos_token")
  named = named["content"] if isinstance(named, dict) else named
  return (
    lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
    lambda ids: tokenizer.decode([int(i) for i in ids]),
    tuple(tokenizer.encode("", add_special_tokens=True).ids),
    tokenizer.token_to_id(named) if named else None,
  )


def _sentencepiece(path: Path, described: dict | None):
  import sentencepiece

  processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
  bos = processor.bos_id() if processor.bos_id() >= 0 else None
  adds = bos is not None and (described or {}).get("add_bos_token", True)
  return (
    processor.encode,
    lambda ids: processor.decode([int(i) for i in ids]),
    (bos,) if adds else (),
    bos,
  )


@dataclasses.dataclass(frozen=True)
class Encoded:
  """A continuation as a request, or why it is none.

  Attributes:
    request: None where it can't be scored.
    truncated: tokens of the context that were left out on the left.
    refused: "zero_tokens" or "too_long", or empty.
  """

  request: Request | None
  truncated: int = 0
  refused: str = ""


def encode_pair(encoder: Encoder, context: str, continuation: str) -> tuple[list[int], list[int]]:
  """Ids of a context and of what follows, as lm-evaluation-harness splits them.

  Spaces at the context's end belong to the continuation. Both are tokenized together and split at
  the length of the context tokenized alone; the context's ids are those of the latter.
  """
  if not context:
    ids = encoder.plain(continuation)
    return (ids[:1], ids[1:]) if ids[:1] == [encoder.start] else ([encoder.start], ids)
  stripped = context.rstrip()
  if stripped:
    context, continuation = stripped, context[len(stripped) :] + continuation
  before = encoder.encode(context)
  return before, encoder.encode(context + continuation)[len(before) :]


def encode(encoder: Encoder, context: str, continuation: str, max_length: int) -> Encoded:
  """The request of a continuation, cut on the left to a model's `max_length`."""
  return cut(*encode_pair(encoder, context, continuation), max_length)


def cut(context: Sequence[int], continuation: Sequence[int], max_length: int) -> Encoded:
  """The request of ids. The last one is predicted and not read, so that one more than fits."""
  if not len(continuation):
    return Encoded(None, refused="zero_tokens")
  if len(continuation) > max_length:
    return Encoded(None, refused="too_long")
  ids = np.array([*context, *continuation], np.int32)
  truncated = max(0, len(ids) - max_length - 1)
  return Encoded(Request(ids[truncated:], len(continuation)), truncated)


def rolling(encoder: Encoder, text: str, max_length: int) -> list[Request]:
  """Requests that score every token of a text once, as `loglikelihood_rolling` of the harness.

  Windows do not overlap, but the last one, which has as many tokens before it as fit.
  """
  ids = encoder.encode(text)
  requests = []
  for first in range(0, len(ids), max_length):
    stop = min(first + max_length, len(ids))
    begin = 0 if first == 0 else stop - max_length - 1
    window = [encoder.start, *ids[:stop]] if first == 0 else ids[begin:stop]
    requests.append(Request(np.array(window, np.int32), stop - first))
  return requests

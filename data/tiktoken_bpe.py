"""Byte-level BPE by the tiktoken engine: files of ranks, and Hugging Face models proved equal."""

import base64
import binascii
import functools
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence

import tiktoken

# GPT-2's split into words, which Hugging Face's ByteLevel has built in.
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The same after Digits(individual_digits=True), which cuts the text at every digit first.
_GPT2_DIGITS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
# In a run as long as this the engine's time grows with the square of its length.
_ABSURD = re.compile(r"\S{2000}|\s{2000}")


_NEVER_IN_UTF8 = (0xC0, 0xC1, *range(0xF5, 0x100))


class RanksTokenizer:
  """A file of tiktoken ranks: a line for each token, its bytes in base64 and its id.

  The split pattern and the special tokens, which such a file does not hold, come as JSON:
  {"pattern": "...", "special_tokens": {"<|endoftext|>": 100257}}. Special tokens in text are text.
  """

  def __init__(self, data: bytes, settings: bytes, eot: str):
    try:
      lines = (line.split() for line in data.splitlines() if line.strip())
      ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
      wanted = json.loads(settings)
      pattern, specials = wanted["pattern"], wanted["special_tokens"]
      self._encoding = tiktoken.Encoding(
        "ranks", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials
      )
    except (binascii.Error, KeyError, TypeError, ValueError) as error:
      raise ValueError(f"data.tokenizer is no file of tiktoken ranks: {error!r}") from error
    if eot not in specials:
      raise ValueError(f"data.eot={eot!r} is none of the special tokens {sorted(specials)}.")
    self._arguments = (data, settings, eot)
    self.eot = specials[eot]
    self.vocab_size = self._encoding.n_vocab
    self.fingerprint = hashlib.blake2b(data + settings, digest_size=8).hexdigest()

  def __reduce__(self):
    return RanksTokenizer, self._arguments

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [self._encoding.encode_ordinary(text) for text in texts]

  def decode(self, ids: Sequence[int]) -> str:
    return self._encoding.decode([int(i) for i in ids])


class Accelerated:
  """A Hugging Face byte-level BPE that encodes by tiktoken; see `accelerate`.

  Texts with an added token that is not special, or with a run of thousands of letters or spaces,
  are left to the exact tokenizer.
  """

  def __init__(self, exact):
    self._exact = exact
    self.eot, self.vocab_size = exact.eot, exact.vocab_size
    self.fingerprint = f"{exact.fingerprint}+tiktoken"
    definition = json.loads(exact.definition)
    self._nfc = _normalizes(definition)
    ranks, ids = _ranks(definition["model"])
    self._ids = None if ids == list(range(len(ids))) else ids
    self._encoding = tiktoken.Encoding(
      "accelerated",
      pat_str=_pattern(definition["pre_tokenizer"]),
      mergeable_ranks=ranks,
      special_tokens={},
    )
    added = [t["content"] for t in definition["added_tokens"] if not t["special"]]
    self._added = re.compile("|".join(map(re.escape, added))) if added else None
    self.decode = exact.decode

  def __reduce__(self):
    return Accelerated, (self._exact,)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [self._encode(text) for text in texts]

  def _encode(self, text: str) -> list[int]:
    normal = unicodedata.normalize("NFC", text) if self._nfc else text
    if _ABSURD.search(normal) or (self._added and self._added.search(normal)):
      return self._exact.encode_batch([text])[0]
    ranks = self._encoding.encode_ordinary(normal)
    return ranks if self._ids is None else [self._ids[rank] for rank in ranks]


def accelerate(exact, texts: Iterable[str]) -> tuple[Accelerated | None, str]:
  """The tokenizer by the tiktoken engine, if it gives the same ids, or None; and why.

  Args:
    exact: a `tokenizer.HuggingFaceTokenizer`.
    texts: the sample on which both must agree id for id.
  """
  try:
    fast = Accelerated(exact)
  except ValueError as error:
    return None, str(error)
  texts = list(texts)
  for number, text in enumerate(texts):
    if fast.encode_batch([text]) != exact.encode_batch([text]):
      return None, f"its ids differ in document {number} of a sample of {len(texts)}."
  return fast, f"its ids are the same in a sample of {len(texts)} documents."


def _normalizes(definition: dict) -> bool:
  if definition["normalizer"] in (None, {"type": "NFC"}):
    return definition["normalizer"] is not None
  raise ValueError(f"its normalizer is {definition['normalizer']}, not NFC or none.")


def _pattern(pre_tokenizer: dict | None) -> str:
  steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
  match steps:
    case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
      return _GPT2
    case [
      {"type": "Digits", "individual_digits": True},
      {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    ]:
      return _GPT2_DIGITS
    case [
      {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert},
      {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ] if (behavior, invert) in (("Isolated", False), ("Removed", True)):
      return pattern
  raise ValueError(f"its pre-tokenizer is no split that the engine has: {pre_tokenizer}.")


def _ranks(model: dict) -> tuple[dict[bytes, int], list[int]]:
  """The tokens in order of their merges, bytes first, and the id of each of them."""
  if model["type"] != "BPE":
    raise ValueError(f"its model is {model['type']}, not BPE.")
  if model.get("byte_fallback") or model.get("dropout") or model.get("unk_token"):
    raise ValueError("its BPE has byte fallback, dropout or an unknown token.")
  alphabet = _byte_letters()
  vocab = model["vocab"]
  order = sorted(alphabet, key=lambda letter: vocab.get(letter, 0))
  order += ("".join(_pair(merge)) for merge in model["merges"])
  order = list(dict.fromkeys(order))  # a token that two merges make has the rank of the first
  try:
    order = [t for t in order if t in vocab or alphabet.get(t) not in _NEVER_IN_UTF8]
    ids = [vocab[token] for token in order]
    ranks = {bytes(alphabet[c] for c in token): rank for rank, token in enumerate(order)}
  except KeyError as error:
    raise ValueError(f"its vocabulary is not of bytes: {error} is missing.") from error
  return ranks, ids


def _pair(merge: str | Sequence[str]) -> Sequence[str]:
  return merge.split(" ") if isinstance(merge, str) else merge


@functools.cache
def _byte_letters() -> dict[str, int]:
  """The letter that stands for each byte in byte-level vocabularies, as GPT-2 chose them."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [b for b in range(256) if b not in printable]
  letters = {chr(b): b for b in printable}
  return letters | {chr(256 + n): b for n, b in enumerate(others)}

"""Tokenizers behind one interface, with an end-of-text id that no text can spell."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import fsspec
import tokenizers
import tokenizers.decoders
import tokenizers.models
import tokenizers.pre_tokenizers
import tokenizers.trainers


class Tokenizer(Protocol):
  """What the loader, evaluation and sampling need of a tokenizer.

  Attributes:
    vocab_size: all ids are below it.
    eot: the id that ends and starts documents; no text encodes to it.
    fingerprint: a hash of the file that defines it.
  """

  vocab_size: int
  eot: int
  fingerprint: str

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, without end-of-text ids."""

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids; bytes that are no UTF-8 become U+FFFD."""


def load(path: str, eot: str) -> Tokenizer:
  """Opens a Hugging Face `tokenizer.json` or a sentencepiece `.model`, by path or fsspec URL.

  Args:
    path: of the file.
    eot: the name of the end-of-text token in its vocabulary.

  Raises:
    ValueError: the file is missing or of another kind, or has no such token.
  """
  try:
    with fsspec.open(path, "rb") as file:
      data = file.read()
  except OSError as error:
    raise ValueError(f"data.tokenizer={path!r} cannot be read: {error}") from error
  if path.endswith(".json"):
    return HuggingFaceTokenizer(data, eot)
  if path.endswith(".model"):
    return SentencePieceTokenizer(data, eot)
  raise ValueError(
    f"data.tokenizer={path!r} must end in .json (Hugging Face) or .model (sentencepiece), "
    "or be 'train'."
  )


class HuggingFaceTokenizer:
  """A `tokenizers` model. Special tokens in text are text: they are encoded as ordinary bytes."""

  def __init__(self, data: bytes, eot: str):
    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # the library raises no narrower class
      raise ValueError(f"data.tokenizer is no Hugging Face tokenizer: {error}") from error
    self._tokenizer.encode_special_tokens = True
    self._tokenizer.no_padding()
    self._tokenizer.no_truncation()
    self._data, self._eot_name = data, eot
    self.eot = _require(self._tokenizer.token_to_id(eot), eot)
    self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
    self.fingerprint = hashlib.blake2b(data, digest_size=8).hexdigest()

  def __reduce__(self):
    return HuggingFaceTokenizer, (self._data, self._eot_name)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encoded]

  def decode(self, ids: Sequence[int]) -> str:
    return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)


class SentencePieceTokenizer:
  """A sentencepiece model; its control tokens cannot be spelled in text."""

  def __init__(self, data: bytes, eot: str):
    import sentencepiece  # only here: whoever uses another kind need not load it

    try:
      self._processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
      raise ValueError(f"data.tokenizer is no sentencepiece model: {error}") from error
    self._data, self._eot_name = data, eot
    pieces = {self._processor.id_to_piece(i): i for i in range(self._processor.vocab_size())}
    self.eot = _require(pieces.get(eot), eot)
    self.vocab_size = self._processor.vocab_size()
    self.fingerprint = hashlib.blake2b(data, digest_size=8).hexdigest()

  def __reduce__(self):
    return SentencePieceTokenizer, (self._data, self._eot_name)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return self._processor.encode(list(texts))

  def decode(self, ids: Sequence[int]) -> str:
    return self._processor.decode([int(i) for i in ids])


def _require(token: int | None, eot: str) -> int:
  if token is None:
    raise ValueError(f"data.eot={eot!r} is no token of this tokenizer; name its end-of-text token.")
  return token


def train(texts: Iterator[str], vocab_size: int, eot: str, path: Path) -> None:
  """Trains a byte-level BPE and writes it as a Hugging Face `tokenizer.json`.

  All 256 bytes are in its vocabulary, so that every text can be encoded and decoded back. The
  same texts give the same file.

  Raises:
    ValueError: vocab_size has no room for the bytes and the end-of-text token.
  """
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  if vocab_size <= len(alphabet) + 1:
    raise ValueError(
      f"data.vocab_size={vocab_size} must be more than {len(alphabet) + 1}: the bytes and {eot!r}."
    )
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size,
    initial_alphabet=sorted(alphabet),
    special_tokens=[eot],
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f"{path.name}.{os.getpid()}")
  partial.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
  partial.replace(path)

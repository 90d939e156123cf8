"""Tokenizers behind one interface, with an end-of-text id that no text can spell.

python -m data.tokenizer train 'corpus/*.jsonl' tokenizer.json --vocab_size 65536
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import fsspec
import tokenizers
import tokenizers.decoders
import tokenizers.models
import tokenizers.pre_tokenizers
import tokenizers.trainers

from data import tiktoken_bpe


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
  """Opens a tokenizer by path or fsspec URL, as the file's suffix says what it is.

  Args:
    path: a Hugging Face `tokenizer.json`, a sentencepiece `.model`, or tiktoken ranks,
      `X.tiktoken`, with their pattern and special tokens in `X.json` beside it.
    eot: the name of the end-of-text token in its vocabulary.

  Raises:
    ValueError: the file is missing or of another kind, or has no such token.
  """
  if path.endswith(".json"):
    return HuggingFaceTokenizer(_read(path), eot)
  if path.endswith(".model"):
    return SentencePieceTokenizer(_read(path), eot)
  if path.endswith(".tiktoken"):
    settings = path.removesuffix(".tiktoken") + ".json"
    return tiktoken_bpe.RanksTokenizer(_read(path), _read(settings), eot)
  raise ValueError(
    f"data.tokenizer={path!r} must end in .json (Hugging Face), .model (sentencepiece) or "
    ".tiktoken (ranks), or be 'train'."
  )


def _read(path: str) -> bytes:
  try:
    with fsspec.open(path, "rb") as file:
      return file.read()
  except OSError as error:
    raise ValueError(f"data.tokenizer={path!r} cannot be read: {error}") from error


class HuggingFaceTokenizer:
  """A `tokenizers` model. Special tokens in text are text: they are encoded as ordinary bytes.

  Its `definition` is the bytes of the file.
  """

  def __init__(self, data: bytes, eot: str):
    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # the library raises no narrower class
      raise ValueError(f"data.tokenizer is no Hugging Face tokenizer: {error}") from error
    self._tokenizer.encode_special_tokens = True
    self._tokenizer.no_padding()
    self._tokenizer.no_truncation()
    self._eot_name, self.definition = eot, data
    self.eot = _require(self._tokenizer.token_to_id(eot), eot)
    self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
    self.fingerprint = hashlib.blake2b(data, digest_size=8).hexdigest()

  def __reduce__(self):
    return HuggingFaceTokenizer, (self.definition, self._eot_name)

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


def main(argv: Sequence[str] | None = None) -> int:
  """The command line: trains a tokenizer on documents. Returns the exit code."""
  from data.documents import find, scan  # only here: workers import this file

  parser = argparse.ArgumentParser(prog="python -m data.tokenizer", description=__doc__)
  train_parser = parser.add_subparsers(dest="command", required=True).add_parser(
    "train", help="train a byte-level BPE and write it as a Hugging Face tokenizer.json"
  )
  add = train_parser.add_argument
  add("documents", help="a path, glob or fsspec URL of JSONL or text files")
  add("out", type=Path, help="the file to write; must not exist yet")
  add("--vocab_size", type=int, default=65_536, help="ids, the end of text included (%(default)s)")
  add("--eot", default="<|endoftext|>", help="name of the end-of-text token (%(default)s)")
  add("--max_bad_lines", type=int, default=1_000, help="malformed lines to skip (%(default)s)")
  arguments = parser.parse_args(argv)
  read = [0, 0]

  def texts():
    for _, text in scan(find(arguments.documents), arguments.max_bad_lines):
      read[0], read[1] = read[0] + 1, read[1] + len(text)
      if read[0] % 10_000 == 0:
        print(f"\r{read[0]:,} documents, {read[1]:,} characters", end="", file=sys.stderr)
      yield text

  try:
    if arguments.out.exists():
      raise ValueError(f"{arguments.out} exists; choose another name, or remove it.")
    train(texts(), arguments.vocab_size, arguments.eot, arguments.out)
    made = load(str(arguments.out), arguments.eot)
  except (OSError, ValueError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(
    f"{arguments.out}: {made.vocab_size:,} ids from {read[0]:,} documents, {read[1]:,} characters. "
    f"Use it with --config.data.tokenizer={arguments.out}"
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())

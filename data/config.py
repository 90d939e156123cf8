"""Frozen configuration dataclasses of the data path, and `parse`, which makes any of them."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def parse(cls: type[T], section: Mapping[str, Any], path: str = "config") -> T:
  """Makes the frozen dataclass `cls` from one section of a config.

  Every field of `cls` must be present (recipes hold all defaults, library code none) unless the
  dataclass itself gives a default. Nested dataclasses are parsed from nested sections.

  Raises:
    ValueError: an unknown or missing key (with the nearest name), or a value of the wrong type.
  """
  hints = typing.get_type_hints(cls)
  fields = {f.name: f for f in dataclasses.fields(cls)}
  for key in section:
    if key not in fields:
      near = difflib.get_close_matches(key, fields, n=1)
      hint = f"did you mean `{path}.{near[0]}`?" if near else f"known keys: {', '.join(fields)}."
      raise ValueError(f"unknown key `{path}.{key}`; {hint}")
  values = {}
  for name, field in fields.items():
    if name in section:
      values[name] = _coerce(section[name], hints[name], f"{path}.{name}")
    elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
      raise ValueError(f"`{path}.{name}` is missing; set it in the config file.")
  return cls(**values)


def _coerce(value, hint, path):
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    if value is None and type(None) in args:
      return None
    (inner,) = [a for a in args if a is not type(None)]
    return _coerce(value, inner, path)
  if dataclasses.is_dataclass(hint):
    if not isinstance(value, Mapping):
      raise ValueError(
        f"`{path}` is {value!r}; it must be a section with the keys of {hint.__name__}."
      )
    return parse(hint, value, path)
  if origin is dict:
    if not isinstance(value, Mapping):
      raise ValueError(f"`{path}` is {value!r}; it must be a section of named entries.")
    return {str(k): _coerce(v, args[1], f"{path}.{k}") for k, v in value.items()}
  if origin is tuple:
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
      raise ValueError(f"`{path}` is {value!r}; it must be a sequence.")
    return tuple(_coerce(v, args[0], f"{path}[{i}]") for i, v in enumerate(value))
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if hint is Any or (isinstance(value, hint) and (hint is bool or not isinstance(value, bool))):
    return value
  raise ValueError(f"`{path}` is {value!r} ({type(value).__name__}); it must be {hint.__name__}.")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
  """One source of documents.

  Attributes:
    path: a file, a glob or any fsspec URL of JSONL or plain text files, or "embedded".
    weight: the share of documents drawn from it, relative to the other sources' weights.
  """

  path: str
  weight: float

  def __post_init__(self):
    if not (self.weight > 0 and math.isfinite(self.weight)):
      raise ValueError(
        f"weight={self.weight} of the source {self.path!r} must be a positive number; "
        "remove the source to leave it out."
      )


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What the batches are made of. Batch n is a pure function of these values and the seed.

  Attributes:
    sources: name -> SourceConfig.
    tokenizer: a Hugging Face `tokenizer.json`, a sentencepiece `.model`, or "train".
    vocab_size: of the tokenizer that "train" makes; at most the model's.
    eot: the token that ends and starts documents, by its name in the tokenizer.
    seq_len: tokens in a row.
    batch_size: rows in a global batch.
    streams: virtual streams; divides batch_size, and every host count divides it.
    workers: processes that read and tokenize on each host; 0 is a thread in the same process.
    prefetch: batches that are kept ready ahead of the step.
    max_segments: the most documents in a row.
    open_bins: rows that the packer of a stream fills at the same time.
    heldout_fraction: the share of documents, by hash, that only evaluation sees.
    dedup_threshold: Jaccard similarity of 5-word shingles from which two documents are duplicates,
      of which one stays; null keeps all, for corpora that were deduplicated before.
    max_bad_lines: how many malformed lines or files a source may have; they are skipped.
  """

  sources: dict[str, SourceConfig]
  tokenizer: str
  vocab_size: int
  eot: str
  seq_len: int
  batch_size: int
  streams: int
  workers: int
  prefetch: int
  max_segments: int
  open_bins: int
  heldout_fraction: float
  dedup_threshold: float | None
  max_bad_lines: int

  def __post_init__(self):
    if not self.sources:
      raise ValueError("data.sources is empty; name at least one source of documents.")
    positive = ("seq_len", "batch_size", "streams", "prefetch", "max_segments", "open_bins")
    for name in positive:
      if getattr(self, name) < 1:
        raise ValueError(f"data.{name}={getattr(self, name)} must be at least 1.")
    for name in ("workers", "max_bad_lines"):
      if getattr(self, name) < 0:
        raise ValueError(f"data.{name}={getattr(self, name)} must not be negative.")
    if self.batch_size % self.streams:
      raise ValueError(
        f"data.batch_size={self.batch_size} is not divisible by data.streams={self.streams}; "
        "each stream fills an equal share of the rows."
      )
    if not 0 <= self.heldout_fraction < 1:
      raise ValueError(f"data.heldout_fraction={self.heldout_fraction} must be in [0, 1).")
    if self.dedup_threshold is not None and not 0.5 <= self.dedup_threshold <= 1:
      raise ValueError(
        f"data.dedup_threshold={self.dedup_threshold} must be in [0.5, 1], or null to keep all."
      )

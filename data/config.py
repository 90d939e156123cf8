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
    path: a file, a glob or any fsspec URL of JSONL, plain text or ArrayRecord files; of compressed
      (.gz, .zst, .bz2, .xz) or Parquet files, which are written to the run's folder as ArrayRecord
      first, as is "seqio:NAME", a registered Task or Mixture ("seqio:NAME@MODULE" imports a module
      first); or "embedded".
    weight: the share of documents drawn from it, relative to the other sources' weights.
    schedule: ((step, weight), ...) instead of one weight for the whole run: linear in between,
      constant before and after; empty for `weight` throughout.
  """

  path: str
  weight: float
  schedule: tuple[tuple[float, ...], ...] = ()

  def __post_init__(self):
    if not (self.weight > 0 and math.isfinite(self.weight)):
      raise ValueError(
        f"weight={self.weight} of the source {self.path!r} must be a positive number; "
        "remove the source to leave it out."
      )
    steps = [knot[0] for knot in self.schedule if len(knot) == 2]
    if len(steps) != len(self.schedule) or steps != sorted(set(steps)):
      raise ValueError(
        f"schedule={self.schedule} of the source {self.path!r} must be pairs (step, weight) in "
        "order of their steps."
      )
    if not all(weight >= 0 and math.isfinite(weight) for _, weight in self.schedule):
      raise ValueError(
        f"schedule={self.schedule} of the source {self.path!r} has a weight that is not a number "
        "of 0 or more."
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
    min_tokens: documents of fewer tokens are left out, and counted.
    max_tokens: so are documents of more; null for no limit.
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
  min_tokens: int = 0
  max_tokens: int | None = None

  def __post_init__(self):
    if not self.sources:
      raise ValueError("data.sources is empty; name at least one source of documents.")
    positive = ("seq_len", "batch_size", "streams", "prefetch", "max_segments", "open_bins")
    for name in positive:
      if getattr(self, name) < 1:
        raise ValueError(f"data.{name}={getattr(self, name)} must be at least 1.")
    for name in ("workers", "max_bad_lines", "min_tokens"):
      if getattr(self, name) < 0:
        raise ValueError(f"data.{name}={getattr(self, name)} must not be negative.")
    if self.batch_size % self.streams:
      raise ValueError(
        f"data.batch_size={self.batch_size} is not divisible by data.streams={self.streams}; "
        "each stream fills an equal share of the rows."
      )
    if not 0 <= self.heldout_fraction < 1:
      raise ValueError(f"data.heldout_fraction={self.heldout_fraction} must be in [0, 1).")
    if self.max_tokens is not None and self.max_tokens < max(self.min_tokens, 1):
      raise ValueError(
        f"data.max_tokens={self.max_tokens} must be at least 1 and at least "
        f"data.min_tokens={self.min_tokens}."
      )
    if self.dedup_threshold is not None and not 0.5 <= self.dedup_threshold <= 1:
      raise ValueError(
        f"data.dedup_threshold={self.dedup_threshold} must be in [0.5, 1], or null to keep all."
      )


@dataclasses.dataclass(frozen=True)
class ChatDataConfig:
  """What conversations are read by, and the rows that they fill.

  Attributes:
    tokenizer: a Hugging Face `tokenizer.json`.
    eot: its end-of-text token.
    chat_template: "model" for the one beside the tokenizer, a name of `data.chat.TEMPLATES`, or a
      file.
    seq_len: places in a row.
    batch_size: rows in a global batch.
    max_segments: the most conversations in a row.
    epochs: how often each is seen, where train.steps does not say it.
    heldout_fraction: the share of prompts, by hash, that only evaluation sees.
    refuse: reasons for which a row is not dropped and counted: it ends the run.
  """

  tokenizer: str
  eot: str
  chat_template: str
  seq_len: int
  batch_size: int
  max_segments: int
  epochs: float
  heldout_fraction: float
  refuse: tuple[str, ...]

  def __post_init__(self):
    for name in ("seq_len", "batch_size", "max_segments"):
      if getattr(self, name) < 1:
        raise ValueError(f"data.{name}={getattr(self, name)} must be at least 1.")
    if not self.epochs > 0:
      raise ValueError(f"data.epochs={self.epochs} must be positive.")
    if not 0 <= self.heldout_fraction < 1:
      raise ValueError(f"data.heldout_fraction={self.heldout_fraction} must be in [0, 1).")


@dataclasses.dataclass(frozen=True)
class InstructionConfig(ChatDataConfig):
  """Conversations to imitate, and what of them is kept: see `data.curate`.

  Attributes:
    sources: name -> a path, a glob or an fsspec URL of JSONL, JSON or Parquet, or "embedded".
    too_long: "drop" or "truncate" what has more tokens than a row, at the end of a turn.
    dedup_threshold: similarity of 5-word shingles from which one of two conversations goes; null
      drops the same ones only.
    leaks: evaluation set, by its name in `data.benchmarks` -> where it is; what holds a run of
      words of an item goes.
    buckets: lengths of rows in ascending order, up to seq_len, of which each is a divisor: a batch
      has conversations of about one length, in batch_size * seq_len places; empty for packed rows.
  """

  sources: dict[str, str]
  too_long: str
  dedup_threshold: float | None
  leaks: dict[str, str]
  buckets: tuple[int, ...]

  def __post_init__(self):
    super().__post_init__()
    if not self.sources:
      raise ValueError("data.sources is empty; name at least one source of conversations.")
    if self.too_long not in ("drop", "truncate"):
      raise ValueError(f"data.too_long={self.too_long!r}; it must be 'drop' or 'truncate'.")
    ascending = (
      self.buckets == tuple(sorted(set(self.buckets))) and min(self.buckets, default=1) > 0
    )
    divide = ascending and not any(self.seq_len % length for length in self.buckets)
    if self.buckets and not (divide and self.buckets[-1] == self.seq_len):
      raise ValueError(
        f"data.buckets={self.buckets} must be ascending divisors of data.seq_len={self.seq_len}, "
        "and end with it; or () for packed rows."
      )
    if self.dedup_threshold is not None and not 0.5 <= self.dedup_threshold <= 1:
      raise ValueError(
        f"data.dedup_threshold={self.dedup_threshold} must be in [0.5, 1], or null to keep all."
      )


@dataclasses.dataclass(frozen=True)
class PairSourceConfig:
  """Comparisons; `dimension` is what rows without labels and ratings speak of, or null."""

  path: str
  dimension: str | None


@dataclasses.dataclass(frozen=True)
class PairConfig(ChatDataConfig):
  """Comparisons to learn from: see `data.pairs`.

  Attributes:
    sources: name -> PairSourceConfig.
    scale: the lowest and the highest rating.
    exclude_prompts_of: the folder of a run of fine-tuning, whose prompts are left out; or null.
  """

  sources: dict[str, PairSourceConfig]
  scale: tuple[float, ...]
  exclude_prompts_of: str | None

  def __post_init__(self):
    super().__post_init__()
    if not self.sources:
      raise ValueError("data.sources is empty; name at least one source of comparisons.")
    if len(self.scale) != 2 or not self.scale[0] < self.scale[1]:
      raise ValueError(f"data.scale={self.scale} must be the lowest and the highest rating.")
    if self.max_segments < 2:
      raise ValueError("data.max_segments must be at least 2: both answers of a pair.")

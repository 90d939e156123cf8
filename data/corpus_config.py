"""The configuration of the corpus pipeline: frozen dataclasses that check themselves."""

import dataclasses
import math

from data import readers
from data.decontaminate import Decontamination
from data.language import Language
from data.minhash import MinHash
from data.privacy import Privacy
from data.quality import C4, FineWeb, GopherQuality
from data.repetition import GopherRepetition

STAGES = ("language", "gopher_repetition", "gopher_quality", "c4", "fineweb", "privacy")
FORMATS = ("jsonl", "parquet")


@dataclasses.dataclass(frozen=True)
class RawSource:
  """One source of raw documents.

  Attributes:
    path: a file, a glob or any fsspec URL.
    format: what `data.readers.read` knows; null: by each file's suffix.
    key: the field of a row that holds the text, in JSONL and Parquet files.
    weight: its share of the documents to train on, relative to the others'; for the manifest.
    stages: those of STAGES that its documents go through, in this order.
  """

  path: str
  format: str | None
  key: str
  weight: float
  stages: tuple[str, ...]

  def __post_init__(self):
    if not (self.weight > 0 and math.isfinite(self.weight)):
      raise ValueError(
        f"weight={self.weight} of the source {self.path!r} must be a positive number; "
        "remove the source to leave it out."
      )
    if self.format is not None and self.format not in readers.FORMATS:
      raise ValueError(
        f"the source {self.path!r} has format={self.format!r}; it must be one of "
        f"{', '.join(readers.FORMATS)}."
      )
    for stage in self.stages:
      if stage not in STAGES:
        raise ValueError(
          f"the source {self.path!r} has the stage {stage!r}; it must be one of "
          f"{', '.join(STAGES)}."
        )
    if len(set(self.stages)) < len(self.stages):
      raise ValueError(f"the source {self.path!r} has a stage twice: {', '.join(self.stages)}.")


@dataclasses.dataclass(frozen=True)
class NearDuplicates:
  """MinHash with locality-sensitive hashing, across all sources.

  A pair of Jaccard similarity s is compared with probability 1 - (1 - s^rows)^bands, and is one of
  duplicates if the estimate of its similarity from all bands * rows values reaches the threshold.

  Attributes:
    threshold: of the estimated similarity.
    most_compared: with how many documents that agree with it in a band one is compared at most.
    parts: into how many parts the documents' hashes are cut, for parallel work that fits in memory.
  """

  threshold: float
  most_compared: int
  parts: int

  def __post_init__(self):
    for name in ("most_compared", "parts"):
      if getattr(self, name) < 1:
        raise ValueError(f"near_duplicates.{name}={getattr(self, name)} must be at least 1.")
    if not 0 < self.threshold <= 1:
      raise ValueError(f"near_duplicates.threshold={self.threshold} must be in (0, 1].")


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
  """What `python -m data.corpus` makes; its output is a pure function of this and the files.

  Attributes:
    sources: name -> RawSource.
    language, gopher_repetition, gopher_quality, c4, fineweb, privacy: the rules of those stages.
    minhash: the signatures by which near duplicates are found.
    near_duplicates: what they are.
    decontamination: from which evaluation sets.
    heldout_fraction: the share of documents, by hash, that go to `heldout` and not to `training`.
    format: of the documents for people, "jsonl" (zstd) or "parquet".
    shard_bytes: input files are worked on together, and make one shard, up to this size.
    tokenizer: a tokenizer that counts tokens for the report; null counts words.
    eot: the name of its end-of-text token.
    examples: of each reason, in the report.
    workers: processes; 0 works in this one. The output does not depend on it.
  """

  sources: dict[str, RawSource]
  language: Language
  gopher_repetition: GopherRepetition
  gopher_quality: GopherQuality
  c4: C4
  fineweb: FineWeb
  privacy: Privacy
  minhash: MinHash
  near_duplicates: NearDuplicates
  decontamination: Decontamination
  heldout_fraction: float
  format: str
  shard_bytes: int
  tokenizer: str | None
  eot: str
  examples: int
  workers: int

  def __post_init__(self):
    if not self.sources:
      raise ValueError("sources is empty; name at least one source of documents.")
    for name in self.sources:
      if not name.isidentifier():
        raise ValueError(f"a source is called {name!r}; names are letters, digits and underscores.")
    if self.format not in FORMATS:
      raise ValueError(f"format={self.format!r} must be one of {', '.join(FORMATS)}.")
    if not 0 <= self.heldout_fraction < 1:
      raise ValueError(f"heldout_fraction={self.heldout_fraction} must be in [0, 1).")
    if self.shard_bytes < 1:
      raise ValueError(f"shard_bytes={self.shard_bytes} must be at least 1.")
    for name in ("examples", "workers"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name}={getattr(self, name)} must not be negative.")

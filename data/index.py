"""Where the documents of a run are, kept in its folder so that a restart need not read them all."""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.config import DataConfig
from data.documents import Documents, Files, Records
from data.files import facts, whole

_FORMAT = 1  # another one where documents are found or chosen otherwise


@dataclasses.dataclass(frozen=True)
class Corpus:
  """The documents of a run.

  Attributes:
    train: name of the source -> its documents to train on, in order of the names.
    heldout: the held-out documents of the sources that were read, by name.
    fingerprint: a hash of the training documents and their order.
    duplicates: how many near-duplicates were left out.
  """

  train: dict[str, Documents | Records]
  heldout: dict[str, Documents]
  fingerprint: str
  duplicates: int


def key_of(config: DataConfig, files: Mapping[str, Files]) -> str | None:
  """Names what an index of these files depends on; None where a file system can't tell of changes.

  Names, sizes and times of the files count, and what decides which documents stay.
  """
  listed = {}
  for name, source in files.items():
    listed[name] = [facts(source.fs, path) for path in source.paths]
    if None in listed[name]:
      return None
  rules = [_FORMAT, config.heldout_fraction, config.dedup_threshold, config.max_bad_lines]
  return hashlib.blake2b(json.dumps([listed, rules]).encode(), digest_size=16).hexdigest()


def write(path: Path, key: str, corpus: Corpus) -> None:
  """Keeps a corpus whose documents were read; all of it, or an OSError and nothing."""
  arrays = {f"train/{name}": documents.spans for name, documents in corpus.train.items()}
  arrays |= {f"heldout/{name}": documents.spans for name, documents in corpus.heldout.items()}
  about = {"key": key, "fingerprint": corpus.fingerprint, "duplicates": corpus.duplicates}
  with whole(path) as partial, partial.open("wb") as file:
    np.savez(file, about=np.array(json.dumps(about)), **arrays)


def read(path: Path, key: str | None, files: Mapping[str, Files]) -> Corpus | None:
  """The corpus kept at `path`; None where there is none by this key, or it can't be read."""
  if key is None or not path.exists():
    return None
  try:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
      about: dict[str, Any] = json.loads(str(kept["about"]))
      if about["key"] != key:
        return None
      parts = [
        {name: Documents(source, kept[f"{part}/{name}"]) for name, source in files.items()}
        for part in ("train", "heldout")
      ]
  except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # damaged, so it is made again
    return None
  return Corpus(*parts, about["fingerprint"], about["duplicates"])

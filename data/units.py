"""The units of work of a corpus: files that are read together and make one shard."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec

from data import files, readers
from data.corpus_config import CorpusConfig

_PLAN = "plan.json"


@dataclasses.dataclass(frozen=True)
class Unit:
  """Files of one source.

  Attributes:
    index: among all units.
    source: its name.
    name: of its shard: the source and a number.
    paths: in order.
  """

  index: int
  source: str
  name: str
  paths: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Input:
  """A file as it was when the run began: its size, and what the file system calls its version."""

  source: str
  path: str
  bytes: int
  version: str


def find(config: CorpusConfig) -> list[Input]:
  """The input files, by source and path.

  Raises:
    ValueError: a source matches no file.
  """
  found = []
  for name in sorted(config.sources):
    try:
      paths = readers.files(config.sources[name].path)
    except ValueError as error:
      raise ValueError(f"sources.{name}: {error}") from error
    for path in paths:
      fs, inner = fsspec.core.url_to_fs(path)
      info = fs.info(inner)
      version = next((str(info[k]) for k in ("mtime", "ETag", "etag", "md5Hash") if k in info), "")
      found.append(Input(name, path, int(info.get("size") or 0), version))
  return found


def group(inputs: list[Input], shard_bytes: int) -> list[Unit]:
  """Neighbours of one source together, up to `shard_bytes`; a larger file is alone."""
  units: list[Unit] = []
  filled, number = 0, 0
  for item in inputs:
    same = bool(units) and units[-1].source == item.source
    if same and filled + item.bytes <= shard_bytes:
      units[-1] = dataclasses.replace(units[-1], paths=(*units[-1].paths, item.path))
      filled += item.bytes
      continue
    number = number + 1 if same else 0
    filled = item.bytes
    units.append(Unit(len(units), item.source, f"{item.source}-{number:05d}", (item.path,)))
  return units


def begun(inputs: list[Input], settings: Mapping[str, Any], workdir: Path) -> bool:
  """Whether a run was begun in `workdir`, with this recipe and these files.

  Args:
    inputs: the files.
    settings: what the output depends on, as JSON values: the recipe without `workers`.
    workdir: of the run.

  Raises:
    ValueError: it was begun with another recipe, or other files.
  """
  path = workdir / _PLAN
  if not path.exists():
    return False
  before, now = files.read_json(path), _plan(inputs, settings)
  keys = [k for k in {**before["recipe"], **settings} if before["recipe"].get(k) != settings.get(k)]
  if keys:
    raise ValueError(
      f"the run in {workdir} was begun with other values of {', '.join(keys)}; continue with "
      "those, or start in a new workdir."
    )
  for one, other in ((before, now), (now, before)):
    for item in one["inputs"]:
      if item not in other["inputs"]:
        raise ValueError(
          f"the run in {workdir} was begun with other files: {item['path']} is new, changed or "
          "gone; restore it, or start in a new workdir."
        )
  return True


def begin(inputs: list[Input], settings: Mapping[str, Any], workdir: Path) -> None:
  """Keeps what a run was begun with."""
  files.write_json(workdir / _PLAN, _plan(inputs, settings))


def _plan(inputs, settings):
  return {"recipe": settings, "inputs": [dataclasses.asdict(item) for item in inputs]}

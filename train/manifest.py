"""The manifest of a checkpoint step: what it holds, and the size and SHA-256 of every file."""

import dataclasses
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from train.workdir import write_atomically

NAME = "MANIFEST.json"
Leaves = dict[str, tuple[tuple[int, ...], str]]  # {leaf path: (shape, dtype name)}
HASH_THREADS = 8  # hashlib releases the GIL; beyond this the disk is the limit


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a step holds.

  Attributes:
    step: batches trained on.
    items: {item: its leaves}; an item is a folder of the step: `<tree>.params`, `<tree>.average`
      or `<tree>.state`.
    files: {path in the step's folder: (bytes, SHA-256)} of all files but the manifest.
    extra: the caller's JSON: data cursors, place in the metrics file.
  """

  step: int
  items: dict[str, Leaves]
  files: dict[str, tuple[int, str]]
  extra: dict[str, Any]

  @property
  def is_full(self) -> bool:
    """Whether a run can restart from the step; else it holds weights alone."""
    return any(item.endswith(".state") for item in self.items)

  def weights_alone(self) -> "Manifest":
    """The manifest of the step once all but the weights are gone from it."""
    items = {item: leaves for item, leaves in self.items.items() if item.endswith(".params")}
    files = {path: entry for path, entry in self.files.items() if path.split("/")[0] in items}
    return dataclasses.replace(self, items=items, files=files)


def write(folder: Path, manifest: Manifest) -> None:
  """Puts `manifest` into `folder` whole or not at all, and on the disk before it returns."""
  write_atomically(folder / NAME, _dump(manifest))
  sync_folder(folder)


def read(folder: Path) -> Manifest:
  """Reads the manifest of `folder`.

  Raises:
    ValueError: it is missing, unreadable or not what was written, down to the bit.
  """
  try:
    text = (folder / NAME).read_text(encoding="utf-8")
    body = json.loads(text)
    manifest = Manifest(
      step=body["step"],
      items={
        item: {path: (tuple(shape), dtype) for path, (shape, dtype) in leaves.items()}
        for item, leaves in body["items"].items()
      },
      files={path: (size, digest) for path, (size, digest) in body["files"].items()},
      extra=body["extra"],
    )
  except FileNotFoundError:
    raise ValueError(f"{NAME} is missing") from None
  except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
    raise ValueError(f"{NAME} is unreadable ({error})") from None
  if text != _dump(manifest):
    raise ValueError(f"{NAME} does not match its own SHA-256")
  return manifest


def hash_files(folder: Path) -> dict[str, tuple[int, str]]:
  """{relative path: (bytes, SHA-256)} of every file under `folder` but the manifest's own.

  Each file, and each folder, is on the disk before this returns.
  """
  entries = sorted(folder.rglob("*"))
  paths = [path for path in entries if path.is_file() and path.name != NAME]
  with ThreadPoolExecutor(HASH_THREADS) as pool:
    results = list(pool.map(_hash_file, paths))
  for path in entries:
    if path.is_dir():
      sync_folder(path)
  return {
    str(path.relative_to(folder)): result for path, result in zip(paths, results, strict=True)
  }


def find_fault(folder: Path, manifest: Manifest) -> str | None:
  """What is wrong with the first damaged file of `manifest`, or None where all are whole."""

  def check(entry):
    name, (size, digest) = entry
    try:
      actual = (folder / name).stat().st_size
      if actual != size:
        return f"{name} has {actual} bytes, not {size}"
      if _hash_file(folder / name, sync=False)[1] != digest:
        return f"{name} does not match its SHA-256"
    except OSError as error:
      return f"{name} cannot be read ({error.strerror})"
    return None

  with ThreadPoolExecutor(HASH_THREADS) as pool:
    return next((fault for fault in pool.map(check, manifest.files.items()) if fault), None)


def sync_folder(folder: Path) -> None:
  """Puts the names in `folder` on the disk; without this a rename may not survive a power cut."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _hash_file(path: Path, sync: bool = True) -> tuple[int, str]:
  with open(path, "rb") as f:
    if sync:
      os.fsync(f.fileno())
    digest = hashlib.file_digest(f, "sha256").hexdigest()
    return f.tell(), digest


def _dump(manifest: Manifest) -> str:
  """Deterministic text that ends in the SHA-256 of all that is before it."""
  body = dataclasses.asdict(manifest)
  digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
  return json.dumps(body | {"sha256": digest}, sort_keys=True, indent=1) + "\n"

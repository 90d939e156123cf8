"""The folder of a run: which config it was started with, and what may differ at a restart."""

import hashlib
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONFIG = "config.json"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested mappings to {"a.b": value}; an empty mapping is a value."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def named(config: Any) -> Any:
  """A config of JSON's types: a function in it becomes its name and a hash of its source.

  So another function is seen at a restart, and nothing can be run by what was saved.
  """
  if isinstance(config, Mapping):
    return {key: named(value) for key, value in config.items()}
  if not callable(config):
    return config
  name = getattr(config, "__qualname__", type(config).__qualname__)
  try:
    source = inspect.getsource(config)
  except (OSError, TypeError):
    source = ""
  return f"function {name} {hashlib.blake2b(source.encode(), digest_size=4).hexdigest()}"


def differences(saved: Mapping, given: Mapping) -> dict[str, tuple[Any, Any]]:
  """{"a.b": (saved value, given value)} where two configs differ; a missing key reads as None."""
  saved, given = flatten(saved), flatten(given)
  return {
    key: (saved.get(key), given.get(key))
    for key in sorted(saved.keys() | given.keys())
    if saved.get(key) != given.get(key)
  }


def check_workdir(
  workdir: Path, config: Mapping[str, Any], allow: Sequence[str] = ()
) -> dict[str, tuple[Any, Any]]:
  """Checks that `config` continues the run that `workdir` holds, if it holds one. Writes nothing.

  Args:
    workdir: the folder of the run.
    config: the resolved config, of JSON types.
    allow: keys, or sections, that may differ from the saved config ("mesh", "train.steps").

  Returns:
    the allowed differences.

  Raises:
    ValueError: the config differs elsewhere; the message lists every difference.
  """
  path = workdir / CONFIG
  if not path.exists():
    return {}
  given = json.loads(json.dumps(config))
  try:
    saved = json.loads(path.read_text())
    if not isinstance(saved, dict):
      raise ValueError("no JSON object")
  except ValueError as error:
    raise ValueError(
      f"{path} can't be read: {error}. Restore it, or use another --workdir."
    ) from error
  changed = differences(saved, given)
  refused = {
    key: pair
    for key, pair in changed.items()
    if not any(key == name or key.startswith(f"{name}.") for name in allow)
  }
  if refused:
    lines = "\n".join(f"  {key}: {old!r} -> {new!r}" for key, (old, new) in refused.items())
    raise ValueError(
      f"{workdir} holds a run of another config:\n{lines}\n"
      f"Use another --workdir, or name what may change: --allow={','.join(refused)}"
    )
  return changed


def write_config(workdir: Path, config: Mapping[str, Any]) -> None:
  """Marks `workdir` as a run of `config`; called once everything about the config was checked."""
  workdir.mkdir(parents=True, exist_ok=True)
  write_atomically(workdir / CONFIG, json.dumps(config, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
  """Writes a file whole or not at all: a temporary beside it, fsync, rename."""
  temporary = path.with_name(f".{path.name}.tmp")
  with open(temporary, "w", encoding="utf-8") as f:
    f.write(text)
    f.flush()
    os.fsync(f.fileno())
  os.replace(temporary, path)

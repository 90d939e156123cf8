"""Frozen configuration dataclasses of the data path, and `parse`, which makes any of them."""

import dataclasses
import difflib
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
      raise ValueError(f"`{path}` is {value!r}; it must be a section with the keys of {hint.__name__}.")
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

"""Safetensors files, read and written a tensor at a time (https://huggingface.co/docs/safetensors).

A file is 8 bytes with the length of its header, the header in JSON, and the tensors' bytes. The
package of that name writes from a dict that holds a whole file; it is what the tests compare with.
"""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
_WRITTEN_TOGETHER = 16 * 2**20  # bytes of a tensor, which may be copied to be in their order
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Tensors(Mapping[str, np.ndarray]):
  """{name: array} of files; a tensor is mapped when it is asked for, and not kept."""

  def __init__(self, places: dict[str, tuple[Path, np.dtype, int, tuple[int, ...]]]):
    self.places = places  # file, dtype, first byte in the file, shape

  def __getitem__(self, name: str) -> np.ndarray:
    path, dtype, first, shape = self.places[name]
    if not math.prod(shape):
      return np.zeros(shape, dtype)
    return np.asarray(np.memmap(path, dtype, "r", first, shape))

  def __iter__(self) -> Iterator[str]:
    return iter(self.places)

  def __len__(self) -> int:
    return len(self.places)


def open_file(path: Path) -> Tensors:
  """The tensors of a file.

  Raises:
    ValueError: the file is no safetensors file, is truncated, or has a tensor of another dtype.
  """
  size = path.stat().st_size
  if size < 8:
    raise ValueError(f"{path} is no safetensors file: it has {size} bytes. Copy it again.")
  try:
    with open(path, "rb") as file:
      start = 8 + int.from_bytes(file.read(8), "little")
      if start > size:
        raise ValueError(f"a header of {start - 8} bytes, in {size} bytes in all")
      header = json.loads(file.read(start - 8))
    header.pop("__metadata__", None)
    spans = {name: _sizes(entry["data_offsets"]) for name, entry in header.items()}
    shapes = {name: _sizes(entry["shape"]) for name, entry in header.items()}
    kinds = {name: str(entry["dtype"]) for name, entry in header.items()}
    end = start + max((last for _, last in spans.values()), default=0)
    if any(a[1] != b[0] for a, b in itertools.pairwise([(0, 0), *sorted(spans.values())])):
      raise ValueError("its tensors overlap, or leave bytes between them")
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{path} is no safetensors file, or is truncated: {error}.") from None
  if end != size:
    raise ValueError(f"{path} has {size} bytes and its header describes {end}; copy it again.")
  places = {}
  for name, (first, last) in spans.items():
    if kinds[name] not in DTYPES:
      raise ValueError(
        f"{path}: tensor {name!r} is {kinds[name]}; it must be one of {', '.join(DTYPES)}."
      )
    dtype = np.dtype(DTYPES[kinds[name]])
    if last - first != math.prod(shapes[name]) * dtype.itemsize:
      raise ValueError(
        f"{path}: tensor {name!r} of shape {list(shapes[name])} and dtype {kinds[name]} has the "
        f"bytes {first} to {last}, which is not its size; the file is damaged."
      )
    places[name] = (path, dtype, start + first, shapes[name])
  return Tensors(places)


def _sizes(values: Sequence[int]) -> tuple[int, ...]:
  """Raises TypeError for what is no list of sizes."""
  if not isinstance(values, list) or any(type(x) is not int or x < 0 for x in values):
    raise TypeError(f"{values!r} is no list of sizes")
  return tuple(values)


def open_directory(directory: Path) -> Tensors:
  """The tensors of a model's files: model.safetensors, or those that its index names.

  Raises:
    ValueError: neither is there, a file or tensor of the index is missing, or a file is damaged.
  """
  if (directory / SINGLE).exists() and not (directory / INDEX).exists():
    return open_file(directory / SINGLE)
  if not (directory / INDEX).exists():
    raise ValueError(f"{directory} has neither {SINGLE} nor {INDEX}; convert its weights to those.")
  try:
    index = json.loads((directory / INDEX).read_text())["weight_map"]
    files = sorted(set(index.values()))
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{directory / INDEX} is no index of safetensors: {error!r}.") from None
  places = {}
  for file in files:
    if not isinstance(file, str) or Path(file).name != file:
      raise ValueError(f"{directory / INDEX} names {file!r}; its files must be beside it.")
    if not (directory / file).is_file():
      raise ValueError(f"{directory / file} is missing, which {INDEX} names.")
    found = open_file(directory / file).places
    if twice := sorted(found.keys() & places.keys()):
      raise ValueError(f"{directory}: tensor {twice[0]!r} is in {file} and in a file before it.")
    places |= found
  if absent := sorted(index.keys() - places.keys()):
    raise ValueError(f"{directory}: {INDEX} names {absent[0]!r}, which no file holds.")
  return Tensors(places)


def write_directory(
  directory: Path,
  shapes: Mapping[str, tuple[int, ...]],
  tensors: Iterable[tuple[str, np.ndarray]],
  max_bytes: int,
) -> None:
  """Writes fp32 tensors, in files of at most `max_bytes` where a tensor is no larger than that.

  Args:
    directory: that exists.
    shapes: of every tensor, in the order of `tensors`.
    tensors: (name, array); one is held at a time.
    max_bytes: of the tensors in a file.
  """
  groups: list[dict[str, tuple[int, ...]]] = [{}]
  filled = 0
  for name, shape in shapes.items():
    size = 4 * math.prod(shape)
    if groups[-1] and filled + size > max_bytes:
      groups.append({})
      filled = 0
    groups[-1][name] = shape
    filled += size
  names = [f"model-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)]
  if len(groups) == 1:
    names = [SINGLE]
  remaining = iter(tensors)
  for name, group in zip(names, groups, strict=True):
    _write_file(directory / name, group, remaining)
  if len(groups) > 1:
    total = sum(4 * math.prod(shape) for shape in shapes.values())
    weight_map = {t: name for name, group in zip(names, groups, strict=True) for t in group}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write_file(path: Path, shapes: Mapping[str, tuple[int, ...]], tensors: Iterator) -> None:
  header: dict = {"__metadata__": {"format": "pt"}}  # transformers asks for it
  first = 0
  for name, shape in shapes.items():
    last = first + 4 * math.prod(shape)
    header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [first, last]}
    first = last
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  with open(path, "wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for name, shape in shapes.items():
      given, array = next(tensors)
      assert given == name and array.shape == tuple(shape), (given, array.shape, name, shape)
      rows = max(1, _WRITTEN_TOGETHER // max(1, 4 * math.prod(shape[1:])))
      for part in np.split(array, range(rows, len(array), rows)) if shape else [array]:
        file.write(np.ascontiguousarray(part, "<f4").data)

"""Safetensors files: what the package of that name reads and writes, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from model import safetensors as ours

SHAPES = {"a": (3, 4), "b": (5,), "c": (2, 2, 2), "d": ()}


def arrays():
  rng = np.random.default_rng(0)
  return {name: rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}


def write(folder, max_bytes=1_000):
  ours.write_directory(folder, SHAPES, iter(arrays().items()), max_bytes)


def test_what_is_written_the_package_reads(tmp_path):
  write(tmp_path)
  read = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  assert read.keys() == SHAPES.keys()
  for name, array in arrays().items():
    np.testing.assert_array_equal(read[name], array)


def test_what_the_package_writes_is_read(tmp_path):
  given = arrays() | {"e": np.arange(6, dtype=np.float16).reshape(2, 3), "f": np.float64([1, 2])}
  safetensors.numpy.save_file(given, tmp_path / "model.safetensors", {"format": "pt"})
  read = ours.open_directory(tmp_path)
  assert read.keys() == given.keys()
  for name, array in given.items():
    assert read[name].dtype == array.dtype
    np.testing.assert_array_equal(read[name], array)


def test_files_hold_no_more_than_they_may_and_are_found_by_the_index(tmp_path):
  write(tmp_path, max_bytes=50)
  files = sorted(tmp_path.glob("*.safetensors"))
  assert [f.name for f in files] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
  read = ours.open_directory(tmp_path)
  for name, array in arrays().items():
    np.testing.assert_array_equal(read[name], array)
  index = json.loads((tmp_path / ours.INDEX).read_text())
  assert index["metadata"]["total_size"] == 4 * sum(a.size for a in arrays().values())


def test_a_truncated_file_is_named(tmp_path):
  write(tmp_path)
  path = tmp_path / "model.safetensors"
  whole = path.read_bytes()
  for size in (0, 7, 20, len(whole) // 2, len(whole) - 1):
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors (is no|has)"):
      ours.open_file(path)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"dtype": "F8_E4M3"}, "tensor 'b' is F8_E4M3; it must be one of F64, F32, F16, BF16"),
    ({"shape": [6]}, r"tensor 'b' of shape \[6\] .*is not its size"),
    ({"shape": None}, "is no safetensors file"),
    ({"shape": [-1, -5]}, r"\[-1, -5\] is no list of sizes"),
    ({"shape": ["a"]}, r"\['a'\] is no list of sizes"),
    ({"data_offsets": [0, 20]}, "its tensors overlap, or leave bytes between them"),
    ({"data_offsets": [9]}, "is no safetensors file"),
  ],
)
def test_a_header_that_lies_is_refused(tmp_path, change, message):
  write(tmp_path)
  path = tmp_path / "model.safetensors"
  whole = path.read_bytes()
  start = 8 + int.from_bytes(whole[:8], "little")
  header = json.loads(whole[8:start])
  header["b"] |= change
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + whole[start:])
  with pytest.raises(ValueError, match=message):
    ours.open_file(path)


def test_an_index_that_does_not_fit_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"neither model\.safetensors nor"):
    ours.open_directory(tmp_path)
  write(tmp_path, max_bytes=50)
  index = json.loads((tmp_path / ours.INDEX).read_text())
  index["weight_map"]["z"] = index["weight_map"]["a"]
  (tmp_path / ours.INDEX).write_text(json.dumps(index))
  with pytest.raises(ValueError, match="names 'z', which no file holds"):
    ours.open_directory(tmp_path)
  for name in ("../other.safetensors", "/etc/passwd", "a/b"):
    index["weight_map"]["z"] = name
    (tmp_path / ours.INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="its files must be beside it"):
      ours.open_directory(tmp_path)
  index["weight_map"]["z"] = "again.safetensors"
  (tmp_path / ours.INDEX).write_text(json.dumps(index))
  shutil.copy(tmp_path / "model-00001-of-00003.safetensors", tmp_path / "again.safetensors")
  with pytest.raises(ValueError, match=r"tensor 'a' is in model-00001.* and in a file before it"):
    ours.open_directory(tmp_path)
  del index["weight_map"]["z"]
  (tmp_path / ours.INDEX).write_text(json.dumps(index))
  (tmp_path / "model-00002-of-00003.safetensors").unlink()
  with pytest.raises(ValueError, match=r"model-00002-of-00003\.safetensors is missing"):
    ours.open_directory(tmp_path)

"""What is off the median is named, and nothing else; the measurements run on CPU devices."""

import json

import numpy as np
import pytest

from train import preflight
from train.preflight import Reading


def readings(what, values, unit="GB/s"):
  return [Reading(what, f"process {i}", value, unit) for i, value in enumerate(values)]


def test_the_slow_one_is_named():
  text, off = preflight.table(readings("memory", [3000, 3010, 2600, 2990]), tolerance=0.1)
  assert [reading.where for reading in off] == ["process 2"]
  assert text.splitlines()[-1] == "OFF: process 2: memory 2.6e+03 GB/s"
  text, off = preflight.table(readings("memory", [3000, 3300, 2710]), tolerance=0.1)
  assert not off and text.endswith("All alike.")


def test_a_clock_is_off_by_its_offset_either_way():
  _, off = preflight.table(readings("clock offset", [0, -250.0, 99.0, 101.0], "ms"), 0.1)
  assert [reading.where for reading in off] == ["process 1", "process 3"]


def test_an_all_reduce_is_over_all_devices():
  import jax

  assert preflight.all_reduce_bandwidth(jax.devices()[:4], 2**16) > 0


def test_the_command_measures_this_machine(tmp_path, capsys, monkeypatch):
  small = preflight.Sizes(matrix=64, dtype="float32", memory=2**16, collective=2**12, file=2**12)
  monkeypatch.setattr(preflight, "CPU", small)
  out = tmp_path / "readings.json"
  code = preflight.main(["--storage", str(tmp_path), "--json", str(out), "--tolerance", "1"])
  assert code == preflight.DONE
  found = [Reading(**line) for line in json.loads(out.read_text())]
  kinds = {reading.what for reading in found}
  assert {"matrix products", "memory", "all-reduce within", "storage write"} <= kinds
  assert all(np.isfinite(reading.value) and reading.value > 0 for reading in found)
  assert [path.name for path in tmp_path.iterdir()] == [out.name]
  assert "matrix products" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("arguments", "message"),
  [(["--storage", "/none"], "is no folder"), (["--processes", "2"], "--coordinator, --process_id")],
)
def test_bad_input_is_one_line(arguments, message, capsys):
  assert preflight.main(arguments) == preflight.BAD_INPUT
  assert message in capsys.readouterr().err

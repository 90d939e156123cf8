"""The list of breakages fits the code; what kills them is shown by `python -m tests.mutants`."""

import dataclasses
import re

import pytest

from tests import mutants


def test_each_breakage_is_one_line_that_occurs_once_and_names_a_test():
  names = [breakage.name for breakage in mutants.BREAKAGES]
  assert len(set(names)) == len(names) >= 20
  for breakage in mutants.BREAKAGES:
    text = (mutants.ROOT / breakage.file).read_text(encoding="utf-8")
    assert text.count(breakage.old) == 1, breakage
    assert "\n" not in breakage.old + breakage.new and breakage.old != breakage.new, breakage
    file, function = re.fullmatch(r"(tests/\w+\.py)::(\w+)(?:\[\S+\])?", breakage.test).groups()
    tests = (mutants.ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"^def {function}\(", tests, re.MULTILINE), breakage


def test_a_breakage_that_fits_no_longer_is_an_error(tmp_path):
  (tmp_path / "data").mkdir()
  (tmp_path / "data" / "batch.py").write_text("one two two\n")
  harmless = mutants.Breakage("x", "data/batch.py", "one", "three", "", "")
  mutants.apply(harmless, tmp_path)
  assert (tmp_path / "data" / "batch.py").read_text() == "three two two\n"
  for old in ("one", "two"):
    with pytest.raises(ValueError, match=r"occurs [02] times in data/batch\.py"):
      mutants.apply(dataclasses.replace(harmless, old=old), tmp_path)


@pytest.mark.slow
def test_a_breakage_of_nothing_survives(monkeypatch, capsys):
  (shift,) = (b for b in mutants.BREAKAGES if b.name == "target-shift")
  comment = dataclasses.replace(shift, name="harmless", new=f"{shift.old}  # the same")
  unimportable = dataclasses.replace(shift, name="unimportable", new="1 +")
  monkeypatch.setattr(mutants, "BREAKAGES", (shift, comment, unimportable))
  assert mutants.main([]) == 1
  out = capsys.readouterr().out
  assert "target-shift (each token is to predict itself): killed by tests/test_packing.py::" in out
  assert "Survived: harmless, unimportable." in out

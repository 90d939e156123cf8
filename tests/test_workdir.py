"""The folder of a run: what differs between two configs, and which differences may continue it."""

import json
import os

import pytest

from train import workdir
from train.workdir import check_workdir, differences, flatten, write_atomically, write_config

CONFIG = {
  "model": {"d_model": 32, "rope": {"theta": 1e4}},
  "train": {"steps": 24},
  "trainer": 1,
  "prompts": ("Return ",),
}


def changed(**flat):
  """CONFIG with other values, by their flat names."""
  config = json.loads(json.dumps(CONFIG))
  for name, value in flat.items():
    *sections, key = name.split("__")
    section = config
    for part in sections:
      section = section[part]
    section[key] = value
  return config


def test_flat_names():
  assert flatten({"a": {"b": {"c": 1}, "d": {}}, "e": None}) == {"a.b.c": 1, "a.d": {}, "e": None}


def test_differences_have_both_values_and_a_missing_key_is_none():
  saved, given = {"a": {"b": 1, "c": 2}, "old": 3}, {"a": {"b": 1, "c": 4}, "new": 5}
  assert differences(saved, given) == {"a.c": (2, 4), "new": (None, 5), "old": (3, None)}
  assert differences({"a": {"b": None}}, {"c": {"d": None}}) == {}


def test_a_new_folder_takes_any_config_and_is_not_made(tmp_path):
  assert check_workdir(tmp_path / "run", CONFIG) == {}
  assert not (tmp_path / "run").exists()


def test_the_same_config_continues_though_json_has_no_tuples(tmp_path):
  write_config(tmp_path / "deep" / "run", CONFIG)
  assert check_workdir(tmp_path / "deep" / "run", CONFIG) == {}


@pytest.mark.parametrize(
  ("allow", "change"),
  [
    (["train.steps"], {"train__steps": 48}),
    (["train"], {"train__steps": 48}),
    (["model"], {"model__d_model": 64, "model__rope__theta": 5e5}),
    (["trainer", "model.rope"], {"trainer": 2, "model__rope__theta": 5e5}),
  ],
)
def test_an_allowed_key_or_section_may_differ(tmp_path, allow, change):
  write_config(tmp_path, CONFIG)
  names = {name.replace("__", "."): value for name, value in change.items()}
  found = check_workdir(tmp_path, changed(**change), allow)
  assert {name: new for name, (_, new) in found.items()} == names


@pytest.mark.parametrize(
  ("allow", "refused"),
  [
    ([], ["model.rope.theta", "trainer"]),
    (["train"], ["model.rope.theta", "trainer"]),  # "trainer" begins with "train", is none of it
    (["model", "rope"], ["trainer"]),
    (["trainer", "model.rope.th"], ["model.rope.theta"]),
  ],
)
def test_all_other_differences_are_refused_with_a_remedy(tmp_path, allow, refused):
  write_config(tmp_path, CONFIG)
  before = (tmp_path / workdir.CONFIG).read_bytes()
  with pytest.raises(ValueError) as error:
    check_workdir(tmp_path, changed(trainer=2, model__rope__theta=5e5), allow)
  lines = str(error.value).splitlines()
  assert lines[0] == f"{tmp_path} holds a run of another config:"
  values = {"model.rope.theta": "10000.0 -> 500000.0", "trainer": "1 -> 2"}
  assert lines[1:-1] == [f"  {name}: {values[name]}" for name in refused]
  assert lines[-1].endswith(f"--allow={','.join(refused)}")
  assert (tmp_path / workdir.CONFIG).read_bytes() == before


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
  path = tmp_path / "file"
  write_atomically(path, "old")
  with monkeypatch.context() as patch:
    patch.setattr(os, "fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      write_atomically(path, "new")
  assert path.read_text() == "old"
  write_atomically(path, "new")
  assert path.read_text() == "new" and os.listdir(tmp_path) == ["file"]

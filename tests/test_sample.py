"""Sampling by the command line's stages: files, restarts, the terminal, and the sweep."""

import dataclasses
import io
import json

import jax
import pytest

from configs import diversity as diversity_recipe
from configs import sample as recipe
from data import tokenizer as tokenizer_files
from data.diversity import bleu, distinct, self_bleu
from model.params import param_specs
from model.sharding import MeshConfig, make_mesh
from tests.build import model_config, numpy_params
from train import main, sample
from train.checkpoint import Checkpointer
from train.workdir import write_config

EOT = "<|endoftext|>"
PROMPTS = [{"id": "a", "prompt": "the sea"}, {"prompt": "one two three", "tag": 7}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A run's folder with random weights."""
  path = tmp_path_factory.mktemp("run")
  texts = ["the sea is one thing and the land is two", "three things"] * 20
  tokenizer_files.train(iter(texts), 280, EOT, path / "tokenizer" / "tokenizer.json")
  model = model_config(vocab_size=288)
  checkpoints = Checkpointer(path / "checkpoints")
  checkpoints.save_weights(3, {"model": numpy_params(param_specs(model), 0)}, {})
  checkpoints.close()
  data = {"tokenizer": "train", "eot": EOT, "seq_len": 64}
  write_config(path, {"stage": "pretrain", "model": dataclasses.asdict(model), "data": data})
  return path


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  mesh = make_mesh(MeshConfig(1, 1, 1, 1), jax.devices()[:1])
  monkeypatch.setattr(sample, "make_mesh", lambda config: mesh)


def config(folder, prompts=None, **changes) -> dict:
  chosen = recipe.get_config(str(folder))
  chosen.update(max_tokens=6, slots=2, chunk=3, completions=2)
  chosen.prompts = prompts and str(prompts)
  chosen.update(changes)
  return chosen.to_dict()


def test_a_file_of_prompts_goes_on_where_it_stopped(folder, tmp_path, capsys):
  prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
  prompts.write_text("".join(json.dumps(p) + "\n" for p in PROMPTS))
  assert main.run(config(folder, prompts), out) == main.DONE
  path = out / sample.SAMPLES
  lines = {line["number"]: line for line in map(json.loads, path.read_text().splitlines())}
  assert sorted(lines) == [0, 1, 2, 3]
  assert lines[0]["id"] == "a" and lines[2]["tag"] == 7 and lines[2]["prompt"] == "one two three"
  assert lines[0]["text"] != lines[1]["text"] and lines[0]["tokens"] <= 6
  assert lines[0]["finish_reason"] in ("stop", "length") and lines[0]["calibration"] is None
  text = (out / sample.TEXT).read_text()
  assert text.startswith(f"the sea|{lines[0]['text']}\n\n---\n\n")
  # Killed in the middle of a line, after two that are whole.
  whole = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(b"".join(whole[:2]) + whole[2][:10])
  capsys.readouterr()
  assert main.run(config(folder, prompts), out) == main.DONE
  assert "2 of 4 completions are in" in capsys.readouterr().out
  again = {line["number"]: line for line in map(json.loads, path.read_text().splitlines())}
  for number, line in lines.items():
    assert again[number]["text"] == line["text"]
  prompts.write_text(json.dumps({"prompt": "another"}) + "\n")
  assert main.run(config(folder, prompts), out) == main.BAD_INPUT
  assert "has completions of other prompts" in capsys.readouterr().err


def test_reported_log_probs_are_calibrated_and_what_is_sampled_is_not(folder, tmp_path):
  prompts = tmp_path / "prompts.txt"
  prompts.write_text("the sea\n\none two\n")
  chosen = config(folder, prompts, completions=1)
  chosen["sample"]["temperature"] = 2.0
  kept = folder / "calibration.json"
  assert main.run(chosen, tmp_path / "before") == main.DONE
  kept.write_text(json.dumps({"step": 3, "weights": "raw", "next_token": {"temperature": 2.0}}))
  try:
    assert main.run(chosen, tmp_path / "after") == main.DONE
  finally:
    kept.unlink()
  before, after = (
    [json.loads(line) for line in (tmp_path / name / sample.SAMPLES).read_text().splitlines()]
    for name in ("before", "after")
  )
  for one, other in zip(before, after, strict=True):
    assert one["text"] == other["text"] and other["calibration"] == 2.0
    assert other["log_prob"] == pytest.approx(other["log_prob_at_temperature"], abs=1e-5)
    assert one["log_prob"] != pytest.approx(other["log_prob"], abs=1e-3)


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{", "prompts.jsonl:1 is no JSON"),
    ('{"text": "a"}', 'must be an object with either "prompt" or "messages"'),
    ('{"prompt": ""}', "and not empty"),
    ('{"messages": [{"role": "user", "content": "a"}]}', "name a chat_template"),
    (json.dumps({"id": "long", "prompt": "sea " * 90}), "long has "),
    ("", "has no prompt"),
  ],
)
def test_a_prompt_that_is_none_is_named(folder, tmp_path, capsys, line, message):
  prompts = tmp_path / "prompts.jsonl"
  prompts.write_text(line + "\n")
  assert main.run(config(folder, prompts), tmp_path / "out") == main.BAD_INPUT
  assert message in capsys.readouterr().err
  assert not (tmp_path / "out" / "config.json").exists()


def test_the_terminal_is_answered_line_by_line(folder, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr("sys.stdin", io.StringIO(f"the sea\n{'sea ' * 90}\none two\n"))
  assert main.run(config(folder, completions=1), tmp_path / "out") == main.DONE
  out, err = capsys.readouterr()
  assert out.count("the sea|") == 1 and out.count("one two|") == 1
  assert "error: the prompt has " in err
  assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_sweep_makes_a_table(folder, tmp_path, capsys):
  chosen = diversity_recipe.get_config(str(folder))
  chosen.sampler.update(max_tokens=6, slots=4, completions=3)
  chosen.update(temperatures=(0.0, 2.0), top_ps=(1.0,), texts=("the sea", "one"))
  for _ in range(2):  # the second time everything is there
    assert main.run(chosen.to_dict(), tmp_path) == main.DONE
  cold, hot = json.loads((tmp_path / "diversity.json").read_text())
  assert cold["self_bleu"] > hot["self_bleu"] and cold["perplexity"] < hot["perplexity"]
  assert cold["distinct_2"] < hot["distinct_2"]
  assert "self_bleu" in capsys.readouterr().out


def test_distinct_and_bleu():
  assert distinct(["a b a b", "a b"], 1) == 2 / 6
  assert distinct(["a b a b", "a b"], 2) == 2 / 4
  assert distinct([""], 2) == 0
  same = ["a", "b", "c", "d", "e"]
  assert bleu(same, [same]) == pytest.approx(1)
  # By hand: the unigram "the" is there twice, and once in the reference.
  one, two = "the cat is on the mat now", "there is a cat on the mat now"
  precisions = (6 / 7) * (3 / 6) * (2 / 5) * (1 / 4)
  assert bleu(one.split(), [two.split()]) == pytest.approx(
    2.718281828 ** (1 - 8 / 7) * precisions**0.25
  )
  assert self_bleu([["a b c d e"] * 3, ["x"]]) == pytest.approx(1)

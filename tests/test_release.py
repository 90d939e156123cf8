"""A release: what is refused, and a card whose figures are those of the files."""

import json

import pytest

from tests.fixtures import make_lm_eval
from train import release, results

METRIC = {"value": 0.25, "stderr": 0.05, "n": 40}


@pytest.fixture
def run(tmp_path):
  """A run of three steps, of 100 s each on 8 devices."""
  theirs = json.loads(make_lm_eval.FIXTURE.read_text(encoding="utf-8"))
  folder = tmp_path / "run"
  make_lm_eval.write_run(folder, theirs["tokenizer"])
  config = json.loads((folder / "config.json").read_text())
  config["data"]["sources"] = {"web": {"path": "web/*.jsonl", "weight": 1.0}}
  config["compute"] = {"dtype": "float16"}
  (folder / "config.json").write_text(json.dumps(config))
  lines = [{"kind": "peak_flops", "value": 1e12, "source": "989.4 TFLOP/s x 8"}]
  lines[0] |= {"device": "NVIDIA H100 80GB HBM3", "devices": 8}
  for step in (1, 2, 3, 4):  # the fourth is after the checkpoint
    step_line = {"kind": "train", "step": step, "tokens": 1000.0 * step, "skipped": 0}
    lines.append(step_line | {"step_time": 100.0})
  lines.append(
    {"kind": "eval", "step": 3, "set": "web", "weights": "raw", "loss": 3.5, "bits_per_byte": 1.25}
  )
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return folder


def evaluation(folder, run, *tasks, step=3):
  folder.mkdir()
  content = {
    "model": {"run": str(run), "step": step, "weights": "raw"},
    "tasks": {
      name: {
        "metrics": {"acc": METRIC},
        "groups": {},
        "counts": {"items": 42, "scored": 40, "truncated": 1},
        "items": [],
      }
      for name in tasks
    },
  }
  results.write(folder / results.SUMMARY, content)
  return str(folder)


SAFE = ("refusal_harmful", "refusal_harmless", "bbq")


def test_without_safety_results_it_refuses(run, tmp_path, capsys):
  quality = evaluation(tmp_path / "quality", run, "mmlu", "refusal_harmful")
  assert release.main([str(run), str(tmp_path / "out"), "--evaluation", quality]) == 2
  said = capsys.readouterr().err
  assert "refusal_harmless" in said
  assert "one of crows_pairs, bbq, winobias" in said
  assert not (tmp_path / "out").exists()


def test_unsafe_is_in_the_card(run, tmp_path):
  assert release.main([str(run), str(tmp_path / "out"), "--unsafe"]) == 0
  card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
  assert "Released without safety results" in card
  assert (tmp_path / "out" / "model.safetensors").exists()


def test_figures_are_those_of_the_files(run, tmp_path):
  safety = evaluation(tmp_path / "safety", run, *SAFE)
  quality = evaluation(tmp_path / "quality", run, "mmlu")
  flags = ["--country", "Singapore", "--watts", "900", "--kg-co2-per-kwh", "0.4"]
  arguments = ["--evaluation", safety, "--evaluation", quality, *flags, "--license", "apache-2.0"]
  assert release.main([str(run), str(tmp_path / "out"), *arguments]) == 0
  card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
  hours = 3 * 100 * 8 / 3600  # steps up to the released one
  for text in (
    "| tokens | 3,000 |",
    f"| device-hours | {hours:.4g} (sum of the steps' times) |",
    f"| energy | {hours * 0.9:.4g} kWh |",
    f"| CO2 | {hours * 0.36:.4g} kg |",
    "| country | Singapore |",
    "| hardware | 8 x NVIDIA H100 80GB HBM3 |",
    "| web | 3.5000 | 1.2500 |",
    "| mmlu | acc | 25.00 ± 5.00 | 40 |",
    "mmlu: 2 of 42 items could not be scored, and 1 were cut",
    "Released without" not in card and "`web/*.jsonl`, weight 1.0",
  ):
    assert text in card, text
  header = dict(line.split(": ", 1) for line in card.split("---")[1].strip().split("\n"))
  assert json.loads(header["license"]) == "apache-2.0"
  emissions = json.loads(header["co2_eq_emissions"])
  assert emissions["emissions"] == pytest.approx(1000 * hours * 0.36, abs=1e-3)
  (index,) = json.loads(header["model-index"])
  assert {result["dataset"]["name"] for result in index["results"]} == {*SAFE, "mmlu"}


@pytest.mark.parametrize(
  ("stage", "data", "said"),
  [
    (
      "sft",
      {"sources": {"main": "embedded", "b": "x.jsonl"}},
      "- main: `embedded`\n- b: `x.jsonl`",
    ),
    (
      "dpo",
      {"sources": {"main": {"path": "p.jsonl", "dimension": "harmlessness"}}},
      "- main: `p.jsonl`, dimension harmlessness",
    ),
    ("ppo", {"sources": {}, "path": "asked.jsonl"}, "- prompts: `asked.jsonl`"),
  ],
)
def test_a_later_stage_says_what_it_began_with(run, tmp_path, stage, data, said, capsys):
  config = json.loads((run / "config.json").read_text())
  config |= {"stage": stage, "data": config["data"] | data, "train": {"init_from": "runs/before"}}
  (run / "config.json").write_text(json.dumps(config))
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  for line in lines:
    line.pop("skipped", None)  # PPO counts none
  (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  flags = ["--unsafe", "--watts", "900", "--kg-co2-per-kwh", "0.4"]
  assert release.main([str(run), str(tmp_path / "out"), *flags]) == 0
  printed = capsys.readouterr().out
  assert printed.startswith(f"{tmp_path}/out: LlamaForCausalLM, ") and "releasing" not in printed
  card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
  assert said in card and "imported" not in card and "not finite" not in card
  assert "- before it: what `runs/before`, whose weights it began with, was made of" in card
  assert f"| stage | {stage}; on from the weights of `runs/before`, and what follows is" in card
  assert '"training_type": "fine-tuning"' in card


def test_a_card_tells_nothing_of_the_machine_that_trained(run, tmp_path):
  config = json.loads((run / "config.json").read_text())
  config["data"]["sources"] = {"web": {"path": ["/home/ada/web/*.jsonl", "docs/*.txt"]}}
  config["train"] = {"init_from": "/home/ada/runs/before"}
  (run / "config.json").write_text(json.dumps(config))
  assert release.main([str(run), str(tmp_path / "out"), "--unsafe"]) == 0
  card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
  assert "ada" not in card and str(tmp_path) not in card
  assert ".../*.jsonl" in card and "docs/*.txt" in card and ".../before" in card


def test_a_card_of_an_imported_model_says_that_it_was(run, tmp_path):
  (run / "metrics.jsonl").unlink()
  config = json.loads((run / "config.json").read_text())
  del config["data"]["sources"], config["compute"]
  (run / "config.json").write_text(json.dumps(config))
  assert release.main([str(run), str(tmp_path / "out"), "--unsafe"]) == 0
  card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
  assert "not recorded: the model was imported." in card
  assert "parameters, imported and written again by Straits." in card
  assert "how it was trained is in no file here" in card and "device-hours" not in card


def test_evaluations_of_other_weights_are_refused(run, tmp_path, capsys):
  other = evaluation(tmp_path / "other", run, *SAFE, step=2)
  assert release.main([str(run), str(tmp_path / "out"), "--evaluation", other]) == 2
  assert "evaluate what is released" in capsys.readouterr().err

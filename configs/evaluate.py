"""Evaluation of a run, or of an imported model: benchmarks, safety sets, held-out texts.

    python -m train.main --config configs/evaluate.py:runs/quickstart \\
      --config.suite.folder=eval --config.suite.tasks=hellaswag,mmlu --config.suite.limit=100

The sets lie in the suite's folder, in the places below; a path may also be "hf:REPO[:CONFIG]:SPLIT"
of the Hugging Face hub. docs/evaluation.md says what each task is, and what was measured.

A recipe of pretraining scores benchmarks at the steps of `eval.every` by
`config.eval.suite = evaluate.light("eval")`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import pretrain

SETS = {
  "hellaswag": "hellaswag",
  "mmlu": "mmlu/test",
  "mmlu_hendrycks": "mmlu/test",
  "truthfulqa_mc1": "truthfulqa/mc_task.json",
  "truthfulqa_mc2": "truthfulqa/mc_task.json",
  "truthfulqa_gen": "truthfulqa/TruthfulQA.csv",
  "arc_easy": "arc/ARC-Easy-Test.jsonl",
  "arc_challenge": "arc/ARC-Challenge-Test.jsonl",
  "piqa": "extra/piqa.jsonl",
  "lambada": "extra/lambada_openai_small.jsonl",
  "crows_pairs": "crows_pairs",
  "bbq": "bbq",
  "winobias": "winobias",
  "refusal_harmful": "advbench",
  "refusal_harmless": "harmless",
}


def get_config(run: str = "runs/quickstart") -> ConfigDict:
  base = pretrain.get_config()
  config = ConfigDict(
    {
      "stage": "evaluate",
      "run": run,
      "weights": placeholder(str),
      "step": placeholder(int),
      "compute": base.compute,
      "mesh": base.mesh,
      "suite": {
        "folder": "eval",
        "tasks": "hellaswag,mmlu,truthfulqa_mc1,truthfulqa_mc2,piqa,lambada",
        "sets": {
          name: {"path": path, "shots": 0, "shots_path": placeholder(str)}
          for name, path in SETS.items()
        },
        "heldout": {},
        "limit": placeholder(int),
        "max_length": placeholder(int),
        "window": 1_024,
        "max_tokens": 256,
        "chat_template": placeholder(str),
        "batch_tokens": 2_048,
        "batch_rows": 16,
        "max_bad_lines": 0,
        "corpus": placeholder(str),
      },
    }
  )
  for name in ("mmlu", "mmlu_hendrycks"):
    config.suite.sets[name].update(shots=5, shots_path="mmlu/dev")
  config.compute.update(dtype="float32", remat="none")
  return config


def light(folder: str) -> ConfigDict:
  """A suite for a cadence during training: 50 items each of three sets."""
  suite = get_config().suite
  suite.update(folder=folder, tasks="hellaswag,piqa,truthfulqa_mc2", limit=50)
  return suite

"""Every stage, one after the other: pretraining to an aligned, evaluated model, as one command.

    python -m train.main --config configs/pipeline.py           (laptop size, on embedded data)
    python -m train.main --config configs/pipeline.py:37b       (the reference plan; never run)

Started again it goes on where it stopped. It ends with a table of each stage before and after. A
stage is a recipe of this folder, its argument, and changes to it as on the command line; {name}
stands for the folder of the stage of that name, {corpus} for embedded data that is written first:
comparisons.jsonl and heldout.jsonl.
"""

from ml_collections import ConfigDict

HELD_OUT = "suite.heldout.docs={corpus}/heldout.jsonl"
PROMPTS = "{sft}/corpus/instructions.jsonl"
LAPTOP = {
  "pretrain": ("quickstart", "", ("train.steps=600", "checkpoint.every=200", "eval.every=300")),
  # Of 60% of the prompts, so that comparisons of the others are left for the reward model.
  "sft": (
    "sft",
    "{pretrain}",
    ("train.steps=200", "sample.prompts=16", "data.heldout_fraction=0.4"),
  ),
  "reward": (
    "reward",
    "{sft}",
    (
      "data.sources.main.path={corpus}/comparisons.jsonl",
      "data.seq_len=256",
      "train.steps=100",
      "score.prompts=64",
      "score.max_tokens=48",
    ),
  ),
  "ppo": (
    "ppo",
    "{sft}",
    (
      "reward.models=('{reward}',)",
      f"data.path={PROMPTS}",
      "data.seq_len=96",
      "data.response_tokens=32",
      "data.batch_size=64",
      "optimizer.peak_lr=2e-4",
      "critic.optimizer.peak_lr=1e-3",
      "train.steps=40",
    ),
  ),
  "calibrate": ("calibrate", "{ppo}", ("documents={corpus}/heldout.jsonl", "pairs={reward}")),
  "evaluate_base": ("perplexity", "{pretrain}", (HELD_OUT,)),
  "evaluate": ("perplexity", "{ppo}", (HELD_OUT,)),
}
REFERENCE = {
  "pretrain": ("pretrain_37b", "", ()),
  "sft": ("sft_37b", "{pretrain}", ()),
  "reward": ("reward_37b", "{sft}", ()),
  "ppo": ("ppo_37b", "{sft}", ("reward.models=('{reward}',)",)),
  "calibrate": ("calibrate", "{ppo}", ("documents=held/*.jsonl", "pairs={reward}")),
  "evaluate": ("evaluate", "{ppo}", ()),
}
ORDER = ("pretrain", "sft", "reward", "ppo", "calibrate", "evaluate_base", "evaluate")


def get_config(size: str = "laptop") -> ConfigDict:
  if size not in ("laptop", "37b"):
    raise ValueError(f"there is no pipeline {size!r}; it is `laptop` or `37b`.")
  stages = LAPTOP if size == "laptop" else REFERENCE
  return ConfigDict(
    {
      "stage": "pipeline",
      "order": tuple(name for name in ORDER if name in stages),
      "embedded": size == "laptop",
      "stages": {
        name: {"recipe": recipe, "argument": argument, "changes": changes}
        for name, (recipe, argument, changes) in stages.items()
      },
    }
  )

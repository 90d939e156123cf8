"""A reward model on comparisons with planted utilities, against the best that their noise allows.

    python docs/benchmarks/reward.py

Every answer is a few words, each of which has a utility in three dimensions; which of two answers
is called better in a dimension is drawn with probability sigmoid of the difference (Bradley-Terry),
and equal ones are ties. A dimension is missing from a tenth of the rows. The best accuracy, Bayes',
is then the mean of max(p, 1 - p) over the held-out pairs. It is a run of configs/reward.py on a
model of random weights; printed are accuracy and Bayes', calibration before and after the
temperature, and the length baseline.
"""

import argparse
import dataclasses
import json
import random
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

DIMENSIONS = ("harmlessness", "helpfulness", "honesty")
WORDS = re.findall(
  r"\w+", "able back calm dark east fair gold high idle just kind long main near open past"
)
ANSWER_WORDS = 4


def utilities(answer: str) -> np.ndarray:
  table = np.random.default_rng(7).normal(0.0, 0.9, (len(WORDS), len(DIMENSIONS)))
  return sum(table[WORDS.index(word)] for word in answer.split())


def write_comparisons(path: Path, count: int) -> None:
  rng = random.Random(0)
  with open(path, "w") as file:
    for number in range(count):
      answers = [" ".join(rng.choices(WORDS, k=ANSWER_WORDS)) for _ in range(2)]
      labels = {}
      for name, gap in zip(DIMENSIONS, utilities(answers[0]) - utilities(answers[1]), strict=True):
        if rng.random() < 0.1:
          continue
        if abs(gap) < 1e-9:
          labels[name] = "tie"
        else:
          labels[name] = "chosen" if rng.random() < 1 / (1 + np.exp(-gap)) else "rejected"
      if labels:
        row = {"prompt": f"Say {number}.", "chosen": answers[0], "rejected": answers[1]}
        file.write(json.dumps(row | {"labels": labels}) + "\n")


def write_base(folder: Path) -> None:
  """A model of random weights with a tokenizer of words, laid out like an imported one."""
  import tokenizers
  from tokenizers import models, pre_tokenizers

  from configs import quickstart
  from data.config import parse
  from model.config import ModelConfig
  from model.params import init_params, param_specs
  from train.checkpoint import Checkpointer

  recipe = quickstart.get_config()
  recipe.model.update(vocab_size=512, d_model=64, num_layers=2, num_heads=4, num_kv_heads=2)
  recipe.model.update(head_dim=16, d_ff=128)
  config = parse(ModelConfig, recipe.model.to_dict())
  made = tokenizers.Tokenizer(models.BPE())
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=512,
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    special_tokens=["<|endoftext|>"],
    show_progress=False,
  )
  made.train_from_iterator([f"Question: Say 1.\nAnswer: {' '.join(WORDS)}"] * 5, trainer)
  (folder / "tokenizer").mkdir(parents=True)
  made.save(str(folder / "tokenizer" / "tokenizer.json"))
  checkpoints = Checkpointer(folder / "checkpoints")
  checkpoints.save_weights(0, {"model": init_params(param_specs(config), 0)}, {})
  checkpoints.close()
  data = {"tokenizer": str(folder / "tokenizer" / "tokenizer.json"), "eot": "<|endoftext|>"}
  described = {"stage": "import", "model": dataclasses.asdict(config), "data": data}
  (folder / "config.json").write_text(json.dumps(described))


def bayes_accuracy(pairs: Path, recipe) -> dict[str, float]:
  """Mean max(p, 1 - p) of the held-out pairs, on which the report's accuracy is measured."""
  from data import conversations
  from data.heldout import is_held_out

  best: dict[str, list[float]] = {name: [] for name in DIMENSIONS}
  for line in pairs.read_text().splitlines():
    row = json.loads(line)
    said = conversations.prompt_text([{"role": "user", "content": row["prompt"]}])
    if not is_held_out(said, recipe.data.heldout_fraction):
      continue
    gaps = utilities(row["chosen"]) - utilities(row["rejected"])
    for name, gap in zip(DIMENSIONS, gaps, strict=True):
      if row["labels"].get(name, "tie") != "tie":
        best[name].append(1 / (1 + np.exp(-abs(gap))))
  return {name: float(np.mean(values)) for name, values in best.items()}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--pairs", type=int, default=12_000)
  parser.add_argument("--folder", type=Path, default=Path("runs/planted"))
  args = parser.parse_args()
  from configs import reward
  from train import main as command

  base, pairs = args.folder / "base", args.folder / "pairs.jsonl"
  if not base.exists():
    write_base(base)
    write_comparisons(pairs, args.pairs)
  recipe = reward.get_config(str(base))
  recipe.data.sources.main.path = str(pairs)
  recipe.data.update(chat_template="plain", seq_len=256, batch_size=8, heldout_fraction=0.4)
  recipe.score.reference = None
  recipe.loss.center = 0.001
  recipe.optimizer.update(peak_lr=3e-3, final_lr=3e-5, warmup_steps=20)
  recipe.eval.every = 100
  code = command.run(recipe.to_dict(), args.folder / "run")
  if code:
    sys.exit(code)
  report = json.loads((args.folder / "run" / "reward_report.json").read_text())
  for name, best in bayes_accuracy(pairs, recipe).items():
    one = report["dimensions"][name]
    print(
      f"{name}: accuracy {one['accuracy']:.3f} +- {one['standard_error']:.3f} of {one['n']} pairs, "
      f"Bayes {best:.3f}; ECE {one['calibration_error_before']:.3f}, with the temperature "
      f"{one['calibration_error_after']:.3f}"
    )


if __name__ == "__main__":
  main()

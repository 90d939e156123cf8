"""What PPO with adapters made of a model on prompts it has not seen: reward, KL, and perplexity.

    python -m train.main --config configs/ppo_lora.py:runs/smollm2 --workdir runs/short-words \\
      --config.data.path=prompts/train.jsonl
    python docs/benchmarks/ppo_lora.py runs/smollm2 runs/short-words prompts/heldout.jsonl

The imported model and each checkpoint answer every held-out prompt `--samples` times. Standard
errors are over prompts. The perplexity is that of the answers under the model that was imported.
`--out NAME` also writes the run's curve: NAME.json and NAME.png.
"""

import argparse
import functools
import json
import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from configs import ppo_lora
from data.questions import open_prompts
from model.sharding import make_mesh
from train import experience
from train.checkpoint import Checkpointer
from train.iteration import CRITIC, POLICY, Models
from train.metrics import read
from train.placement import from_whole
from train.ppo_config import parse_config

CURVE = ("step", "reward", "reward_std", "kl", "reference_nll", "explained_variance", "length")


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("base", help="the folder that the run began with")
  parser.add_argument("run", help="the folder of the run")
  parser.add_argument("prompts", help="a file of held-out prompts")
  parser.add_argument("--steps", type=int, nargs="+", help="checkpoints; the newest by default")
  parser.add_argument("--samples", type=int, default=2, help="answers to a prompt")
  parser.add_argument("--out", type=Path, help="where to write the curve, without a suffix")
  args = parser.parse_args()
  recipe = ppo_lora.get_config(args.base)
  recipe.data.path = args.prompts
  config = parse_config(recipe.to_dict())
  mesh = make_mesh(config.mesh)
  with jax.set_mesh(mesh):
    prompts = open_prompts(config.data, config.model.vocab_size)
    models = Models(config, mesh)
    measure = experience.make_measure(config, mesh)
    ask = functools.partial(answers, prompts, config, mesh, measure, args.samples)
    before = ask(models.begin(config, []))
    result = {"prompts": len(prompts.ids), "samples": args.samples, "before": summary(before)}
    checkpoints = Checkpointer(Path(args.run) / "checkpoints")
    for number in args.steps or checkpoints.steps()[-1:]:
      _, states, _ = checkpoints.restore(models.abstract, number)
      after = ask(states)
      change = after["share"] - before["share"]
      gain = {"gain": [float(change.mean()), standard_error(change)]}
      result[f"after {number} iterations"] = summary(after) | gain
    checkpoints.close()
  print(json.dumps(result, indent=2))
  if args.out:
    lines = [x for x in read(Path(args.run) / "metrics.jsonl") if x["kind"] in ("train", "final")]
    curve = [{key: line[key] for key in CURVE} for line in lines]
    size = config.responses
    args.out.with_suffix(".json").write_text(
      json.dumps({"heldout": result, "responses": size, "curve": curve}, indent=1) + "\n"
    )
    plot(curve, size, args.out.with_suffix(".png"))


def answers(prompts, config, mesh, measure, samples: int, states) -> dict[str, np.ndarray]:
  """By prompt, means over its answers: reward, KL, tokens, their NLL under the reference."""
  count, size = len(prompts.ids), config.responses
  rows = np.tile(np.arange(count), samples)
  padded = np.resize(rows, -(-len(rows) // size) * size)
  parts = []
  for number, part in enumerate(padded.reshape(-1, size)):
    key = jax.random.fold_in(jax.random.key(1), number)
    policy = states[POLICY].params
    responses = experience.respond(policy, prompts, part, key, config, mesh)
    batch = from_whole(experience.sequences(responses, prompts, config), mesh)
    said = jax.device_get(measure(policy, None, states[CRITIC].params, batch))
    mask_BT = np.arange(config.data.response_tokens)[None] < responses.counts_B[:, None]
    parts.append(
      {
        "share": np.array([ppo_lora.short_words(text) for text in responses.texts]),
        "kl": np.sum((said["log_probs"] - said["reference"]) * mask_BT, axis=1),
        "nll": np.sum(-said["reference"] * mask_BT, axis=1),
        "tokens": responses.counts_B,
        "ended": responses.stopped_B,
      }
    )
  joined = {key: np.concatenate([p[key] for p in parts])[: len(rows)] for key in parts[0]}
  return {key: x.reshape(samples, count).mean(axis=0) for key, x in joined.items()}


def standard_error(values: np.ndarray) -> float:
  return float(values.std(ddof=1) / np.sqrt(len(values)))


def summary(rows: dict[str, np.ndarray]) -> dict:
  """[mean, standard error] of each, and the perplexity of a token under the reference."""
  out = {key: [float(rows[key].mean()), standard_error(rows[key])] for key in rows if key != "nll"}
  return out | {"perplexity": float(np.exp(rows["nll"].sum() / rows["tokens"].sum()))}


def plot(curve: list[dict], size: int, path: Path) -> None:
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  steps = [line["step"] for line in curve]
  figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
  rewards = np.array([line["reward"] for line in curve])
  errors = np.array([line["reward_std"] for line in curve]) / np.sqrt(size)
  axes[0].errorbar(steps, rewards, errors, marker="o", markersize=3)
  axes[0].set_title("reward, with standard errors")
  axes[1].plot(steps, [line["kl"] for line in curve], marker="o", markersize=3)
  axes[1].set_title("KL to the imported model, nats a response")
  axes[2].plot(steps, np.exp([line["reference_nll"] for line in curve]), marker="o", markersize=3)
  axes[2].set_title("perplexity under the imported model")
  for axis in axes:
    axis.set_xlabel("iteration")
  figure.savefig(path, dpi=110)


if __name__ == "__main__":
  main()

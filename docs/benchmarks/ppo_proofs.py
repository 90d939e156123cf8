"""That PPO learns: closed form, a sequence task with controls, best-of-n, over-optimization.

    python docs/benchmarks/ppo_proofs.py --seeds 5 --out docs/ppo_proofs

Every run is a tiny random policy over 15 words, so that all of it takes minutes. Writes
<out>.json with the curves of every seed, and <out>.png where matplotlib is installed.
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests import policy_run  # noqa: E402
from train import main as command  # noqa: E402
from train.checkpoint import Checkpointer  # noqa: E402
from train.metrics import read  # noqa: E402

KEYS = ("reward", "kl", "beta", "entropy", "explained_variance", "policy/clip_fraction")
TABLE = dict(zip(policy_run.WORDS, np.linspace(-1, 1, 15) ** 2, strict=True))
SEQUENCE = {"data": {"batch_size": 64, "seq_len": 13, "response_tokens": 8}, "train": {"steps": 60}}


def count_c(prompts, responses):
  return [0.5 * response.split().count("c") for response in responses]


def shuffled(prompts, responses):
  rng = np.random.default_rng(len("".join(responses)))
  return list(rng.permutation(count_c(prompts, responses)))


def table(prompts, responses):
  return [float(TABLE.get(response, 0.0)) for response in responses]


def proxy(prompts, responses):
  """What is learned from likes every "c"; what is meant likes four of them."""
  counts = [response.split().count("c") for response in responses]
  return {
    "proxy": [0.5 * count for count in counts],
    "gold": [0.5 * count - max(0, count - 4) for count in counts],
  }


def train(folder: Path, function, seed: int, **sections) -> tuple[dict[str, list], Path]:
  """The curves of a run, and its folder."""
  changes = {name: dict(section) for name, section in sections.items()}
  changes.setdefault("train", {}).setdefault("steps", 60)
  changes["checkpoint"] = {"every": 10_000}
  config = policy_run.recipe(folder, function, **changes)
  config.seed, config.log.every = seed, 1_000
  config.mesh.update(data=1, fsdp=-1)
  workdir = Path(tempfile.mkdtemp(dir=folder.parent))
  assert command.run(config.to_dict(), workdir / "run") == command.DONE
  lines = [x for x in read(workdir / "run" / "metrics.jsonl") if x["kind"] in ("train", "final")]
  keys = [*KEYS, *(key for key in lines[0] if key.startswith("reward/"))]
  return {key: [line[key] for line in lines if key in line] for key in keys}, workdir / "run"


def tail(curves: dict[str, list], key: str, n: int = 10) -> float:
  return float(np.mean(curves[key][-n:]))


def distribution(workdir: Path) -> np.ndarray:
  """The next token after the prompt "a"."""
  from model.transformer import forward
  from tests.build import compute_config
  from train.initial import _nested

  checkpoints = Checkpointer(workdir / "checkpoints")
  step = checkpoints.steps()[-1]
  abstract = {"model": checkpoints.abstract_weights(step)["model"]}
  params = _nested(checkpoints.restore_weights(abstract, step)["model"])
  ones = np.ones((1, 2), np.int32)
  tokens = np.array([[0, 1]])
  logits = forward(params, tokens, ones, np.arange(2)[None], policy_run.MODEL, compute_config())
  return np.asarray(jax.nn.softmax(logits[0, -1]), np.float64)


def closed_form(folder: Path, seed: int) -> dict:
  """Responses of one token: the optimum is pi_ref exp(r / beta) / Z."""
  beta, one = 0.5, folder / "one.jsonl"
  one.write_text(json.dumps({"prompt": "a"}) + "\n")
  data = {"path": str(one), "seq_len": 6, "response_tokens": 1, "batch_size": 256}
  curves, workdir = train(folder, table, seed, data=data, kl={"beta": beta})
  rewards = np.array([0.0, *TABLE.values()])
  reference, policy = distribution(folder), distribution(workdir)
  best = reference * np.exp(rewards / beta)
  best /= best.sum()

  def numbers(p):
    return float((p * rewards).sum()), float((p * np.log(p / reference)).sum())

  (reward, kl), (want_reward, want_kl) = numbers(policy), numbers(best)
  return {
    "curves": curves,
    "total_variation": float(np.abs(policy - best).sum() / 2),
    "reward": reward, "best_reward": want_reward, "kl": kl, "best_kl": want_kl,
  }  # fmt: skip


def best_of_n(folder: Path, seed: int, n: int) -> dict:
  """Rewards at the KL of best-of-n, log n - (n - 1) / n, that beta adapts to."""
  frozen = dict(
    SEQUENCE, train={"steps": 8}, data={"batch_size": 512, "seq_len": 13, "response_tokens": 8}
  )
  seen: list[float] = []

  def keep(prompts, responses):
    seen.extend(count_c(prompts, responses))
    return count_c(prompts, responses)

  still = {"optimizer": {"peak_lr": 0.0}, "critic": {"optimizer": {"peak_lr": 0.0}}}
  train(folder, keep, seed, **frozen, **still)
  groups = np.array(seen)[: len(seen) // n * n].reshape(-1, n)
  kl = math.log(n) - (n - 1) / n
  adapts = {"target": kl, "horizon": 600, "beta": 0.3}
  longer = SEQUENCE | {"train": {"steps": 150}}
  curves, _ = train(folder, count_c, seed, **longer, kl=adapts)
  return {
    "n": n, "kl": kl, "best_of_n": float(groups.max(axis=1).mean()),
    "ppo": tail(curves, "reward", 30), "ppo_kl": tail(curves, "kl", 30), "curves": curves,
  }  # fmt: skip


def parting(curves: dict[str, list]) -> int | None:
  """The iteration from which the gold reward is under its best by a tenth of its gain."""
  window = 5
  gold = np.convolve(curves["reward/gold"], np.ones(window) / window, "valid")
  learned = np.convolve(curves["reward/proxy"], np.ones(window) / window, "valid")
  best = int(np.argmax(gold))
  under = gold < gold[best] - 0.1 * (gold[best] - gold[0])
  later = np.flatnonzero(under & (np.arange(len(gold)) > best) & (learned > learned[best]))
  return int(later[0]) + window if len(later) else None


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seeds", type=int, default=5)
  parser.add_argument("--out", default="docs/ppo_proofs")
  options = parser.parse_args()
  results: dict = {"closed_form": [], "sequence": []}
  with tempfile.TemporaryDirectory() as place:
    jax.config.update("jax_compilation_cache_dir", str(Path(place) / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    folder = policy_run.make(Path(place) / "policy")

    def keep(name, value, said):
      if name in ("closed_form", "sequence"):
        results[name].append(value)
      else:
        results[name] = value
      Path(f"{options.out}.json").write_text(json.dumps(results) + "\n")
      print(f"{name}: {said}", flush=True)

    for seed in range(options.seeds):
      out = closed_form(folder, seed)
      keep(
        "closed_form", out,
        f"seed {seed}: total variation {out['total_variation']:.4f}, E[r] {out['reward']:.4f} of "
        f"{out['best_reward']:.4f}, KL {out['kl']:.4f} of {out['best_kl']:.4f}",
      )  # fmt: skip
      curves, _ = train(folder, count_c, seed, **SEQUENCE)
      keep(
        "sequence", curves,
        f"seed {seed}: reward {curves['reward'][0]:.3f} to {tail(curves, 'reward'):.3f} of at "
        f"most 4, KL {tail(curves, 'kl'):.2f}, explained variance "
        f"{tail(curves, 'explained_variance'):.2f}",
      )  # fmt: skip
    still = {"optimizer": {"peak_lr": 0.0}, "critic": {"optimizer": {"peak_lr": 0.0}}}
    curves, _ = train(folder, count_c, 0, **SEQUENCE, **still)
    keep(
      "no_learning_rate",
      curves,
      f"reward {curves['reward'][0]:.3f} to {tail(curves, 'reward'):.3f}",
    )
    # Against a KL that costs as much as in the sequence task, so that noise alone pays nothing.
    steady = SEQUENCE | {"kl": {"beta": 0.05}}
    curves, _ = train(folder, shuffled, 0, **steady)
    keep("shuffled", curves, f"reward {curves['reward'][0]:.3f} to {tail(curves, 'reward'):.3f}")
    adapts = SEQUENCE | {"train": {"steps": 150}, "kl": {"target": 3.0, "horizon": 600}}
    curves, _ = train(folder, count_c, 0, **adapts)
    keep("adaptive", curves, f"KL {tail(curves, 'kl', 30):.3f} for a target of 3")
    out = best_of_n(folder, 0, 4)
    keep(
      "best_of_n", out,
      f"n {out['n']}: PPO {out['ppo']:.4f} at KL {out['ppo_kl']:.3f}, best-of-n "
      f"{out['best_of_n']:.4f} at KL {out['kl']:.3f}: {out['ppo'] / out['best_of_n']:.1%}",
    )  # fmt: skip
    curves, _ = train(folder, proxy, 0, **SEQUENCE, reward={"weights": {"proxy": 1.0, "gold": 0.0}})
    at = parting(curves)
    said = "they do not part" if at is None else f"they part at iteration {at}"
    keep("over_optimization", {"curves": curves, "parts_at": at}, said)
  plot(results, Path(f"{options.out}.png"))


def plot(results: dict, path: Path) -> None:
  try:
    import matplotlib
  except ImportError:
    print("matplotlib is not installed: no plot.")
    return
  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(1, 4, figsize=(17, 3.6))
  for one in results["closed_form"]:
    axes[0].plot(one["curves"]["reward"])
    axes[0].axhline(one["best_reward"], ls=":", c="k", lw=0.8)
  axes[0].set(title="closed form: reward (dotted: optimum)", xlabel="iteration")
  for curves in results["sequence"]:
    axes[1].plot(curves["reward"])
  for name in ("no_learning_rate", "shuffled"):
    axes[1].plot(results[name]["reward"], ls="--", label=name.replace("_", " "))
  axes[1].set(title="sequence task: reward", xlabel="iteration")
  axes[1].legend()
  axes[2].plot(results["adaptive"]["kl"])
  axes[2].axhline(3.0, ls=":", c="k", lw=0.8)
  axes[2].set(title="adaptive beta: KL (dotted: target)", xlabel="iteration")
  out = results["over_optimization"]
  distance = np.sqrt(np.maximum(out["curves"]["kl"], 0))
  for name in ("proxy", "gold"):
    axes[3].plot(distance, out["curves"][f"reward/{name}"], ".", ms=3, label=name)
  if out["parts_at"] is not None:
    axes[3].axvline(distance[out["parts_at"]], ls=":", c="r", lw=0.8)
  axes[3].set(title="over-optimization (dotted: they part)", xlabel="sqrt(KL)")
  axes[3].legend()
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  print(f"wrote {path}")


if __name__ == "__main__":
  main()

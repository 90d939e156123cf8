"""Times multiple-choice evaluation against lm-evaluation-harness: same model, items and machine.

    pip install -e '.[peers,gguf]'
    python docs/benchmarks/evaluate.py MODEL.gguf --data FOLDER --limit 8

MODEL is a GGUF or a Hugging Face directory, such as SmolLM2-135M-Instruct.Q4_1.gguf; FOLDER holds
the evaluation sets. Both sides score the same requests in fp32 on the CPU, in turns, `--rounds`
times; what is printed are medians, the log-likelihoods' largest difference, and the ratio of
requests a second. Ours is timed with its programs compiled, as they are for all but the first
batches of a whole set; the first round, with the compilation, is printed too.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

from configs import evaluate as recipe
from tests import harness

TASKS = ("hellaswag", "mmlu", "truthfulqa_mc1", "truthfulqa_mc2", "piqa", "bbq")
SUBJECTS = ["anatomy", "marketing", "world_religions", "high_school_physics"]


def requests_of(folder: Path, scratch: Path, names: list[str]) -> dict[str, list]:
  """The harness's own requests of every task."""
  found = {}
  for name, task in harness.make_tasks(folder, names, {"mmlu": 5}, scratch).items():
    task.build_all_requests(rank=0, world_size=1)
    group = "mmlu" if name.startswith("mmlu") else name
    found.setdefault(group, []).extend(task.instances)
  return found


def timed(model, requests) -> tuple[float, list[float]]:
  start = time.perf_counter()
  results = model.loglikelihood(requests, disable_tqdm=True)
  return time.perf_counter() - start, [result[0] for result in results]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("model", type=Path)
  parser.add_argument("--data", type=Path, required=True)
  parser.add_argument("--limit", type=int, default=8, help="items of a task, of an MMLU subject")
  parser.add_argument("--tasks", default=",".join(TASKS), help="some of the default's")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--batch-size", type=int, default=8, help="of the harness")
  arguments = parser.parse_args()
  from lm_eval.models.huggingface import HFLM

  from train.export import export_run, import_model
  from train.lm_eval_adapter import open_lm

  with tempfile.TemporaryDirectory() as scratch:
    folder = Path(scratch)
    import_model(arguments.model, folder / "run")
    export_run(folder / "run", folder / "model")
    harness.write_rows(harness.real_rows(arguments.data, arguments.limit, SUBJECTS), folder)
    tasks = requests_of(folder, folder, arguments.tasks.split(","))
    theirs = HFLM(
      pretrained=str(folder / "model"),
      dtype="float32",
      batch_size=arguments.batch_size,
      device="cpu",
    )
    ours = open_lm(recipe.get_config(str(folder / "run")).to_dict())
    total = {"ours": 0.0, "harness": 0.0, "requests": 0}
    print(f"{'task':<16}{'requests':>9}{'ours':>10}{'harness':>10}{'ratio':>8}  largest difference")
    for name, requests in tasks.items():
      first, _ = timed(ours, requests)
      rounds = [(timed(ours, requests), timed(theirs, requests)) for _ in range(arguments.rounds)]
      mine, other = (statistics.median(r[side][0] for r in rounds) for side in (0, 1))
      (_, a), (_, b) = rounds[0]
      difference = max(abs(x - y) for x, y in zip(a, b, strict=True))
      rates = (len(requests) / mine, len(requests) / other)
      print(
        f"{name:<16}{len(requests):>9,}{rates[0]:>8.2f}/s{rates[1]:>8.2f}/s"
        f"{rates[0] / rates[1]:>8.2f}  {difference:.1e}  (first round {first:.1f} s)",
        flush=True,
      )
      total["ours"] += mine
      total["harness"] += other
      total["requests"] += len(requests)
    rates = [total["requests"] / total[side] for side in ("ours", "harness")]
    print(
      f"{'all':<16}{total['requests']:>9,}{rates[0]:>8.2f}/s{rates[1]:>8.2f}/s"
      f"{rates[0] / rates[1]:>8.2f}"
    )
    print(json.dumps(total))


if __name__ == "__main__":
  main()

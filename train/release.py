"""A run as a folder to publish: weights, tokenizer and MODEL_CARD.md.

  python -m train.release RUN OUT --evaluation runs/quickstart-eval

The weights are what `python -m train.export` writes, read back before they get their name. Every
figure of the card is from the run's files and the evaluations'; what no file says (country, power,
licence) is a flag, or "not recorded". Without results on refusals, on the answers beside them and
on a set of biases it refuses; --unsafe releases all the same, and the card says so.

Exit codes: 0 done, 2 bad input.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from model.params import count, param_specs
from train.checkpoint import Checkpointer
from train.export import export_run
from train.model_card import Facts, card, missing_safety, read_evaluations
from train.weights import open_run
from train.workdir import write_atomically

CARD = "MODEL_CARD.md"


def release(
  folder: Path,
  out: Path,
  evaluations: Sequence[Path],
  facts: Facts,
  *,
  unsafe: bool,
  which: str | None = None,
  step: int | None = None,
) -> None:
  """Writes the folder `out`.

  Args:
    folder: a run's.
    out: a folder that does not exist.
    evaluations: folders with an eval.json of these weights.
    unsafe: whether safety results may be missing.
    which: "raw" or "average"; None for the average where the run keeps one.
    step: of the checkpoint; None for the newest.

  Raises:
    ValueError: safety results are missing, an evaluation is of other weights, or the export fails.
  """
  run = open_run(folder)
  if out.exists():
    raise ValueError(f"{out} exists; name a folder that does not.")
  if which is None:
    which = "average" if run.recipe.get("average", {}).get("fraction") else "raw"
  steps = Checkpointer(folder / "checkpoints").steps()
  if step is None and steps:
    step = steps[-1]
  if step not in steps:
    raise ValueError(f"{folder} has no checkpoint of step {step}; it has {steps}.")
  weights = {"step": step, "weights": which}
  tasks = read_evaluations(evaluations, run, weights)
  missing = missing_safety(tasks)
  if missing and not unsafe:
    raise ValueError(
      f"there are no safety results of these weights: {', '.join(missing)}. Evaluate them by "
      "configs/evaluate.py and name the folders by --evaluation, or release without by --unsafe."
    )
  parameters = count(param_specs(run.model))
  text = card(out.name, run, weights, tasks, facts, parameters, missing)
  partial = out.with_name(f".{out.name}.releasing")
  shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
  try:
    said = export_run(folder, partial, which=which, step=step)
    write_atomically(partial / CARD, text)
    partial.rename(out)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  print(f"{out}: {said}; {CARD}" + (", without safety results" if missing else ""))


def main(argv: Sequence[str]) -> int:
  parser = argparse.ArgumentParser(
    prog="python -m train.release",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("run", metavar="RUN", type=Path)
  parser.add_argument("out", metavar="OUT", type=Path)
  parser.add_argument(
    "--evaluation", metavar="FOLDER", type=Path, action="append", default=[], help="may be repeated"
  )
  parser.add_argument("--unsafe", action="store_true", help="release without safety results")
  parser.add_argument("--weights", choices=("raw", "average"))
  parser.add_argument("--step", type=int, help="of the checkpoint; default: the newest")
  parser.add_argument("--country", help="where it was trained")
  parser.add_argument("--watts", type=float, help="of a device with its share of the node")
  parser.add_argument("--kg-co2-per-kwh", type=float, help="of the country's grid")
  parser.add_argument("--license", help="of the weights, by its name on the hub")
  options = parser.parse_args(argv)
  jax.config.update("jax_platforms", "cpu")
  facts = Facts(options.country, options.watts, options.kg_co2_per_kwh, options.license)
  try:
    release(
      options.run,
      options.out,
      options.evaluation,
      facts,
      unsafe=options.unsafe,
      which=options.weights,
      step=options.step,
    )
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))

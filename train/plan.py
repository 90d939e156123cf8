"""Says before a run what it will need, send and take on a cluster, on a machine without one.

  python -m train.plan --config configs/pretrain_37b.py
  python -m train.plan --config configs/pretrain_37b.py --json plan.json --hlo step.txt
  python -m train.plan --config configs/pretrain_37b.py --search --html search.html
  python -m train.plan --config configs/pretrain_37b.py --growth --html growth.png
  python -m train.plan --config configs/ppo_37b.py
  python -m train.plan --compare runs/quickstart --cluster cpu
  python -m train.plan --validate

Compiles the training step itself for the config's mesh, and walks the compiled program with a model
of the cluster's GPUs and links; `train/cost.py` says how, docs/plan.md what it found. Compiling for
GPUs without one needs the `plan` extra; otherwise the step is compiled for virtual CPU devices,
which tells the memory of the state and what is communicated over which axis, and no times.

Exit codes: 0 done, 2 bad input.
"""

import functools
import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from ml_collections import config_flags

from model.params import count, flops_per_token, param_specs
from train import compare, growth, hlo, plan_page, plan_ppo, search, validate
from train.cluster import Cluster, load_cluster, range_ends
from train.command_line import BAD_INPUT, DONE, parse_flags
from train.config import RunConfig
from train.plan_text import render
from train.program import Program, compile_program, memory
from train.schedule import Estimate, collectives, estimate, sensitivity
from train.workdir import write_atomically
from train.xla import cache_folder, check_flags

GIB = 2**30
STEPS = ("pretrain", "sft", "reward", "dpo")  # stages with one training step
ALIGNED = 64  # elements: what a tensor core's tile is wide, in fp16


def make_plan(config: RunConfig, program: Program, cluster: Cluster) -> dict[str, Any]:
  """The plan as nested JSON values; seconds, bytes, and null where a CPU program can't tell."""
  module = hlo.parse(program.text)
  devices = math.prod(program.mesh.values())
  tokens = config.data.batch_size * config.data.seq_len
  causal, _ = step_flops(config)
  step = estimate(module, program.mesh, cluster)
  timed_here = program.on_gpu or cluster.platform == "cpu"  # it knows the kernels
  plan = {
    "params": count(param_specs(config.model)),
    "flops_per_token": causal,
    "devices": devices,
    "mesh": program.mesh,
    "cluster": cluster.name,
    "country": cluster.country,
    "compiled_for": "gpu" if program.on_gpu else "virtual cpu",
    "memory": memory(module, program, cluster),
    "collectives": collectives(step, timed_here),
    "host_copy_bytes": step.host_bytes,
    "storage": storage(config, program, cluster),
    "steps": config.train.steps,
    "compile_seconds": program.compile_seconds,
  }
  timed = dict.fromkeys(TIMED)
  if timed_here:
    peak = cluster.peak_flops * devices
    ranges = {
      name: [
        {"mfu_causal": tokens * causal / seconds / peak, "step_seconds": seconds}
        for seconds in pair
      ]
      for name, pair in sensitivity(module, program.mesh, cluster).items()
    }
    timed = timing(config, step, devices, cluster) | {"sensitivity": ranges}
    timed["range"] = {
      end: estimate(module, program.mesh, cluster.replaced(values)).seconds
      for end, values in range_ends(cluster).items()
    }
  plan |= timed
  plan["warnings"] = warnings(plan, config, program, step)
  return plan


TIMED = (
  "step_seconds", "waterfall", "mfu_causal", "mfu_full", "hfu", "tokens_per_sec_per_gpu", "days",
  "gpu_hours", "energy_mwh", "co2_tonnes", "dollars", "sensitivity", "range",
)  # fmt: skip


def step_flops(config: RunConfig) -> tuple[float, float]:
  """Of a token, causal and full; a reward model has no output projection."""
  unused = 6.0 * config.model.vocab_size * config.model.d_model * (config.stage == "reward")
  causal, full = flops_per_token(config.model, config.data.seq_len)
  return causal - unused, full - unused


def timing(config: RunConfig, step: Estimate, devices: int, cluster: Cluster) -> dict[str, Any]:
  """Utilization, and what the whole run takes, by the estimate of one step."""
  seconds, facts = step.seconds, cluster.facts
  tokens = config.data.batch_size * config.data.seq_len
  causal, full = step_flops(config)
  peak = cluster.peak_flops * devices
  hours = seconds * config.train.steps / 3600
  watts = facts["watts_a_gpu"] * facts["power_usage_effectiveness"]
  energy = hours * devices * watts / 1e6
  return {
    "step_seconds": seconds,
    "waterfall": dict(sorted(step.waterfall.items(), key=lambda item: -item[1])),
    "mfu_causal": tokens * causal / seconds / peak,
    "mfu_full": tokens * full / seconds / peak,
    "hfu": sum(step.flops.values()) / seconds / cluster.peak_flops,
    "tokens_per_sec_per_gpu": tokens / seconds / devices,
    "days": hours / 24,
    "gpu_hours": hours * devices,
    "energy_mwh": energy,
    "co2_tonnes": energy * facts["kg_co2_per_kwh"],
    "dollars": hours * devices * facts["dollars_a_gpu_hour"],
  }


def warnings(
  plan: Mapping[str, Any], config: RunConfig, program: Program, step: Estimate
) -> list[str]:
  """What a reader should look at before renting the cluster."""
  found = []
  half = ("f16", "bf16")
  for line in plan["collectives"] if program.on_gpu else ():
    big = line["bytes"] / line["count"] > 2**24
    what = (
      f"{line['op']} of {line['bytes'] / 1e9:,.1f} GB {line['dtype']} a step ({line['source']})"
    )
    if line["op"] in ("reduce-scatter", "all-reduce") and line["dtype"] in half:
      found.append(f"{what} sums over devices in half precision.")
    if line["op"] == "all-gather" and line["dtype"] == "f32" and big:
      found.append(f"{what} gathers before the cast: twice the bytes.")
    if line["op"] == "all-reduce" and big:
      found.append(f"{what} leaves every device the whole sum; a reduce-scatter sends half.")
    if (line["exposed_seconds"] or 0) > 0.01 * (plan["step_seconds"] or math.inf):
      found.append(f"{what} is exposed for {line['exposed_seconds']:.2f} s.")
  for path, size in program.replicated:
    if size > 64 * 2**20:
      found.append(f"{path}, {size / GIB:.2f} GiB, is whole on every device.")
  tensor = program.mesh["tensor"]
  for name in ("d_model", "d_ff", "vocab_size", "head_dim"):
    size = getattr(config.model, name)
    part = size // tensor if name in ("d_ff", "vocab_size") else size
    if part % ALIGNED:
      found.append(
        f"model.{name}: {part} a device is padded to a multiple of {ALIGNED} in products."
      )
  if step.unknown_loops:
    found.append(
      f"{step.unknown_loops} loops of the program do not say how often they run, and count once."
    )
  if not program.on_gpu:
    return found
  total = sum(step.flops.values())
  if step.rematerialized_flops > 0.01 * total:
    share = step.rematerialized_flops / total
    found.append(f"{share:.0%} of the tensor cores' FLOPs are recomputation for the backward pass.")
  peak, usable = plan["memory"]["peak_bytes"], plan["memory"]["usable_bytes"]
  if peak > usable:
    found.append(f"the peak of {peak / GIB:.1f} GiB is over the usable {usable / GIB:.1f} GiB.")
  return found


def storage(config: RunConfig, program: Program, cluster: Cluster) -> dict[str, Any]:
  """Checkpoints: bytes of one, how many are kept at the end, and seconds to write one."""
  devices = math.prod(program.mesh.values())
  state = sum(program.state.values()) * devices
  replicated = sum(size for _, size in program.replicated) * (devices - 1)
  one = state - replicated
  every = config.checkpoint.keep_every
  kept = config.checkpoint.keep_last + (config.train.steps // every if every else 0)
  return {
    "checkpoint_bytes": one,
    "kept": kept,
    "total_bytes": one * kept,
    "write_seconds": one / cluster.facts["storage_bytes_per_second"],
    "every_steps": config.checkpoint.every,
  }


def run_validation(refit: bool, cache: Path | None) -> None:
  """Prints published runs beside what the model says of them."""
  print("Compiling published runs, or taking them from the cache:")
  runs = validate.load_runs(cache)
  constants: dict[str, float] = {}
  if refit:
    print("Fitting:")
    constants = validate.fit([run for run in runs if run.role == "fit"])
  print(f"\n{validate.table(runs, constants)}")


def run_search(config, nodes: int, cluster: Cluster, minutes: float, html, cache) -> None:
  """Prints what a search found, and writes its page."""
  found, untried = search.search(config, nodes, cluster, minutes=minutes, cache=cache)
  limit = cluster.usable_memory_bytes
  text = search.table(found, untried, limit)
  print(f"\n{text}")
  write_plot(html, "Seconds and bytes", lambda: plan_page.pareto_plot(found, limit), text)


def run_growth(config, cluster: Cluster, html, cache) -> None:
  """Prints a recipe on fewer and more nodes, and writes its page."""
  sizes = growth.grow(config, cluster, cache)
  base = growth.best_of(sizes)
  text = growth.table(sizes, base)
  print(f"\n{text}")
  write_plot(html, "Growth", lambda: plan_page.growth_plot(sizes, base), text)


def write_plot(path: str | None, title: str, plot: Callable[[], Any], text: str) -> None:
  """A page with a plot and its table, or, where the path says .png, the plot alone."""
  if path and path.endswith(".png"):
    Path(path).write_bytes(plan_page.png(plot()))
  elif path:
    write_atomically(Path(path), plan_page.one_plot_page(title, plot(), text))


def run(
  config: Mapping[str, Any],
  cluster_name: str,
  nodes: int | None,
  *,
  outputs: Mapping[str, str | None] | None = None,
  cache: Path | None = None,
  minutes: float | None = None,
  grown: bool = False,
  compared: Path | None = None,
) -> int:
  """Plans a recipe and prints it; returns the exit code.

  Args:
    outputs: files to write: {"json": path, "html": path, "hlo": path}.
    minutes: searches for so long instead.
    grown: plans it on fewer and more nodes instead.
    compared: a run's folder, whose measurements are printed beside the plan.
  """
  outputs = outputs or {}
  try:
    cluster = load_cluster(cluster_name)
    nodes = nodes or cluster.nodes
    stage = config.get("stage")
    if stage not in (*STEPS, "ppo"):
      raise ValueError(
        f"stage is {stage!r}, which has no step to plan; {', '.join(STEPS)}, ppo have."
      )
    check_outputs(outputs, plotted=minutes is not None or grown)
    parsed = importlib.import_module(f"train.{config['stage']}").parse_config(config)
    if config["stage"] == "ppo":
      if outputs.get("hlo") or minutes is not None or grown or compared:
        raise ValueError("a plan of PPO has several programs: --json and --html alone go with it.")
      plan = plan_ppo.make_plan(parsed, nodes, cluster, cache)
      text = plan_ppo.render(plan)
      print(text)
      if outputs.get("html"):
        write_atomically(Path(outputs["html"]), plan_page.ppo_page(plan, text))
      if outputs.get("json"):
        write_atomically(Path(outputs["json"]), json.dumps(plan, indent=2) + "\n")
      return DONE
    if minutes is not None:
      run_search(parsed, nodes, cluster, minutes, outputs.get("html"), cache)
      return DONE
    if grown:
      run_growth(parsed, cluster, outputs.get("html"), cache)
      return DONE
    program = compile_program(parsed, nodes, cluster, cache)
    if outputs.get("hlo"):
      write_atomically(Path(outputs["hlo"]), program.text)
    plan = make_plan(parsed, program, cluster)
    text = render(plan)
    print(text)
    if outputs.get("json"):
      write_atomically(Path(outputs["json"]), json.dumps(plan, indent=2) + "\n")
    if outputs.get("html"):
      write_atomically(Path(outputs["html"]), plan_page.page(plan, text))
    if compared:
      if plan["step_seconds"] is None:
        raise ValueError("--compare needs times: install the extra plan, or say --cluster cpu.")
      print(f"\n{compared} beside this plan\n{compare.table(compared, plan)}")
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return BAD_INPUT
  return DONE


def check_outputs(outputs: Mapping[str, str | None], plotted: bool) -> None:
  """Before minutes of compiling: raises ValueError for a file that could not be written after them.

  Args:
    outputs: as `run` takes them.
    plotted: a search or growth, which has a plot or a page and nothing else to write.
  """
  for name, path in outputs.items():
    if not path:
      continue
    if plotted and name != "html":
      raise ValueError(f"--{name} is of a plan; --search and --growth have --html alone.")
    if not plotted and name == "html" and str(path).endswith(".png"):
      raise ValueError(f"--html={path}: a plan is a page of several plots; name it .html.")
    folder = Path(path).absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or Path(path).is_dir():
      raise ValueError(f"--{name}={path} can't be written; name a file in a folder that is there.")


def check_modes(given: Mapping[str, Any]) -> None:
  """Raises ValueError for flags of which one would be ignored."""
  modes = [name for name in ("search", "growth", "compare", "validate") if given[name]]
  if len(modes) > 1:
    raise ValueError(f"--{' and --'.join(modes)} are different commands; give one of them.")
  if given["fit"] and not given["validate"]:
    raise ValueError("--fit goes with --validate.")
  written = [f"--{name}" for name in ("json", "html", "hlo") if given[name]]
  if given["validate"] and written:
    raise ValueError(f"--validate prints a table and writes no file; leave out {written[0]}.")


def define_flags() -> dict[str, flags.FlagHolder]:
  """The flags by name; `train.main` has some of the same names, so none is defined at import."""
  text, yes = flags.DEFINE_string, flags.DEFINE_bool
  return {
    "config": config_flags.DEFINE_config_file("config", None, "The recipe: a file of configs/."),
    "cluster": text("cluster", "h100", "A file of train/clusters, without .json."),
    "nodes": flags.DEFINE_integer("nodes", None, "Nodes; by default the cluster's.", lower_bound=1),
    "json": text("json", None, "Where to write the plan as JSON."),
    "html": text("html", None, "A page of the plan, search or growth with plots; or a .png."),
    "hlo": text("hlo", None, "Where to write the compiled program's text."),
    "search": yes("search", False, "Look for the fastest variant of the recipe that fits."),
    "minutes": flags.DEFINE_float("minutes", 20.0, "How long --search may take.", lower_bound=0),
    "growth": yes("growth", False, "Plan the recipe on fewer and more nodes: what speed it keeps."),
    "compare": text("compare", None, "A run's folder: its measurements beside its plan."),
    "validate": yes("validate", False, "Check the model on published runs instead."),
    "fit": yes("fit", False, "With --validate: fit the constants anew, and say them."),
    "cache": text("cache", str(cache_folder() / "plan"), "Compiled programs; '' for none."),
  }


def main(argv: Sequence[str], holders: dict[str, flags.FlagHolder]) -> int:
  """Runs the command; returns the exit code."""
  given = {name: holder.value for name, holder in holders.items()}
  jax.config.update("jax_platforms", "cpu")  # it needs no GPU, and takes none
  cache = Path(given["cache"]) if given["cache"] else None
  compared = Path(given["compare"]) if given["compare"] else None
  try:
    check_flags(os.environ.get("XLA_FLAGS", ""))
    if len(argv) > 1:
      raise ValueError(f"unexpected argument {argv[1]!r}; flags begin with --.")
    check_modes(given)
    if given["validate"]:
      run_validation(given["fit"], cache)
      return DONE
    recipe = given["config"].to_dict() if given["config"] is not None else None
    if recipe is None and compared is None:
      raise ValueError("--config is missing; try --config configs/pretrain_37b.py")
    recipe = recipe or compare.recipe_of(compared)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return BAD_INPUT
  return run(
    recipe,
    given["cluster"],
    given["nodes"],
    outputs={name: given[name] for name in ("json", "html", "hlo")},
    cache=cache,
    minutes=given["minutes"] if given["search"] else None,
    grown=given["growth"],
    compared=compared,
  )


if __name__ == "__main__":
  app.run(functools.partial(main, holders=define_flags()), flags_parser=parse_flags)

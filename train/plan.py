"""Says before a run what it will need, send and take on a cluster, on a machine without one.

  python -m train.plan --config configs/pretrain_37b.py
  python -m train.plan --config configs/pretrain_37b.py --json plan.json --hlo step.txt

Compiles the training step itself for the config's mesh, and walks the compiled program with a model
of the cluster's GPUs and links; `train/cost.py` says how, docs/plan.md what it found. Compiling for
GPUs without one needs the `plan` extra; otherwise the step is compiled for virtual CPU devices,
which tells the memory of the state and what is communicated over which axis, and no times.

Exit codes: 0 done, 2 bad input.
"""

import functools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from ml_collections import config_flags

from model.params import count, flops_per_token, param_specs
from train import hlo, pretrain
from train.cluster import Cluster, load_cluster
from train.config import PretrainConfig
from train.program import Program, compile_program, memory
from train.schedule import Estimate, estimate, sensitivity

DONE, BAD_INPUT = 0, 2
GIB = 2**30


def make_plan(config: PretrainConfig, program: Program, cluster: Cluster) -> dict[str, Any]:
  """The plan as nested JSON values; seconds, bytes, and null where a CPU program can't tell."""
  module = hlo.parse(program.text)
  devices = math.prod(program.mesh.values())
  tokens = config.data.batch_size * config.data.seq_len
  causal, _ = flops_per_token(config.model, config.data.seq_len)
  step = estimate(module, program.mesh, cluster)
  plan = {
    "params": count(param_specs(config.model)),
    "flops_per_token": causal,
    "devices": devices,
    "mesh": program.mesh,
    "cluster": cluster.name,
    "compiled_for": "gpu" if program.on_gpu else "virtual cpu",
    "memory": memory(module, program, cluster),
    "collectives": collectives(step, program.on_gpu),
    "steps": config.train.steps,
    "compile_seconds": program.compile_seconds,
  }
  timed = dict.fromkeys(TIMED)
  if program.on_gpu:
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
  plan["warnings"] = warnings(plan, program, step)
  return plan


TIMED = (
  "step_seconds", "waterfall", "mfu_causal", "mfu_full", "hfu", "tokens_per_sec_per_gpu", "days",
  "gpu_hours", "energy_mwh", "co2_tonnes", "dollars", "sensitivity", "range",
)  # fmt: skip


def range_ends(cluster: Cluster) -> dict[str, dict[str, float]]:
  """All constants at the bad end of their range at once, and all at the good one."""
  good = {n: high if n.endswith("efficiency") else low for n, (low, high) in cluster.ranges.items()}
  bad = {n: low if n.endswith("efficiency") else high for n, (low, high) in cluster.ranges.items()}
  return {"pessimistic": bad, "optimistic": good}


def timing(
  config: PretrainConfig, step: Estimate, devices: int, cluster: Cluster
) -> dict[str, Any]:
  """Utilization, and what the whole run takes, by the estimate of one step."""
  seconds, facts = step.seconds, cluster.facts
  tokens = config.data.batch_size * config.data.seq_len
  causal, full = flops_per_token(config.model, config.data.seq_len)
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


def collectives(step: Estimate, on_gpu: bool) -> list[dict[str, Any]]:
  """A line for each kind of traffic from one place, the most exposed first; bytes of one step."""
  lines: dict[tuple, dict[str, Any]] = {}
  for entry in step.collectives:
    t = entry.traffic
    where = entry.source or entry.op_name.rsplit("/", 1)[0]
    backward = "transpose(" in entry.op_name
    line = lines.setdefault(
      (t, where, backward),
      {
        "op": t.op,
        "bytes": 0,
        "dtype": t.dtype,
        "axis": t.axis,
        "link": t.link,
        "count": 0,
        "seconds": 0.0,
        "exposed_seconds": 0.0,
        "source": where,
        "backward": backward,
      },
    )
    line["count"] += entry.count
    line["bytes"] += entry.count * t.nbytes
    line["seconds"] += entry.seconds
    line["exposed_seconds"] += entry.exposed_seconds
  if not on_gpu:
    for line in lines.values():
      line["seconds"] = line["exposed_seconds"] = None
  return sorted(lines.values(), key=lambda line: (-(line["exposed_seconds"] or 0), -line["bytes"]))


def warnings(plan: Mapping[str, Any], program: Program, step: Estimate) -> list[str]:
  """What a reader should look at before renting the cluster."""
  found = []
  half = ("f16", "bf16")
  for line in plan["collectives"] if program.on_gpu else ():
    big = line["bytes"] / line["count"] > 2**20
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


def render(plan: Mapping[str, Any]) -> str:
  """The plan as text for a terminal."""
  lines = [
    f"{plan['params'] / 1e9:.2f}B parameters on {plan['devices']} devices, mesh {plan['mesh']}: "
    f"{plan['cluster']}",
    f"compiled for {plan['compiled_for']} in {plan['compile_seconds']:.1f} s",
    "",
    "Memory a device, GiB",
  ]
  for name, size in plan["memory"]["by_category"].items():
    lines.append(f"  {name:<14}{size / GIB:>8.2f}")
  peak, usable = plan["memory"]["peak_bytes"], plan["memory"]["usable_bytes"]
  if peak is not None:
    of = f"of {usable / GIB:.1f} usable, {plan['memory']['device_bytes'] / GIB:.1f} on the device"
    lines.append(f"  {'peak':<14}{peak / GIB:>8.2f}   {of}")
  lines += ["", "Collectives of a step"]
  heads = ("op", "dtype", "axis", "link", "count", "GB", "seconds", "exposed", "source")
  form = "  {:<16}{:<6}{:<10}{:<12}{:>6}{:>9}{:>9}{:>9}  {}"
  lines.append(form.format(*heads))
  for c in plan["collectives"]:
    seconds, exposed = (_number(c[k], 2) for k in ("seconds", "exposed_seconds"))
    row = (c["op"], c["dtype"], c["axis"], c["link"], c["count"], f"{c['bytes'] / 1e9:,.2f}")
    lines.append(form.format(*row, seconds, exposed, c["source"]))
  if plan["step_seconds"] is not None:
    lines += ["", *_render_times(plan)]
  lines += ["", *(f"warning: {warning}" for warning in plan["warnings"])]
  if plan["compiled_for"] == "gpu":
    lines.append(
      "note: XLA skips autotuning without a GPU, so the kernels there can be others, faster ones."
    )
  else:
    lines.append(
      "note: without the plan extra (pip install -e '.[plan]') there is no GPU program: the peak "
      "memory, times, overlap, GPU kernels and warnings about collectives are missing, and the CPU "
      "compiler widens fp16, and makes an all-reduce where a GPU has a reduce-scatter."
    )
  return "\n".join(lines)


def _render_times(plan: Mapping[str, Any]) -> list[str]:
  total = plan["step_seconds"]
  lines = ["Step time, seconds"]
  for name, seconds in plan["waterfall"].items():
    lines.append(f"  {name:<28}{seconds:>8.2f}{seconds / total:>8.1%}")
  ends = plan["range"]
  between = f"{ends['optimistic']:.1f} to {ends['pessimistic']:.1f} over the constants' ranges"
  lines += [
    f"  {'step':<28}{total:>8.2f}   {between}",
    "",
    f"MFU {plan['mfu_causal']:.1%} causal, {plan['mfu_full']:.1%} full; hardware "
    f"{plan['hfu']:.1%}; {plan['tokens_per_sec_per_gpu']:,.0f} tokens/s a GPU",
    f"{plan['steps']:,} steps in {plan['days']:.1f} days: {plan['gpu_hours']:,.0f} GPU-hours, "
    f"{plan['energy_mwh']:,.0f} MWh, {plan['co2_tonnes']:,.0f} t CO2, ${plan['dollars']:,.0f}",
    "",
    "Causal MFU with a constant 10% less, and 10% more",
  ]
  for name, (less, more) in plan["sensitivity"].items():
    lines.append(f"  {name:<28}{less['mfu_causal']:>8.1%}{more['mfu_causal']:>8.1%}")
  return lines


def _number(value: float | None, digits: int) -> str:
  return "-" if value is None else f"{value:.{digits}f}"


def run(config: Mapping[str, Any], cluster_name: str, nodes: int, json_path, hlo_path) -> int:
  """Plans a recipe and prints it; returns the exit code."""
  try:
    jax.config.update("jax_platforms", "cpu")  # it needs no GPU, and takes none
    cluster = load_cluster(cluster_name)
    parsed = pretrain.parse_config(config)
    program = compile_program(parsed, nodes, cluster)
    if hlo_path:
      Path(hlo_path).write_text(program.text)
    plan = make_plan(parsed, program, cluster)
    print(render(plan))
    if json_path:
      Path(json_path).write_text(json.dumps(plan, indent=2) + "\n")
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return BAD_INPUT
  return DONE


def define_flags() -> dict[str, flags.FlagHolder]:
  """The flags by name; `train.main` has some of the same names, so none is defined at import."""
  return {
    "config": config_flags.DEFINE_config_file("config", None, "The recipe: a file of configs/."),
    "cluster": flags.DEFINE_string("cluster", "h100", "A file of train/clusters, without .json."),
    "nodes": flags.DEFINE_integer("nodes", 16, "Nodes of the cluster.", lower_bound=1),
    "json": flags.DEFINE_string("json", None, "Where to write the plan as JSON."),
    "hlo": flags.DEFINE_string("hlo", None, "Where to write the compiled program's text."),
  }


def main(argv: Sequence[str], holders: dict[str, flags.FlagHolder]) -> int:
  given = {name: holder.value for name, holder in holders.items()}
  if len(argv) > 1 or given["config"] is None:
    what = f"unexpected argument {argv[1]!r}" if len(argv) > 1 else "--config is missing"
    print(f"error: {what}; try --config configs/pretrain_37b.py", file=sys.stderr)
    return BAD_INPUT
  recipe = given["config"].to_dict()
  return run(recipe, given["cluster"], given["nodes"], given["json"], given["hlo"])


if __name__ == "__main__":
  app.run(functools.partial(main, holders=define_flags()))

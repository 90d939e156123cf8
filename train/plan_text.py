"""A plan as text for a terminal."""

from collections.abc import Mapping
from typing import Any

GIB = 2**30


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
  s = plan["storage"]
  lines += [
    "",
    f"Checkpoints: {s['checkpoint_bytes'] / 1e9:,.0f} GB each, every {s['every_steps']:,} steps, "
    f"{s['write_seconds']:.0f} s to write; {s['kept']} kept, {s['total_bytes'] / 1e12:,.1f} TB",
  ]
  if plan["host_copy_bytes"]:
    lines.append(f"Copies to and from host memory: {plan['host_copy_bytes'] / 1e9:,.0f} GB a step")
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
    f"{plan['steps']:,} steps in {duration(plan['days'])}: {plan['gpu_hours']:,.0f} GPU-hours, "
    f"{plan['energy_mwh']:,.0f} MWh, {plan['co2_tonnes']:,.0f} t CO2 "
    f"({plan['country']}), ${plan['dollars']:,.0f}",
    "",
    "Causal MFU with a constant 10% less, and 10% more",
  ]
  for name, (less, more) in plan["sensitivity"].items():
    lines.append(f"  {name:<28}{less['mfu_causal']:>8.1%}{more['mfu_causal']:>8.1%}")
  return lines


def duration(days: float) -> str:
  """Days, or of less than one the hours or minutes."""
  if days >= 1:
    return f"{days:.1f} days"
  return f"{24 * days:.1f} hours" if days >= 1 / 24 else f"{24 * 60 * days:.0f} minutes"


def _number(value: float | None, digits: int) -> str:
  return "-" if value is None else f"{value:.{digits}f}"

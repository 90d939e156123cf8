"""A plan as a page: one HTML file with its plots in it, for a browser or an attachment."""

import base64
import html
import io
from collections.abc import Mapping
from typing import Any

GIB = 2**30
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; }
td, th { padding: 2px 10px; text-align: left; border-bottom: 1px solid #ddd; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: 12px; }
"""


def page(plan: Mapping[str, Any], text: str) -> str:
  """The plan as HTML; `text` is what the terminal shows. Needs matplotlib where there are times."""
  title = f"{plan['params'] / 1e9:.1f}B parameters on {plan['devices']} devices"
  parts = [f"<p>{html.escape(plan['cluster'])}</p>"]
  if plan["step_seconds"] is not None:
    parts.append(
      f"<p><b>{plan['step_seconds']:.1f} s a step, {plan['mfu_causal']:.1%} MFU</b> with causal "
      f"attention; {plan['days']:.0f} days, {plan['gpu_hours']:,.0f} GPU-hours, "
      f"{plan['energy_mwh']:,.0f} MWh, {plan['co2_tonnes']:,.0f} t CO2 ({plan['country']}).</p>"
    )
  plots = [("Memory of a device", memory_plot(plan))]
  if plan["step_seconds"] is not None:
    plots += [
      ("A step", waterfall_plot(plan)),
      ("Collectives", collectives_plot(plan)),
      ("What a constant that is off by a tenth does", sensitivity_plot(plan)),
    ]
  for heading, figure in plots:
    parts.append(_plot(heading, figure))
  parts.append("<h2>Warnings</h2><ul>")
  parts += [f"<li>{html.escape(warning)}</li>" for warning in plan["warnings"]]
  parts.append(f"</ul><h2>All collectives</h2>{_collectives(plan)}")
  parts.append(f"<h2>As text</h2><pre>{html.escape(text)}</pre>")
  return _document(title, parts)


def _document(title: str, parts: list[str]) -> str:
  head = f"<meta charset='utf-8'><title>{title}</title><style>{STYLE}</style>"
  body = f"<h1>{title}</h1>{''.join(parts)}"
  return f"<!doctype html><html><head>{head}</head><body>{body}</body></html>\n"


def _plot(heading: str, figure) -> str:
  return f"<h2>{heading}</h2>{_image(heading, figure)}"


def _image(name: str, figure) -> str:
  return f'<img alt="{name}" src="{_embedded(figure)}">'


def _figure(height: float):
  try:
    from matplotlib.figure import Figure
  except ModuleNotFoundError as error:
    raise ValueError("--html needs matplotlib; install it: pip install matplotlib.") from error
  figure = Figure(figsize=(8, height), layout="constrained")
  return figure, figure.subplots()


def _embedded(figure) -> str:
  return f"data:image/png;base64,{base64.b64encode(png(figure)).decode()}"


def png(figure) -> bytes:
  """A figure as a PNG file."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=110)
  return buffer.getvalue()


def memory_plot(plan: Mapping[str, Any]):
  """One bar of the categories, against what may be used and what the device has."""
  figure, axes = _figure(2.2)
  left = 0.0
  for name, size in plan["memory"]["by_category"].items():
    if size > 0.02 * GIB:
      axes.barh(0, size / GIB, left=left, label=f"{name} {size / GIB:.1f}")
      left += size / GIB
  for key, style in (("usable_bytes", "--"), ("device_bytes", "-")):
    size = plan["memory"][key] / GIB
    axes.axvline(size, color="black", linestyle=style, linewidth=1)
    axes.annotate(f"{size:.0f}", (size, 0.42), fontsize=8, ha="right")
  axes.set(xlabel="GiB", yticks=[], xlim=(0, plan["memory"]["device_bytes"] / GIB * 1.02))
  if left:  # of a small model nothing is seen
    figure.legend(loc="outside upper center", ncols=4, fontsize=8, frameon=False)
  return figure


def waterfall_plot(plan: Mapping[str, Any]):
  """Bars that begin where the one before ends, up to the step."""
  figure, axes = _figure(3.2)
  left = 0.0
  lines = [(n, s) for n, s in plan["waterfall"].items() if s > 0.0005 * plan["step_seconds"]]
  for i, (name, seconds) in enumerate(lines):
    color = "tab:red" if name.startswith(("exposed", "slowed")) else "tab:blue"
    axes.barh(i, seconds, left=left, color=color)
    axes.annotate(f" {seconds:.2f}", (left + seconds, i), va="center", fontsize=8)
    left += seconds
  axes.set(yticks=range(len(lines)), yticklabels=[n for n, _ in lines], xlabel="seconds of a step")
  axes.set_xlim(0, plan["step_seconds"] * 1.08)
  axes.invert_yaxis()
  return figure


def collectives_plot(plan: Mapping[str, Any]):
  """Seconds on the wire by operation and type, and how many of them nothing hides."""
  sums: dict[str, list[float]] = {}
  for c in plan["collectives"]:
    total = sums.setdefault(f"{c['op']} {c['dtype']}, {c['axis']}, {c['link']}", [0.0, 0.0])
    total[0] += c["seconds"]
    total[1] += c["exposed_seconds"]
  lines = sorted(sums.items(), key=lambda item: -item[1][0])[:10]
  figure, axes = _figure(0.6 + 0.35 * max(2, len(lines)))
  axes.barh(range(len(lines)), [s for _, (s, _) in lines], color="tab:gray", label="on the wire")
  axes.barh(range(len(lines)), [e for _, (_, e) in lines], color="tab:red", label="exposed")
  axes.set(yticks=range(len(lines)), yticklabels=[n for n, _ in lines], xlabel="seconds of a step")
  axes.invert_yaxis()
  axes.legend(fontsize=8, frameon=False)
  return figure


def sensitivity_plot(plan: Mapping[str, Any]):
  """MFU with each constant a tenth less and more, the most important first."""
  rows = sorted(
    plan["sensitivity"].items(),
    key=lambda item: -abs(item[1][1]["mfu_causal"] - item[1][0]["mfu_causal"]),
  )
  figure, axes = _figure(0.8 + 0.25 * len(rows))
  middle = 100 * plan["mfu_causal"]
  for i, (_, ends) in enumerate(rows):
    for end, color in zip(ends, ("tab:orange", "tab:green"), strict=True):
      axes.barh(i, 100 * end["mfu_causal"] - middle, left=middle, color=color)
  axes.set(yticks=range(len(rows)), yticklabels=[n for n, _ in rows])
  axes.set_xlabel("causal MFU, %, with the constant 10% less (orange) and 10% more (green)")
  axes.invert_yaxis()
  return figure


def pareto_plot(found: list, limit: int):
  """What a search compiled, seconds of a step over GiB a device, with the best for its bytes."""
  figure, axes = _figure(4)
  found = sorted(found, key=lambda f: f.peak_bytes)
  front, best = [], float("inf")
  for f in found:
    if f.seconds < best:
      best = f.seconds
      front.append(f)
  axes.scatter([f.peak_bytes / GIB for f in found], [f.seconds for f in found], s=16)
  axes.step([f.peak_bytes / GIB for f in front], [f.seconds for f in front], where="post")
  axes.axvline(limit / GIB, color="black", linestyle="--", linewidth=1)
  axes.set(xlabel="GiB a device", ylabel="seconds of a step")
  return figure


def ppo_page(plan: Mapping[str, Any], text: str) -> str:
  """A plan of PPO as HTML: an iteration's seconds and the peaks by program, and the text."""
  title = f"PPO of {plan['params'] / 1e9:.1f}B parameters on {plan['devices']} devices"
  parts = [f"<p>{html.escape(plan['cluster'])}</p>"]
  if plan["iteration_seconds"] is not None:
    parts.append(
      f"<p><b>{plan['iteration_seconds']:.1f} s an iteration of {plan['responses']:,} responses"
      f"</b>; {plan['days']:.1f} days, {plan['gpu_hours']:,.0f} GPU-hours.</p>"
    )
    for heading, figure in (
      ("An iteration", iteration_plot(plan)),
      ("The peak of each program, beside what is held", peaks_plot(plan)),
    ):
      parts.append(_plot(heading, figure))
  parts.append(f"<h2>As text</h2><pre>{html.escape(text)}</pre>")
  return _document(title, parts)


def iteration_plot(plan: Mapping[str, Any]):
  """A bar a program, all its runs, by what the seconds go to."""
  programs = plan["programs"]
  figure, axes = _figure(0.8 + 0.4 * len(programs))
  kinds = list(dict.fromkeys(kind for one in programs for kind in one["waterfall"]))
  left = [0.0] * len(programs)
  for kind in kinds:
    widths = [one["runs"] * one["waterfall"].get(kind, 0.0) for one in programs]
    if max(widths) > 0.002 * plan["iteration_seconds"]:
      axes.barh(range(len(programs)), widths, left=left, label=kind)
      left = [a + b for a, b in zip(left, widths, strict=True)]
  names = [f"{one['name']} x {one['runs']}" for one in programs]
  axes.set(yticks=range(len(programs)), yticklabels=names, xlabel="seconds of an iteration")
  axes.invert_yaxis()
  figure.legend(loc="outside upper center", ncols=4, fontsize=8, frameon=False)
  return figure


def peaks_plot(plan: Mapping[str, Any]):
  """The most memory of a device during each program, against what may be used."""
  programs = [one for one in plan["programs"] if one["peak_bytes"] is not None]
  figure, axes = _figure(0.8 + 0.3 * len(programs))
  axes.barh(range(len(programs)), [one["peak_bytes"] / GIB for one in programs])
  axes.axvline(plan["usable_bytes"] / GIB, color="black", linestyle="--", linewidth=1)
  axes.set(yticks=range(len(programs)), yticklabels=[one["name"] for one in programs])
  axes.set_xlabel("GiB a device")
  axes.invert_yaxis()
  return figure


def growth_plot(sizes: list, base):
  """Speed a GPU over how many there are, relative to `base`; open circles do not fit."""
  figure, axes = _figure(4)
  devices = [size.devices for size in sizes]
  kept = [size.mfu / base.mfu for size in sizes]
  axes.plot(devices, kept, color="tab:blue")
  for size, share in zip(sizes, kept, strict=True):
    face = "tab:blue" if size.fits else "white"
    axes.plot([size.devices], [share], marker="o", color="tab:blue", markerfacecolor=face)
    note = f"{size.mfu:.1%}\n{size.peak_bytes / GIB:.0f} GiB"
    axes.annotate(note, (size.devices, share), (0, -34), textcoords="offset points", ha="center")
  axes.axhline(1, color="black", linestyle="--", linewidth=1)
  axes.set_xscale("log", base=2)
  axes.set(xticks=devices, xticklabels=[f"{n:,}" for n in devices], ylim=(0, 1.2))
  axes.margins(x=0.12)
  axes.set(xlabel="GPUs (open: does not fit)", ylabel=f"speed a GPU, of that of {base.devices:,}")
  return figure


def one_plot_page(title: str, figure, text: str) -> str:
  """A search, or growth, as HTML: its plot, and its table as text."""
  return _document(title, [_image(title, figure), f"<pre>{html.escape(text)}</pre>"])


def _collectives(plan: Mapping[str, Any]) -> str:
  names = ("op", "dtype", "axis", "link", "count", "bytes", "seconds", "exposed_seconds", "source")
  rows = ["<tr>" + "".join(f"<th>{name}</th>" for name in names) + "</tr>"]
  for c in plan["collectives"]:
    cells = []
    for name in names:
      value = c[name]
      number = isinstance(value, int | float)
      shown = f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if number else value
      cells.append(f'<td class="{"n" if number else ""}">{html.escape(str(shown))}</td>')
    rows.append(f"<tr>{''.join(cells)}</tr>")
  return f"<table>{''.join(rows)}</table>"

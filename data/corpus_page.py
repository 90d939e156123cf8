"""The report of a corpus as one HTML page that needs nothing else. All it shows is escaped."""

import itertools
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_NAMES = {
  "read": "read",
  "language": "language",
  "gopher_repetition": "Gopher repetition",
  "gopher_quality": "Gopher quality",
  "c4": "C4",
  "fineweb": "FineWeb",
  "privacy": "personal data",
  "exact_duplicate": "exact duplicates",
  "near_duplicate": "near duplicates",
  "decontamination": "evaluation items",
  "signature": "MinHash signature",
  "clusters": "finding duplicates",
  "write": "writing",
  "kept": "kept",
}
_COLORS = {
  "kept": "#2a7f62",
  "language": "#8c6bb1",
  "gopher_repetition": "#e6a23c",
  "gopher_quality": "#d9772b",
  "c4": "#c44536",
  "fineweb": "#8f2d3c",
  "privacy": "#999999",
  "exact_duplicate": "#4f7cac",
  "near_duplicate": "#86b3d1",
  "decontamination": "#333f48",
}
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #1d2730;
  background: #fff; max-width: 1080px; margin: 0 auto; padding: 24px 28px 60px; }
h1 { font-size: 26px; margin: 8px 0 2px; } h2 { font-size: 19px; margin: 38px 0 8px; }
p { max-width: 76ch; margin: 6px 0 12px; color: #46525c; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0; }
.card { border: 1px solid #dfe4e8; border-radius: 8px; padding: 10px 16px; min-width: 130px; }
.card b { display: block; font-size: 22px; font-variant-numeric: tabular-nums; }
.card span { color: #5c6870; font-size: 13px; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 8px; text-align: right; border-bottom: 1px solid #e8ecef;
  white-space: nowrap; }
th { color: #5c6870; font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.wide { overflow-x: auto; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 13px; margin: 4px 0 8px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 2px;
  margin-right: 6px; }
.bar { background: #4f7cac; height: 10px; border-radius: 2px; display: inline-block;
  min-width: 1px; }
details { border-bottom: 1px solid #e8ecef; } summary { cursor: pointer; padding: 4px 0;
  display: grid; grid-template-columns: 150px 260px 90px 1fr; gap: 10px; align-items: center;
  font-size: 13.5px; } summary span:nth-child(3) { text-align: right; }
blockquote { margin: 4px 0 12px 20px; padding: 6px 12px; background: #f5f7f8; font-size: 13px;
  border-left: 3px solid #cfd8de; overflow-wrap: anywhere; white-space: pre-wrap; }
blockquote cite { display: block; color: #5c6870; font-style: normal; font-size: 12px; }
svg { display: block; max-width: 100%; } svg text { font: 13px system-ui, sans-serif; }
.two { display: flex; flex-wrap: wrap; gap: 48px; }
"""


def page(report: Mapping[str, Any]) -> str:
  """The page of a report, as `corpus_report.collect` makes them."""
  sections = (
    _head(report),
    _flow(report, "documents", "Where the documents went"),
    _flow(report, "bytes", "Where the bytes went"),
    _stages(report),
    _reasons(report),
    _duplicates(report),
    _throughput(report),
    _evaluation(report),
  )
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Corpus report</title>'
    f"<style>{_STYLE}</style></head><body>{''.join(sections)}</body></html>\n"
  )


def _head(report):
  passed = [source["passed"] for source in report["sources"].values()]
  first, last = ([list(p.values())[i] for p in passed] for i in (0, -1))
  read, kept = (sum(p["documents"] for p in part) for part in (first, last))
  cards = [
    (f"{read:,}", "documents read"),
    (f"{kept:,}", f"kept ({_share(kept, read)})"),
    (_bytes(sum(p["bytes"] for p in first)), "of text read"),
    (_bytes(sum(p["bytes"] for p in last)), "kept"),
    (_short(sum(p["tokens"] for p in last)), f"{report['tokens']} kept"),
    (f"{sum(sum(s['faults'].values()) for s in report['sources'].values()):,}", "faults survived"),
  ]
  shown = "".join(
    f'<div class="card"><b>{escape(number)}</b><span>{escape(what)}</span></div>'
    for number, what in cards
  )
  return f'<h1>Corpus report</h1><div class="cards">{shown}</div>'


def _flow(report, what, title):
  """A bar a source: the share that each stage removed, and what is left."""
  width, left, row = 1060, 110, 30
  marks, used = [], []
  for line, (name, source) in enumerate(report["sources"].items()):
    y, x = line * row + 4, left
    passed = list(source["passed"].items())
    total = passed[0][1][what]
    parts = [("kept", passed[-1][1][what])]
    parts += [(b[0], a[1][what] - b[1][what]) for a, b in itertools.pairwise(passed)]
    marks.append(f'<text x="0" y="{y + 15}">{escape(name)}</text>')
    for stage, amount in parts:
      size = (width - left - 240) * max(amount, 0) / max(total, 1)
      if amount <= 0:
        continue
      used += [stage] if stage not in used else []
      label = f"{name}: {_NAMES[stage]} {_amount(what, amount)} ({_share(amount, total)})"
      marks.append(
        f'<rect x="{x:.1f}" y="{y}" width="{max(size, 0.5):.1f}" height="21" '
        f'fill="{_COLORS[stage]}"><title>{escape(label)}</title></rect>'
      )
      x += size
    kept = f"{_amount(what, parts[0][1])} of {_amount(what, total)}"
    share = f" ({_share(parts[0][1], total)})"
    marks.append(
      f'<text x="{width - 230}" y="{y + 15}" fill="#46525c">{escape(kept + share)}</text>'
    )
  height = len(report["sources"]) * row + 4
  legend = "".join(
    f'<span><i style="background:{_COLORS[stage]}"></i>{escape(_NAMES[stage])}</span>'
    for stage in _COLORS
    if stage in used
  )
  return (
    f'<h2>{escape(title)}</h2><div class="legend">{legend}</div>'
    f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img">{"".join(marks)}</svg>'
  )


def _stages(report):
  order = list(dict.fromkeys(s for source in report["sources"].values() for s in source["passed"]))
  order.sort(key=list(_NAMES).index)
  names = (escape(_NAMES[stage]).replace(" ", "<br>") for stage in order)
  head = "".join(f"<th>{name}</th>" for name in names)
  rows = []
  for name, source in report["sources"].items():
    cells = []
    for stage in order:
      if stage not in source["passed"]:
        cells.append("<td>·</td>")
        continue
      p = source["passed"][stage]
      cells.append(f"<td>{p['documents']:,}<br>{_bytes(p['bytes'])}<br>{_short(p['tokens'])}</td>")
    rows.append(f"<tr><td><b>{escape(name)}</b></td>{''.join(cells)}</tr>")
  changes = "; ".join(
    f"{_NAMES[stage]}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items())
    for stage, counts in report["changes"].items()
  )
  return (
    f"<h2>What is left after each stage</h2><p>Documents, bytes and {escape(report['tokens'])}; a "
    "dot is a stage that the source does not go through.</p><div class='wide'><table><tr>"
    f"<th></th>{head}</tr>{''.join(rows)}</table></div>"
    + (f"<p>Changed inside documents: {escape(changes)}.</p>" if changes else "")
  )


def _reasons(report):
  most = max((r["documents"] for r in report["reasons"]), default=1)
  lines = []
  for reason in report["reasons"]:
    examples = "".join(
      f"<blockquote><cite>{escape(e['source'])}: {escape(e['path'])} at {e['offset']}"
      f"{escape(' — ' + e['detail']) if e['detail'] else ''}</cite>{escape(e['text'])}</blockquote>"
      for e in reason["examples"]
    )
    size = 300 * reason["documents"] / most
    lines.append(
      f"<details><summary><span>{escape(_NAMES[reason['stage']])}</span>"
      f"<span>{escape(reason['reason'])}</span><span>{reason['documents']:,}</span>"
      f'<span><span class="bar" style="width:{size:.1f}px"></span></span></summary>{examples}'
      "</details>"
    )
  return (
    "<h2>Why documents went</h2><p>By stage; a click shows examples. Under “read” are parts of "
    f"files that held no document or a broken one.</p>{''.join(lines)}"
  )


def _duplicates(report):
  charts = []
  for name, title in (("exact", "of equal texts"), ("near", "of similar texts")):
    sizes = {int(size): count for size, count in report["clusters"][name].items()}
    title = f"Clusters {title}: {sum(sizes.values()):,}"
    charts.append(f"<div><b>{escape(title)}</b>{_histogram(sizes)}</div>")
  left = report["uncompared"]
  crowded = (
    f" In buckets of many documents that are not alike, {left:,} were not compared with all of "
    "theirs."
  )
  return (
    "<h2>Duplicates by cluster size</h2><p>Of each cluster the document with the smallest content "
    f'hash stays.{crowded if left else ""}</p><div class="two">{"".join(charts)}</div>'
  )


def _histogram(sizes: Mapping[int, int]) -> str:
  """Bars of the number of clusters by documents in them, in powers of two from 8 on."""
  bins: dict[tuple[int, int], int] = {}
  for size, count in sorted(sizes.items()):
    low = size if size < 8 else 2 ** int(math.log2(size))
    high = size if size < 8 else 2 * low - 1
    bins[low, high] = bins.get((low, high), 0) + count
  if not bins:
    return "<p>None.</p>"
  most, step, height = max(bins.values()), 58, 150
  marks = []
  for place, ((low, high), count) in enumerate(bins.items()):
    size, x = max(height * count / most, 1), place * step
    label = str(low) if low == high else f"{low}–{high}"
    marks.append(
      f'<rect x="{x + 6}" y="{height + 20 - size:.1f}" width="{step - 16}" height="{size:.1f}" '
      f'rx="2" fill="#4f7cac"/><text x="{x + step / 2 - 2}" y="{height + 14 - size:.1f}" '
      f'text-anchor="middle">{count:,}</text><text x="{x + step / 2 - 2}" y="{height + 37}" '
      f'text-anchor="middle" fill="#46525c">{label}</text>'
    )
  width = max(len(bins) * step, 240)
  return (
    f'<svg viewBox="0 0 {width} {height + 60}" width="{width}">{"".join(marks)}'
    f'<text x="0" y="{height + 56}" fill="#46525c">documents in the cluster</text></svg>'
  )


def _throughput(report):
  rows = []
  stages = report["throughput"]
  most = max((s["seconds"] for s in stages.values()), default=1) or 1
  for stage, speed in stages.items():
    rows.append(
      f"<tr><td>{escape(_NAMES[stage])}</td><td>{speed['documents_per_second']:,.0f}</td>"
      f"<td>{speed['bytes_per_second'] / 1e6:,.1f}</td><td>{speed['seconds']:,.1f}</td>"
      f'<td style="text-align:left"><span class="bar" '
      f'style="width:{260 * speed["seconds"] / most:.1f}px"></span></td></tr>'
    )
  return (
    "<h2>Throughput of a core</h2><table><tr><th>stage</th><th>documents/s</th><th>MB/s</th>"
    f"<th>CPU seconds</th><th></th></tr>{''.join(rows)}</table>"
    f"<p>All of it took {report['seconds']:,.0f} s from the last start on.</p>"
  )


def _evaluation(report):
  items, short = report["evaluation"]["items"], report["evaluation"]["short"]
  found = {
    r["reason"]: r["documents"] for r in report["reasons"] if r["stage"] == "decontamination"
  }
  rows = "".join(
    f"<tr><td>{escape(name)}</td><td>{count:,}</td><td>{short.get(name, 0):,}</td>"
    f"<td>{found.get(name, 0):,}</td></tr>"
    for name, count in items.items()
  )
  if not rows:
    return "<h2>Evaluation sets</h2><p>The recipe names none.</p>"
  return (
    "<h2>Evaluation sets</h2><p>A document goes if it has a run of words in common with an item. "
    "Items that are shorter than such a run can't be found, and are counted here.</p><table><tr>"
    "<th>set</th><th>items</th><th>too short</th><th>documents removed</th></tr>"
    f"{rows}</table>"
  )


def _share(part: float, whole: float) -> str:
  return f"{100 * part / whole:.1f}%" if whole else "0%"


def _amount(what: str, value: int) -> str:
  return _bytes(value) if what == "bytes" else f"{value:,}"


def _bytes(value: float) -> str:
  return f"{_short(value)}B"


def _short(value: float) -> str:
  steps: Sequence[tuple[float, str]] = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
  for scale, letter in steps:
    if value >= scale:
      return f"{value / scale:,.1f} {letter}"
  return f"{value:,.0f} "

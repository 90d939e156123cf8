"""What an evaluation leaves: results item by item, eval.json, and the table of the terminal."""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data import scores
from train.suite import Entry, Task
from train.workdir import write_atomically

ITEMS, SUMMARY = "items.jsonl", "eval.json"


class Items:
  """The file of results, a line an item, appended to as they come.

  A line that a kill cut short is dropped when it is opened again. The first line says of which
  model the results are.

  Args:
    path: of the file; None to keep them in memory alone.
    identity: of the model and its tokenizer.
    write: whether this process is the one that writes.

  Raises:
    ValueError: the file holds the results of another model.
  """

  def __init__(self, path: Path | None, identity: Mapping[str, Any], write: bool):
    lines, size = ([], 0) if path is None else _whole_lines(path)
    self.done = {(line["task"], line["id"]): line for line in lines[1:]}
    if lines and lines[0] != dict(identity):
      raise ValueError(
        f"{path} holds results of {lines[0]}, and this is {dict(identity)}; use another --workdir."
      )
    self._file = None
    if write and path is not None:
      path.parent.mkdir(parents=True, exist_ok=True)
      self._file = open(path, "ab")  # noqa: SIM115
      self._file.truncate(size)
      if not lines:
        self.add([dict(identity)])

  def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
    """Appends lines; they are on disk afterwards."""
    lines = list(lines)
    for line in lines:
      if "task" in line:
        self.done[line["task"], line["id"]] = line
    if self._file is not None:
      self._file.write("".join(json.dumps(line) + "\n" for line in lines).encode("utf-8"))
      self._file.flush()
      os.fsync(self._file.fileno())

  def close(self) -> None:
    if self._file is not None:
      self._file.close()


def _whole_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
  """The lines up to the first that is not whole, and how many bytes they are."""
  lines, size = [], 0
  if path.exists():
    with open(path, "rb") as file:
      for line in file:
        try:
          parsed = json.loads(line)
        except ValueError:
          break
        if not line.endswith(b"\n"):
          break
        lines.append(parsed)
        size += len(line)
  return lines, size


def line(task: Task, entry: Entry, item_scores: scores.Scores, **results: Any) -> dict[str, Any]:
  """The line of an item: its prompt, choices, results and scores."""
  described: dict[str, Any] = {"task": task.name, "id": entry.item.id, "group": entry.item.group}
  if entry.prompt is not None:
    described["prompt"] = entry.prompt.context
    described["choices"] = list(entry.prompt.continuations)
    described["answer"] = entry.item.answer
  return described | {"truncated": entry.truncated} | results | {"scores": item_scores}


def summarize(
  tasks: list[Task],
  done: Mapping[tuple[str, str], Mapping[str, Any]],
  contaminated: Mapping[str, set[tuple[str, str]]] | None = None,
) -> dict[str, dict[str, Any]]:
  """Metrics, groups and counts of each task, with its items.

  Args:
    contaminated: of `train.suite.contaminated`: metrics of "clean" and "dirty" items are apart.
  """
  summary = {}
  for task in tasks:
    items = [done[task.name, entry.item.id] for entry in task.entries]
    kind = task.name.partition(":")[0]
    groups: dict[str, list] = {}
    for item in items:
      wider = scores.group_of(item["group"])
      for name in filter(None, (item["group"], wider)):
        groups.setdefault(name, []).append(item)
    counts = {"items": len(items) + sum(task.left_out.values()), "scored": len(items)}
    counts["truncated"] = sum(item["truncated"] > 0 for item in items)
    summary[task.name] = {
      "metrics": _metrics(kind, items),
      "groups": {name: _metrics(kind, members) for name, members in sorted(groups.items())},
      "counts": counts | task.left_out,
      "items": items,
    }
    if contaminated is not None:
      summary[task.name] |= _apart(kind, task, items, contaminated)
      for name in ("dirty", "short"):
        count = sum((task.name, item["id"]) in contaminated[name] for item in items)
        summary[task.name]["counts"][_COUNTED[name]] = count
  return summary


_COUNTED = {"dirty": "in_the_corpus", "short": "too_short_to_find_in_it"}


def _apart(kind: str, task: Task, items: list, contaminated: Mapping[str, set]) -> dict[str, Any]:
  parts: dict[str, list] = {"clean": [], "dirty": []}
  for item in items:
    dirty = (task.name, item["id"]) in contaminated["dirty"]
    parts["dirty" if dirty else "clean"].append(item)
  return {name: _metrics(kind, members) for name, members in parts.items()}


def by_subject(items: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
  """Items by their MMLU subject; those of other sets together."""
  subjects: dict[str, list] = {}
  for item in items:
    subject = item["group"] if scores.group_of(item["group"]) else ""
    subjects.setdefault(subject, []).append(item)
  return list(subjects.values())


def _metrics(kind: str, items: list) -> dict[str, dict[str, Any]]:
  """The metrics of items; of several MMLU subjects, with pooled errors."""
  groups = [[item["scores"] for item in group] for group in by_subject(items)]
  found = scores.summarize_groups(kind, groups)
  return {name: dataclasses.asdict(estimate) for name, estimate in found.items()}


def write(path: Path, content: Mapping[str, Any]) -> None:
  write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read(path: Path) -> dict[str, Any]:
  """An eval.json, by its path or that of its folder. Raises ValueError where it is none."""
  path = path / SUMMARY if path.is_dir() else path
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise ValueError(f"{path} can't be read: {error}") from error
  if not isinstance(content, dict) or "tasks" not in content:
    raise ValueError(f"{path} is no eval.json: it has no key `tasks`.")
  return content


def shown(name: str, metric: Mapping[str, Any]) -> str:
  """A value with its error: shares in percent, the rest as they are."""
  scale = 100 if name in PERCENT or name.startswith("acc") else 1
  value = f"{scale * metric['value']:.2f}"
  return value if metric["stderr"] is None else f"{value} ± {scale * metric['stderr']:.2f}"


PERCENT = ("pct_stereotype", "refused", "answered", "gap", "s_amb", "s_dis")


def table(tasks: Mapping[str, Mapping[str, Any]]) -> str:
  """A line a metric of every task, of MMLU's groups too, then what was left out or cut."""
  rows = [("task", "metric", "value", "items")]
  notes = []
  for name, task in tasks.items():
    parts = [(name, task["metrics"])]
    parts += [(f"  {group}", task["groups"][group]) for group in _wide(task["groups"])]
    for label in ("clean", "dirty"):
      if label in task:
        parts.append((f"  {label}", task[label]))
    for label, metrics in parts:
      for metric, value in metrics.items():
        rows.append((label, metric, shown(metric, value), f"{value['n']:,}"))
        label = ""
    counts = {k: n for k, n in task["counts"].items() if k not in ("items", "scored") and n}
    if counts:
      said = ", ".join(f"{n:,} {key.replace('_', ' ')}" for key, n in counts.items())
      notes.append(f"{name}: of {task['counts']['items']:,} items {said}")
  widths = [max(len(row[i]) for row in rows) for i in range(4)]
  lines = []
  for a, b, value, n in rows:
    lines.append(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {value:>{widths[2]}}  {n:>{widths[3]}}")
  return "\n".join(line.rstrip() for line in [*lines, *notes])


def _wide(groups: Mapping[str, Any]) -> list[str]:
  """MMLU's four groups; or all, where there are few."""
  wide = [name for name in groups if name in scores.GROUPS]
  return wide or (list(groups) if len(groups) <= 2 else [])

"""Responses to a prompt by their rewards: what the best of k are worth, and which to train on."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class KeepConfig:
  """Which responses become rows of rejection sampling.

  Attributes:
    rows: the most of a prompt, its best ones; 0 for none at all.
    threshold: the least reward of one; None for any.
    ended: whether only responses that ended by themselves do: others are cut off.
  """

  rows: int
  threshold: float | None
  ended: bool

  def __post_init__(self):
    if self.rows < 0:
      raise ValueError(f"keep.rows is {self.rows}; it must be at least 0.")


def ranking(responses: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """Responses that have a reward, the best first; of equal ones the earlier."""
  return sorted((r for r in responses if r["total"] is not None), key=lambda r: -r["total"])


def kept_rows(
  lines: Sequence[Mapping[str, Any]],
  ranked: Sequence[Sequence[Mapping[str, Any]]],
  keep: KeepConfig,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
  """Rows of conversations that end with good responses, and what became of all responses.

  Raises:
    ValueError: there is none.
  """
  rows: list[dict[str, Any]] = []
  said = {"rows": 0, "prompts": 0, "not_ended": 0, "empty": 0, "below_threshold": 0}
  for line, responses in zip(lines, ranked, strict=True):
    seen: list[str] = []
    for one in responses:
      text = one["response"].strip()
      if keep.ended and not one["ended"]:
        said["not_ended"] += 1
      elif not text:
        said["empty"] += 1
      elif keep.threshold is not None and one["total"] < keep.threshold:
        said["below_threshold"] += 1
      elif len(seen) < keep.rows and text not in seen:
        seen.append(text)
        answer = {"messages": [*line["messages"], {"role": "assistant", "content": text}]}
        if not line["messages"]:
          answer = {"prompt": line["prompt"], "completion": text}
        rows.append(answer | {"reward": one["total"]})
    said["prompts"] += bool(seen)
  said["rows"] = len(rows)
  if not rows:
    most = max(one["total"] for responses in ranked for one in responses)
    raise ValueError(
      f"no response is good enough for a row ({said}); the highest reward is {most:.4f} and "
      f"keep.threshold is {keep.threshold}. Change keep, and start again with --allow=keep."
    )
  return rows, said


def make_report(
  ranked: Sequence[Sequence[Mapping[str, Any]]], counts: Sequence[int]
) -> dict[str, Any]:
  """The expected reward of the best of k, for each k, and a bound of its KL in nats.

  The expectation is over which k of a prompt's n responses there are, exactly: see `best_chances`.
  The bound is log k - (k - 1) / k (https://arxiv.org/abs/2401.01879). Prompts with fewer than k
  rewards are no part of k.
  """
  report: dict[str, Any] = {
    "prompts": len(ranked),
    "responses_with_reward": sum(map(len, ranked)),
    "counts": {},
  }
  for k in counts:
    parts = [one for one in ranked if len(one) >= k]
    if not parts:
      continue
    chances = [best_chances(len(one), k) for one in parts]

    def mean(value, parts=parts, chances=chances):
      each = [
        float(np.dot(p, [value(r) for r in one])) for p, one in zip(chances, parts, strict=True)
      ]
      error = np.std(each, ddof=1) / math.sqrt(len(each)) if len(each) > 1 else math.nan
      return float(np.mean(each)), float(error)

    reward, error = mean(lambda r: r["total"])
    report["counts"][k] = {
      "prompts": len(parts),
      "reward": reward,
      "standard_error": error if math.isfinite(error) else None,
      "kl_bound": math.log(k) - (k - 1) / k,
      "rewards": {
        name: mean(lambda r, name=name: r["rewards"][name])[0] for name in parts[0][0]["rewards"]
      },
      "tokens": mean(lambda r: r["tokens"])[0],
      "ended": mean(lambda r: r["ended"])[0],
    }
  return report


def best_chances(n: int, k: int) -> np.ndarray:
  """The probability [n] that the i-th best of n, from 0, is the best of k random ones of them."""
  return np.array([math.comb(n - 1 - i, k - 1) / math.comb(n, k) for i in range(n)])


def table(report: Mapping[str, Any]) -> str:
  """The report for a terminal."""
  names = sorted({name for one in report["counts"].values() for name in one["rewards"]})
  lines = ["".join(f"{head:>18}" for head in ("best of", "reward", "KL at most", "tokens", *names))]
  for k, one in report["counts"].items():
    error = "" if one["standard_error"] is None else f" +- {one['standard_error']:.4f}"
    cells = (k, f"{one['reward']:.4f}{error}", f"{one['kl_bound']:.3f}", f"{one['tokens']:.1f}")
    lines.append(
      "".join(f"{c:>18}" for c in (*cells, *(f"{one['rewards'][n]:.4f}" for n in names)))
    )
  return "\n".join(lines)

"""Rewards of responses: by a Python function that the config file names, checked row by row."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

ALONE = "reward"


class RewardError(ValueError):
  """A reward that is none."""


@dataclasses.dataclass(frozen=True)
class ResponseRewardConfig:
  """What a response is worth.

  Attributes:
    function: (prompts, responses), two lists of texts, to as many numbers, or to {dimension:
      numbers}. The config file itself gives it; no name is ever imported.
    models: folders of reward runs, in place of a function; several are an ensemble.
    ensemble: "mean" or "min" of their scores.
    weights: {dimension: its weight in the sum}; empty for 1 each.
    clip: the reward's bound, both ways.
    no_stop: what a response without a stop token gets: "keep" its reward, "score" for
      `no_stop_value` instead, or "penalty" for that much less.
    no_stop_value: see above.
    bad_rows: "stop" the run, or "drop" and count a response whose reward is none.
  """

  function: Callable | None
  models: tuple[str, ...]
  ensemble: str
  weights: dict[str, float]
  clip: float
  no_stop: str
  no_stop_value: float
  bad_rows: str

  def __post_init__(self):
    for name, allowed in (
      ("ensemble", ("mean", "min")),
      ("no_stop", ("keep", "score", "penalty")),
      ("bad_rows", ("stop", "drop")),
    ):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f"reward.{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}."
        )
    if (self.function is None) == (not self.models):
      raise ValueError(
        "name either a Python function as config.reward.function, in the config file, or the "
        "folders of reward runs as reward.models."
      )
    if not self.clip > 0 or not math.isfinite(self.no_stop_value):
      raise ValueError(
        f"reward has clip={self.clip}, no_stop_value={self.no_stop_value}; they must be positive "
        "and finite."
      )


def refuse_name(config: Mapping[str, Any]) -> None:
  """Raises ValueError where a recipe's reward function is not a function."""
  function = config.get("reward", {}).get("function")
  if function is not None and not callable(function):
    raise ValueError(
      f"reward.function is {function!r}; it must be a function that the config file itself gives, "
      "and never a name, by which a saved config could run code."
    )


@dataclasses.dataclass(frozen=True)
class Scores:
  """What a scorer says of B responses; NaN is a response to drop.

  Attributes:
    dimensions: {name: float64 [B]}, of which the total is the weighted sum.
    raw: the same before normalization.
    total_B: float64.
  """

  dimensions: dict[str, np.ndarray]
  raw: dict[str, np.ndarray]
  total_B: np.ndarray


@dataclasses.dataclass(frozen=True)
class Rewards:
  """Rewards of B responses.

  Attributes:
    scores: as the scorer gave them.
    total_B: float32, clipped, and with the rule for a missing stop token; 0 if dropped.
    kept_B: bool, whether the response counts.
    clipped: the share of responses whose reward was clipped.
  """

  scores: Scores
  total_B: np.ndarray
  kept_B: np.ndarray
  clipped: float


def weighted(dimensions: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
  """The weighted sum [B]; no weights are 1 each.

  Raises:
    RewardError: the weights are of other dimensions.
  """
  weights = weights or dict.fromkeys(dimensions, 1.0)
  if set(weights) != set(dimensions):
    raise RewardError(
      f"reward.weights has the dimensions {sorted(weights)}, and the rewards have "
      f"{sorted(dimensions)}."
    )
  return np.sum([weights[n] * np.asarray(x, np.float64) for n, x in dimensions.items()], axis=0)


def rewards(scores: Scores, stopped_B: np.ndarray, config: ResponseRewardConfig) -> Rewards:
  """The rewards that the update sees."""
  kept_B = np.isfinite(scores.total_B)
  total_B = np.where(kept_B, scores.total_B, 0.0)
  outside_B = np.abs(total_B) > config.clip
  total_B = np.clip(total_B, -config.clip, config.clip)
  if config.no_stop == "score":
    total_B = np.where(stopped_B, total_B, config.no_stop_value)
  elif config.no_stop == "penalty":
    total_B = np.where(stopped_B, total_B, total_B - config.no_stop_value)
  total_B = np.where(kept_B, total_B, 0.0).astype(np.float32)
  return Rewards(scores, total_B, kept_B, float(np.mean(outside_B)))


def by_function(
  function: Callable,
  prompts: Sequence[str],
  responses: Sequence[str],
  names: Sequence[str],
  drop: bool,
) -> dict[str, np.ndarray]:
  """{dimension: float64 [B]} of a reward function, NaN in rows that it has no reward for.

  Args:
    function: see `ResponseRewardConfig`.
    names: what to call each row in a message.
    drop: whether such rows are let through.

  Raises:
    RewardError: it raised, or gave something that is no finite number, named by the row (unless
      `drop`); or as many numbers as there are not responses.
  """
  prompts, responses = list(prompts), list(responses)
  try:
    out = _as_dimensions(function(prompts, responses), len(responses))
  except RewardError:
    raise
  except Exception as error:  # whatever a user's function raises
    out = _row_by_row(function, prompts, responses, names, drop, error)
  columns = {}
  for name, values in out.items():
    column = np.full(len(responses), np.nan)
    for row, value in enumerate(values):
      number = _number(value)
      if number is not None:
        column[row] = number
      elif not drop:
        raise RewardError(
          f"the reward function gave {value!r}{_of(name)} for {names[row]} (response "
          f"{responses[row][:80]!r}); it must be a finite number. Mend it, or set "
          "reward.bad_rows='drop'."
        )
    columns[name] = column
  return columns


def _as_dimensions(out, count: int) -> dict[str, list]:
  columns = dict(out) if isinstance(out, Mapping) else {ALONE: out}
  for name, values in columns.items():
    try:
      columns[name] = list(values)
    except TypeError:
      raise RewardError(
        f"the reward function gave a {type(values).__name__}{_of(name)}; it must give a list of "
        "numbers, one a response."
      ) from None
    if len(columns[name]) != count:
      raise RewardError(
        f"the reward function gave {len(columns[name])} numbers{_of(name)} for {count} responses; "
        "it must give one a response."
      )
  if not columns:
    raise RewardError("the reward function gave no dimension.")
  return columns


def _row_by_row(function, prompts, responses, names, drop, error) -> dict[str, list]:
  """The rewards of each row alone, once a whole batch has raised `error`."""
  rows, bad = [], []
  for prompt, response, name in zip(prompts, responses, names, strict=True):
    try:
      rows.append(_as_dimensions(function([prompt], [response]), 1))
    except Exception as raised:  # as above
      if not drop:
        raise RewardError(
          f"the reward function raised {type(raised).__name__}: {raised}, for {name} (response "
          f"{response[:80]!r}). Mend it, or set reward.bad_rows='drop'."
        ) from raised
      bad.append(len(rows))
      rows.append(None)
  if len(bad) == len(rows):
    raise RewardError(
      f"the reward function raised {type(error).__name__}: {error}, for every response."
    ) from error
  dimensions = next(row for row in rows if row is not None)
  nothing = {name: [None] for name in dimensions}
  return {name: [(row or nothing)[name][0] for row in rows] for name in dimensions}


def _number(value) -> float | None:
  """A finite float, from a number or an array of one; else None."""
  try:
    number = float(value)
  except (TypeError, ValueError):
    return None
  return number if math.isfinite(number) and not isinstance(value, str) else None


def _of(name: str) -> str:
  return "" if name == ALONE else f" in the dimension {name!r}"

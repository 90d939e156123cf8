"""Diversity and coherence over temperature and top-p: what a setting gains and what it costs.

  python -m train.main --config configs/diversity.py:runs/quickstart

For each pair of settings, completions of the same prompts: distinct-n and self-BLEU say how varied
they are, their perplexity under the model itself (at temperature 1) how likely.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from data.config import parse
from data.diversity import distinct, self_bleu
from data.prompts_file import of_text, read_prompts
from model.batching import Completion
from train.sample import Sampler, SampleRunConfig, open_sampler
from train.signals import StopRequest
from train.workdir import write_atomically, write_config

FILE = "diversity.json"


@dataclasses.dataclass(frozen=True)
class DiversityConfig:
  """Every section of a sweep.

  Attributes:
    sampler: as for sampling; its prompts are a file, or None for `texts`.
    texts: prompts.
    temperatures, top_ps: every pair of them is tried.
  """

  stage: str
  sampler: SampleRunConfig
  texts: tuple[str, ...]
  temperatures: tuple[float, ...]
  top_ps: tuple[float, ...]

  def __post_init__(self):
    if not (self.temperatures and self.top_ps and (self.texts or self.sampler.prompts)):
      raise ValueError("name at least one prompt, temperature and top_p.")
    if self.sampler.completions < 2:
      raise ValueError("sampler.completions is 1; self-BLEU compares at least 2 of a prompt.")


parse_config = functools.partial(parse, DiversityConfig)


def execute(
  config: Mapping[str, Any], parsed: DiversityConfig, workdir: Path, stop: StopRequest
) -> bool:
  """Tries every pair that diversity.json has not; returns whether that is all."""
  file = parsed.sampler.prompts
  prompts = read_prompts(Path(file)) if file else [of_text(t, repr(t)) for t in parsed.texts]
  path = workdir / FILE
  rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
  done = {(row["temperature"], row["top_p"]) for row in rows}
  with open_sampler(parsed.sampler, len(prompts)) as sampler:
    ids = [sampler.encode(prompt) for prompt in prompts]
    write_config(workdir, config)
    for temperature in parsed.temperatures:
      for top_p in parsed.top_ps:
        if (temperature, top_p) in done:
          continue
        if stop.wanted():
          return False
        row = {"temperature": temperature, "top_p": top_p}
        rows.append(row | measure(sampler, ids, temperature, top_p))
        if jax.process_index() == 0:
          write_atomically(path, json.dumps(rows, indent=1) + "\n")
        print(f"temperature {temperature}, top-p {top_p}: done", flush=True)
  print(f"\n{table(rows)}\n\nAll of it is in {path}.")
  return True


def measure(
  sampler: Sampler, ids: Sequence[tuple[int, ...]], temperature: float, top_p: float
) -> dict[str, float]:
  """Samples with one pair of settings, and measures what comes out."""
  settings = dataclasses.replace(sampler.config.sample, temperature=temperature, top_p=top_p)
  sampler = dataclasses.replace(
    sampler, config=dataclasses.replace(sampler.config, sample=settings)
  )
  requests = sampler.requests(ids)
  batcher = sampler.batcher(requests)
  found: list[Completion] = sorted(batcher.run(requests), key=lambda one: one.number)
  copies = sampler.config.completions
  texts = [one.text for one in found]
  log_probs = [p for one in found for p in one.raw_log_probs]
  return {
    **{f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)},
    "self_bleu": self_bleu([texts[i : i + copies] for i in range(0, len(texts), copies)]),
    "perplexity": math.exp(-sum(log_probs) / len(log_probs)),
    "tokens": len(log_probs) / len(found),
  }


def table(rows: Sequence[Mapping[str, float]]) -> str:
  names = list(rows[0])
  lines = ["  ".join(f"{name:>11}" for name in names)]
  lines += ["  ".join(f"{row[name]:>11.4g}" for name in names) for row in rows]
  return "\n".join(lines)

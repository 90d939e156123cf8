"""What the stages that learn from comparisons share: reading them, and numbers of every pair."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data import conversations, curate
from data.batch import Batch
from data.chat import ChatTemplate
from data.config import PairConfig
from data.curate import Curated
from data.examples import pack
from data.heldout import is_held_out
from data.pairs import Pair, PairSource, read_pairs
from train.placement import from_whole
from train.sft import PROMPTS
from train.workdir import write_atomically

PairMap = Callable[[dict, Sequence[Pair]], np.ndarray]


def open_pairs(
  data: PairConfig,
  dimensions: Sequence[str],
  template: ChatTemplate,
  workdir: Path,
  judge: Callable[[Curated], Curated] = lambda curated: curated,
) -> tuple[list[Pair], list[Pair]]:
  """The pairs to train on and held out, split by prompt; writes what was dropped, and says so.

  Args:
    judge: what the stage makes of what was kept; it may drop more.

  Raises:
    ValueError: a source has no rows, a row is one to refuse, or nothing is left of either part.
  """
  curated = judge(
    read_pairs(
      {
        name: PairSource(conversations.read(source.path), source.dimension)
        for name, source in data.sources.items()
      },
      template,
      dimensions=dimensions,
      scale=data.scale,
      # Both answers of a pair lie in one row.
      max_tokens=data.seq_len // 2,
      exclude=_prompts_of(data.exclude_prompts_of),
    )
  )
  curate.refuse(curated, data.refuse)
  train: list[Pair] = []
  held_out: list[Pair] = []
  for pair in curated.kept:
    said = conversations.prompt_text(pair.prompt)
    (held_out if is_held_out(said, data.heldout_fraction) else train).append(pair)
  report = curated.report()
  said = ", ".join(f"{count} {reason}" for reason, count in report["dropped"].items()) or "none"
  overlap = report["dropped"].get("overlap", 0)
  summary = f"{report['rows']:,} pairs: {report['kept']:,} kept; dropped: {said}"
  if not train or len(held_out) < 2:
    raise ValueError(
      f"{len(train)} pairs are left to train on and {len(held_out)} held out; there must be some, "
      f"and at least 2. {summary}"
    )
  if jax.process_index() == 0:
    against = data.exclude_prompts_of
    report |= {"overlap": {"with": against, "pairs": overlap, "of": report["rows"]}}
    curate.write_report(curated, workdir)
    write_atomically(workdir / "curation.json", json.dumps(report, indent=2) + "\n")
  print(f"{summary}. {len(held_out):,} pairs are held out, by prompt.")
  return train, held_out


def _prompts_of(folder: str | None) -> frozenset[str]:
  if folder is None:
    return frozenset()
  path = Path(folder) / PROMPTS
  try:
    return frozenset(json.loads(path.read_text()))
  except (OSError, ValueError) as error:
    raise ValueError(
      f"data.exclude_prompts_of={folder!r}: {path} cannot be read ({error}); name the folder of a "
      "run of fine-tuning, or null."
    ) from error


def make_pair_map(
  compute: Callable[[dict, dict], jax.Array],
  make_batch: Callable[[Sequence[Sequence[Pair]]], Batch],
  data: PairConfig,
  batch_size: int,
  mesh: Mesh,
) -> PairMap:
  """Makes `numbers(params, pairs)`: fp32 [N,...], what `compute` says of each pair.

  Args:
    compute: (params, batch) to [rows, P, ...].
    make_batch: the arrays of rows of up to `data.max_segments // 2` pairs.
    batch_size: rows that are computed at a time.
  """
  whole = NamedSharding(mesh, PartitionSpec())  # so that every process can read all of it
  compiled = jax.jit(compute, out_shardings=whole)

  def numbers(params: dict, pairs: Sequence[Pair]) -> np.ndarray:
    rows = pack([pair.size for pair in pairs], data.seq_len, data.max_segments // 2)
    rows += [[]] * (-len(rows) % batch_size)
    found: dict[int, np.ndarray] = {}
    for first in range(0, len(rows), batch_size):
      part = rows[first : first + batch_size]
      batch = make_batch([[pairs[i] for i in row] for row in part])
      values = jax.device_get(compiled(params, from_whole(batch, mesh)))
      found |= {i: values[r, p] for r, row in enumerate(part) for p, i in enumerate(row)}
    return np.stack([found[i] for i in range(len(pairs))])

  return numbers

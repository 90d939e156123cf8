"""Pairs of which one answer is the better one, with what a reference policy says of both.

The arrays are those of `data.pair_batches`: a row holds both answers of up to P pairs, those of
pair p as its segments 2p + 1 (chosen) and 2p + 2 (rejected), with their tokens as loss weights; and

  real        float32 [rows, P]      1 where there is a pair
  reference   float32 [rows, P, 2]   log-probabilities of both answers under the reference
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from data.batch import Batch, empty_batch
from data.curate import Curated, Dropped
from data.pair_batches import to_batch
from data.pairs import Pair

DIMENSION = "preference"
_KEYS = (*empty_batch(0, 0), "real")


@dataclasses.dataclass(frozen=True)
class Preference(Pair):
  """A pair whose `chosen` is the better answer, by the one dimension "preference".

  `reference` has the log-probabilities of both answers under the reference policy, in nats, summed
  over their tokens.
  """

  reference: tuple[float, float] = (0.0, 0.0)


def preferred(curated: Curated, weights: Mapping[str, float]) -> Curated:
  """Pairs as preferences, with their sides changed where `rejected` is the better one.

  Better is the weighted sum over the dimensions that are rated: sign * strength, or the sign alone
  of a label without a strength. A sum of 0 is a tie, which says nothing here, and is dropped.
  """
  kept, dropped = [], list(curated.dropped)
  for pair in curated.kept:
    total = sum(
      weights[name] * sign * (pair.strengths[name] or 1.0) for name, sign in pair.signs.items()
    )
    if total == 0:
      dropped.append(Dropped(pair.source, pair.place, "tie", "neither answer is the better one"))
      continue
    fields = {field.name: getattr(pair, field.name) for field in dataclasses.fields(Pair)}
    fields |= {"signs": {DIMENSION: 1}, "strengths": {DIMENSION: abs(total)}}
    if total < 0:
      fields |= {"chosen": pair.rejected, "rejected": pair.chosen}
    kept.append(Preference(**fields))
  return Curated(kept, dropped, curated.short_items)


def preference_batch(rows: Sequence[Sequence[Preference]], seq_len: int, max_pairs: int) -> Batch:
  """The arrays of rows of preferences."""
  batch = to_batch(rows, (DIMENSION,), seq_len, max_pairs)
  reference = np.zeros((len(rows), max_pairs, 2), np.float32)
  for r, row in enumerate(rows):
    for p, pair in enumerate(row):
      reference[r, p] = pair.reference
  return {name: batch[name] for name in _KEYS} | {"reference": reference}

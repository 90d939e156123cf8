"""Loss and bits per byte of held-out documents."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from data.heldout import EvaluationSet
from train.config import PretrainConfig
from train.losses import next_token_loss
from train.placement import from_whole


@dataclasses.dataclass(frozen=True)
class Score:
  """The mean NLL in nats a token, and bits per byte = NLL in bits of all tokens / UTF-8 bytes."""

  loss: float
  bits_per_byte: float

  def __str__(self) -> str:
    return f"loss {self.loss:.4f}, {self.bits_per_byte:.4f} bits per byte"


def make_scorer(config: PretrainConfig, mesh: Mesh) -> Callable[[dict, EvaluationSet], Score]:
  """Makes `score(params, evaluation set)`; compiled at the first call, then reused."""
  loss = functools.partial(next_token_loss, config=config.model, compute=config.compute, z_loss=0.0)
  key = jax.random.key(0)  # nothing is drawn from it

  @jax.jit
  def nll_sum(params, batch):
    return loss(params, batch, key)[0]

  def score(params: dict, held_out: EvaluationSet) -> Score:
    # One batch at a time: independent programs with collectives, in flight together, deadlock
    # where several virtual devices share a host's cores.
    nll = math.fsum(
      float(nll_sum(params, from_whole(batch, mesh)))
      for batch in _batches(held_out.batch, config.eval.batch_size)
    )
    return Score(nll / held_out.num_tokens, nll / math.log(2) / held_out.num_bytes)

  return score


def _batches(rows: dict[str, np.ndarray], size: int) -> Iterator[dict[str, np.ndarray]]:
  for first in range(0, len(rows["tokens"]), size):
    yield {name: array[first : first + size] for name, array in rows.items()}

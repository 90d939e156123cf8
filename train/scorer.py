"""Log-likelihoods of requests: trees packed into few shapes, shared prefixes computed once."""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from model.config import ComputeConfig, ModelConfig
from model.score import Prefix, Trees, make_prefix, no_prefix, target_logprobs, tree_states
from model.sharding import batch_sharding, batch_shards

SHORTEST_ROW = 256  # tokens; longer rows are twice, four times, ... as long
SHORTEST_PREFIX = 32  # a shorter one is computed with every item
SOURCES = (64, 512)  # states whose logits are computed together
TARGETS_PER_SOURCE = 4


@dataclasses.dataclass(frozen=True)
class Request:
  """A text whose end is scored.

  Attributes:
    ids: int32 [n], context and continuation.
    scored: how many of the last ids are the continuation; 1 to n - 1.
  """

  ids: np.ndarray
  scored: int


@dataclasses.dataclass(frozen=True)
class Group:
  """Items that begin alike, such as those of a subject with its few-shot examples.

  Attributes:
    items: each a sequence of requests, such as one for each choice of a question.
  """

  items: Sequence[Sequence[Request]]


@dataclasses.dataclass(frozen=True)
class LogLikelihood:
  """Of a continuation: the sum in nats, its tokens, and whether each was the likeliest."""

  sum: float
  tokens: int
  greedy: bool


@dataclasses.dataclass(frozen=True)
class _Tree:
  """An item without the prefix: `sources` and `targets` of each request are [scored]."""

  tokens: np.ndarray
  positions: np.ndarray
  branches: np.ndarray
  sources: list[np.ndarray]
  targets: list[np.ndarray]


def common_prefix(sequences: Sequence[np.ndarray]) -> int:
  """How many ids all of them begin with."""
  first, length = sequences[0], min(len(ids) for ids in sequences)
  for ids in sequences[1:]:
    different = np.flatnonzero(first[:length] != ids[:length])
    length = int(different[0]) if len(different) else length
  return length


def shared_prefix(items: Sequence[Sequence[Request]]) -> int:
  """The length of the prefix to compute once for all `items`; 0 where that is not worth it.

  It ends before the first state that predicts a scored token.
  """
  if len(items) < 2:
    return 0
  requests = [request for item in items for request in item]
  length = min(
    common_prefix([request.ids for request in requests]),
    min(len(request.ids) - request.scored - 1 for request in requests),
  )
  return length if length >= SHORTEST_PREFIX else 0


def make_tree(item: Sequence[Request], prefix: int) -> _Tree:
  """The trunk and branches of an item whose first `prefix` tokens are computed elsewhere."""
  inputs = [request.ids[:-1] for request in item]
  trunk = common_prefix(inputs)
  parts, sources, targets = [inputs[0][prefix:trunk]], [], []
  positions, branches = [np.arange(prefix, trunk)], [np.zeros(trunk - prefix)]
  size = trunk - prefix
  for number, (request, ids) in enumerate(zip(item, inputs, strict=True), start=1):
    # Index in the tree of the state at each position of this request, from `prefix` on.
    branch = ids[trunk:]
    index = np.concatenate([np.arange(trunk - prefix), size + np.arange(len(branch))])
    sources.append(index[len(index) - request.scored :].astype(np.int32))
    targets.append(request.ids[len(request.ids) - request.scored :])
    parts.append(branch)
    positions.append(np.arange(trunk, len(ids)))
    branches.append(np.full(len(branch), number))
    size += len(branch)
  joined = (np.concatenate(x).astype(np.int32) for x in (parts, positions, branches))
  return _Tree(*joined, sources, targets)


def pack(sizes: Sequence[int], budget: int) -> Iterator[tuple[int, list[list[int]]]]:
  """(row length, rows of indices) of batches of at most `budget` tokens, where one tree allows it.

  A row begins with the largest tree that is left, and is filled with the largest that still fit.
  """
  left = sorted(range(len(sizes)), key=lambda i: sizes[i])
  ascending = [sizes[i] for i in left]
  length, rows = 0, []
  while left:
    needed = SHORTEST_ROW
    while needed < ascending[-1]:
      needed *= 2
    if rows and (needed != length or len(rows) >= max(1, budget // length)):
      yield length, rows
      rows = []
    length, room, row = needed, needed, []
    while (at := bisect.bisect_right(ascending, room) - 1) >= 0:
      row.append(left.pop(at))
      room -= ascending.pop(at)
    rows.append(row)
  if rows:
    yield length, rows


def _ladder(size: int, smallest: int) -> int:
  """The smallest of smallest * (1, 1.5, 2, 3, 4, 6, ...) that is at least `size`."""
  step = smallest
  while step < size:
    if 3 * step // 2 >= size:
      return 3 * step // 2
    step *= 2
  return step


class Scorer:
  """Scores requests by weights of one architecture; compiled for a shape at its first use.

  Args:
    mesh: rows are split over its batch axes.
    budget: tokens of a batch.
  """

  def __init__(self, config: ModelConfig, compute: ComputeConfig, mesh: Mesh, budget: int):
    self._mesh, self._budget = mesh, budget
    self._none = no_prefix(config, compute)
    everywhere = NamedSharding(mesh, PartitionSpec())
    options = {"config": config, "compute": compute}
    self._prefix = jax.jit(functools.partial(make_prefix, **options))
    self._states = jax.jit(lambda *args: tree_states(*args, **options)[0])
    self._logprobs = jax.jit(
      functools.partial(target_logprobs, **options), out_shardings=everywhere
    )

  def batches(self, params: dict, group: Group) -> Iterator[list[tuple[int, list[LogLikelihood]]]]:
    """(index of the item, one result for each of its requests) of every batch that is computed.

    Call it under `jax.set_mesh(mesh)`, with weights sharded by `model.sharding.param_shardings`.
    """
    prefix_length = shared_prefix(group.items)
    prefix = self._none
    if prefix_length:
      ids = group.items[0][0].ids[:prefix_length]
      tokens = np.zeros(_ladder(prefix_length, 64), np.int32)
      tokens[:prefix_length] = ids
      prefix = self._prefix(params, tokens, np.int32(prefix_length))
    trees = [make_tree(item, prefix_length) for item in group.items]
    for length, rows in pack([len(tree.tokens) for tree in trees], self._budget):
      yield self._batch(params, prefix, trees, length, rows)

  def _batch(self, params, prefix: Prefix, trees: Sequence[_Tree], length: int, rows: list):
    shards = batch_shards(self._mesh)
    count = shards
    while count < len(rows):
      count *= 2
    arrays = {f.name: np.zeros((count, length), np.int32) for f in dataclasses.fields(Trees)}
    starts = {}
    for row, indices in enumerate(rows):
      start = 0
      for number, index in enumerate(indices, start=1):
        tree = trees[index]
        at = slice(start, start + len(tree.tokens))
        arrays["items"][row, at] = number
        for name in ("tokens", "positions", "branches"):
          arrays[name][row, at] = getattr(tree, name)
        starts[index] = row * length + start
        start += len(tree.tokens)
    sharding = batch_sharding(self._mesh)
    batch = Trees(**{name: jax.device_put(array, sharding) for name, array in arrays.items()})
    hidden_BLD = self._states(params, prefix, batch)
    sources = [starts[i] + s for i in starts for s in trees[i].sources]
    targets = [t for i in starts for t in trees[i].targets]
    results = iter(self._sums(params, hidden_BLD, sources, targets))
    return [(index, [next(results) for _ in trees[index].sources]) for index in starts]

  def _sums(
    self, params, hidden_BLD: jax.Array, sources: list[np.ndarray], targets: list[np.ndarray]
  ) -> list[LogLikelihood]:
    flat = np.concatenate(sources), np.concatenate(targets)
    logprobs, greedy = self._targets(params, hidden_BLD, *flat)
    bounds = np.cumsum([0] + [len(s) for s in sources])
    return [
      LogLikelihood(
        float(np.sum(logprobs[a:b], dtype=np.float64)), int(b - a), bool(np.all(greedy[a:b]))
      )
      for a, b in itertools.pairwise(bounds)
    ]

  def _targets(self, params, hidden_BLD: jax.Array, sources: np.ndarray, targets: np.ndarray):
    """Log-probability and greediness of every target, computed some sources at a time."""
    unique, slots = np.unique(sources, return_inverse=True)
    order = np.argsort(slots, kind="stable")
    logprobs = np.zeros(len(targets), np.float32)
    greedy = np.zeros(len(targets), bool)
    done = 0
    while done < len(order):
      first = slots[order[done]]
      left = len(unique) - first
      size = next((s for s in SOURCES if s >= left), SOURCES[-1])
      capacity = size * TARGETS_PER_SOURCE
      taken = order[done : done + capacity]
      taken = taken[slots[taken] < first + size]
      chosen = unique[first : first + size]
      out = self._logprobs(
        params,
        hidden_BLD,
        _padded(chosen, size),
        _padded(slots[taken] - first, capacity),
        _padded(targets[taken], capacity),
      )
      logprobs[taken], greedy[taken] = (np.asarray(x)[: len(taken)] for x in out)
      done += len(taken)
    return logprobs, greedy


def _padded(values: np.ndarray, size: int) -> jax.Array:
  return jnp.asarray(np.pad(values, (0, size - len(values))).astype(np.int32))

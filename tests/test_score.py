"""Scores with shared prefixes, trunks and branches equal those of each request by itself."""

import jax
import numpy as np
import pytest

from model.params import param_specs
from model.sharding import MeshConfig, make_mesh, param_shardings
from model.transformer import forward
from tests.build import compute_config, model_config, numpy_params
from train import scorer
from train.scorer import Group, Request, Scorer, make_tree, pack, shared_prefix

VOCAB, LENGTH = 48, 96


def requests(seed: int = 0) -> list[list[Request]]:
  """Items after a common prefix of 40: choices of one token, of several, and unequal texts."""
  rng = np.random.default_rng(seed)

  def ids(count):
    return rng.integers(0, VOCAB, count).astype(np.int32)

  prefix, items = ids(40), []
  for number in range(7):
    context = np.concatenate([prefix, ids(3 + 5 * number)])
    if number % 3 == 0:  # the same context, one token each, and so one of them the likeliest
      item = [Request(np.append(context, token).astype(np.int32), 1) for token in range(VOCAB)]
    elif number % 3 == 1:  # the same context, several tokens, one a prefix of another
      long = ids(6)
      item = [Request(np.concatenate([context, part]), len(part)) for part in (long, long[:3])]
    else:  # texts that part in the middle of what is scored
      first, second = (np.concatenate([context, ids(4)]) for _ in range(2))
      item = [Request(text, 9) for text in (first, second)]
    items.append(item)
  return items


def by_itself(params, items, config, compute) -> list[list[tuple[float, bool]]]:
  """The definition: log-softmax of a whole forward pass over each text alone."""
  texts = [request.ids[:-1] for item in items for request in item]
  rows = np.stack([np.pad(ids, (0, LENGTH - len(ids))) for ids in texts])
  positions = np.broadcast_to(np.arange(LENGTH), rows.shape)

  @jax.jit
  def logprobs(params, rows, positions):
    ones = np.ones(rows.shape, np.int32)
    return jax.nn.log_softmax(forward(params, rows, ones, positions, config, compute))

  table = iter(np.asarray(logprobs(params, rows, positions), np.float64))
  return [[_read(next(table), request) for request in item] for item in items]


def _read(logprobs, request) -> tuple[float, bool]:
  last = len(request.ids) - 1
  logprobs, targets = logprobs[last - request.scored : last], request.ids[-request.scored :]
  total = logprobs[np.arange(len(targets)), targets].sum()
  return total, bool((logprobs.argmax(-1) == targets).all())


@pytest.fixture(autouse=True)
def short_rows(monkeypatch):
  """Rows and chunks so small that several of each are needed."""
  monkeypatch.setattr(scorer, "SHORTEST_ROW", 32)
  monkeypatch.setattr(scorer, "SOURCES", (8, 16))


def score(model: dict, mesh_config: MeshConfig, devices: int, items) -> tuple[list, list]:
  config, compute = model_config(**model), compute_config()
  specs = param_specs(config)
  params = numpy_params(specs, 1)
  mesh = make_mesh(mesh_config, jax.devices()[:devices])
  expected = by_itself(params, items, config, compute)
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, param_shardings(specs, mesh))
    found = {}
    for batch in Scorer(config, compute, mesh, 128).batches(placed, Group(items)):
      found |= dict(batch)
  return [found[i] for i in range(len(items))], expected


def check(found, expected) -> None:
  for mine, theirs in zip(found, expected, strict=True):
    for result, (total, greedy) in zip(mine, theirs, strict=True):
      np.testing.assert_allclose(result.sum, total, rtol=2e-5, atol=2e-5)
      assert result.greedy == greedy
  assert {greedy for item in expected for _, greedy in item} == {True, False}


def test_every_request_scores_as_by_itself():
  items = requests()
  assert shared_prefix(items) == 40
  # The window reaches into the prefix from some tokens, and not from others.
  model = {"tie_embeddings": True, "qkv_bias": True, "logit_softcap": 30.0, "sliding_window": 12}
  check(*score(model | {"attention_softcap": 20.0}, MeshConfig(1, 1, 1, 1), 1, items))


def test_a_mesh_gives_the_scores_of_one_device():
  check(*score({}, MeshConfig(2, 2, 1, 2), 8, requests(2)))


def test_a_prefix_ends_before_the_first_scored_token():
  text = np.arange(40, dtype=np.int32)
  items = [[Request(text, 3)], [Request(text, 7)]]
  assert shared_prefix(items) == 40 - 7 - 1
  assert shared_prefix(items[:1]) == 0  # one item has nobody to share with
  tree = make_tree(items[0], 32)
  assert tree.positions.tolist() == list(range(32, 39))
  assert tree.sources[0].tolist() == [4, 5, 6]


def test_packing_holds_each_tree_once_within_its_rows():
  rng = np.random.default_rng(0)
  sizes = [int(n) for n in rng.integers(1, 100, 60)] + [700]
  seen = []
  for length, rows in pack(sizes, 128):
    assert len(rows) <= max(1, 128 // length)
    for row in rows:
      assert sum(sizes[i] for i in row) <= length
      seen += row
  assert sorted(seen) == list(range(len(sizes)))

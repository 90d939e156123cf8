"""Packing of whole examples, and batches that are a function of their number."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.examples import Buckets, Epochs, Example, ExampleLoader, Packed, pack, to_batch

ROWS, LENGTH, SEED = 4, 20, 3
BUCKETS = (5, 10, 20)


def examples(count=37, seed=0):
  rng = np.random.default_rng(seed)
  made = []
  for _ in range(count):
    size = int(rng.integers(2, 22))
    mask = rng.random(size) < 0.5
    made.append(Example(rng.integers(1, 90, size).astype(np.int32), mask))
  return made


def batches_of(made, buckets=()):
  lengths = [e.length for e in made]
  if buckets:
    return Buckets(lengths, buckets, ROWS, 5, SEED)
  return Packed(lengths, LENGTH, ROWS, 5, SEED)


def loader(made, buckets=(), cursors=None, index=0, count=1):
  batches = batches_of(made, buckets)
  return ExampleLoader(made, batches, host_index=index, host_count=count, cursors=cursors)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(1, 6))
def test_rows_hold_every_example_whole_and_once(lengths, most):
  rows = pack(lengths, 20, most)
  assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
  assert all(sum(lengths[i] for i in row) <= 20 and len(row) <= most for row in rows)


def test_packing_is_best_fit_and_refuses_what_does_not_fit():
  assert pack([12, 9, 8, 8, 3], 20, 9) == [[0, 2], [1, 3, 4]]
  assert pack([5, 5, 5], 20, 2) == [[0, 1], [2]]
  with pytest.raises(ValueError, match="takes 21 places"):
    pack([21], 20, 2)


def test_weights_are_the_masks_and_no_first_token_is_a_label():
  one = Example(np.array([7, 8, 9, 10], np.int32), np.array([True, False, True, True]))
  two = Example(np.array([3, 4], np.int32), np.array([False, True]))
  batch = to_batch([[one, two], []], 6)
  np.testing.assert_array_equal(batch["tokens"][0], [7, 8, 9, 3, 0, 0])
  np.testing.assert_array_equal(batch["targets"][0], [8, 9, 10, 4, 0, 0])
  np.testing.assert_array_equal(batch["loss_weights"][0], [0, 1, 1, 1, 0, 0])
  np.testing.assert_array_equal(batch["segment_ids"][0], [1, 1, 1, 2, 0, 0])
  assert not batch["loss_weights"][1].any()


def test_each_epoch_has_every_example_once_in_another_order():
  made = examples()
  lengths = [e.length for e in made]
  epochs = Epochs(lengths, LENGTH, 5, SEED)
  orders = []
  for epoch in range(3):
    rows = range(epoch * epochs.rows_an_epoch, (epoch + 1) * epochs.rows_an_epoch)
    seen = [i for number in rows for i in epochs.row(number)]
    assert sorted(seen) == list(range(len(made)))
    orders.append(seen)
  assert orders[0] != orders[1] != orders[2]
  assert Epochs(lengths, LENGTH, 5, SEED).row(5) == epochs.row(5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(1, 6))
def test_buckets_hold_every_example_once_an_epoch_in_one_budget(lengths, most):
  batches = Buckets(lengths, BUCKETS, ROWS, most, SEED)
  for epoch in range(2):
    seen = []
    for number in range(epoch * batches.batches_an_epoch, (epoch + 1) * batches.batches_an_epoch):
      length, rows = batches.batch(number)
      assert len(rows) * length == ROWS * LENGTH and any(rows)
      for row in rows:
        assert sum(lengths[i] for i in row) <= length and len(row) <= most
        # No shorter row would hold it.
        assert all(lengths[i] > n for i in row for n in BUCKETS[: BUCKETS.index(length)])
        seen += row
    assert sorted(seen) == list(range(len(lengths)))
  places = ROWS * LENGTH * batches.batches_an_epoch
  assert batches.filled == sum(lengths) / places


def test_batches_of_all_lengths_are_mixed_in_another_order_each_epoch():
  made = examples(200)
  batches = batches_of(made, BUCKETS)
  size = batches.batches_an_epoch
  orders = [[batches.batch(e * size + n)[0] for n in range(size)] for e in range(2)]
  assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]
  assert set(orders[0]) == set(BUCKETS)
  # Which examples come together is another in each epoch, too.
  rows = [{tuple(batches.batch(e * size + n)[1][0]) for n in range(size)} for e in range(2)]
  assert rows[0] != rows[1]
  assert batches_of(made, BUCKETS).batch(size + 1) == batches.batch(size + 1)


@pytest.mark.parametrize("buckets", [(), BUCKETS])
def test_batches_do_not_depend_on_hosts_or_restarts(buckets):
  made = examples()
  straight = loader(made, buckets)
  batches = [next(straight) for _ in range(19)]
  parts = [loader(made, buckets, index=i, count=2) for i in range(2)]
  for batch, _ in batches:
    halves = [next(part)[0] for part in parts]
    for name, array in batch.items():
      np.testing.assert_array_equal(np.concatenate([h[name] for h in halves]), array)
  resumed = loader(made, buckets, cursors=batches[5][1])
  for batch, cursors in batches[6:]:
    again, there = next(resumed)
    assert there == cursors
    np.testing.assert_array_equal(again["tokens"], batch["tokens"])
  for other in (loader, examples(seed=1)), (loader, made):
    with pytest.raises(ValueError, match="restore the files"):
      other[0](other[1], () if buckets else BUCKETS, cursors=batches[5][1])

"""Packing of whole examples, and batches that are a function of their number."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.examples import Epochs, Example, ExampleLoader, pack, to_batch

SIZES = {"batch_size": 4, "seq_len": 20}


def examples(count=37, seed=0):
  rng = np.random.default_rng(seed)
  made = []
  for _ in range(count):
    size = int(rng.integers(2, 22))
    mask = rng.random(size) < 0.5
    made.append(Example(rng.integers(1, 90, size).astype(np.int32), mask))
  return made


def loader(made, cursors=None, index=0, count=1, seed=3):
  epochs = Epochs([e.length for e in made], 20, 5, seed)
  return epochs, ExampleLoader(
    made, epochs, **SIZES, host_index=index, host_count=count, cursors=cursors
  )


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
  epochs, _ = loader(made)
  orders = []
  for epoch in range(3):
    rows = range(epoch * epochs.rows_an_epoch, (epoch + 1) * epochs.rows_an_epoch)
    seen = [i for number in rows for i in epochs.row(number)]
    assert sorted(seen) == list(range(len(made)))
    orders.append(seen)
  assert orders[0] != orders[1] != orders[2]
  again, _ = loader(made)
  assert again.row(5) == epochs.row(5)


def test_batches_do_not_depend_on_hosts_or_restarts():
  made = examples()
  _, straight = loader(made)
  batches = [next(straight) for _ in range(9)]
  parts = [loader(made, index=i, count=2)[1] for i in range(2)]
  for batch, _ in batches:
    halves = [next(part)[0] for part in parts]
    for name, array in batch.items():
      np.testing.assert_array_equal(np.concatenate([h[name] for h in halves]), array)
  _, resumed = loader(made, cursors=batches[5][1])
  for batch, cursors in batches[6:]:
    again, there = next(resumed)
    assert there == cursors
    np.testing.assert_array_equal(again["tokens"], batch["tokens"])
  with pytest.raises(ValueError, match="restore the files"):
    loader(examples(seed=1), cursors=batches[5][1])

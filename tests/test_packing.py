"""Packing and the layout of a batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batch import Segment, document_ids, stack_rows
from data.packing import Packer, split

SEQ_LEN = 16
LENGTHS = st.lists(st.integers(0, 3 * SEQ_LEN), max_size=60)


def pack(documents, seq_len, max_segments, open_bins):
  packer = Packer(seq_len, max_segments, open_bins)
  rows = [packer.add(s) for ids in documents for s in split(ids, seq_len)]
  return [row for row in rows if row] + packer.flush()


def documents_of(lengths):
  """Documents of distinct tokens, so that none can be mistaken for another."""
  token = iter(range(1, 10**9))
  return [document_ids([next(token) for _ in range(n)], eot=0) for n in lengths]


@given(LENGTHS, st.integers(1, 5), st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_rows_hold_every_token_once_and_keep_their_bounds(lengths, max_segments, open_bins):
  documents = documents_of(lengths)
  rows = pack(documents, SEQ_LEN, max_segments, open_bins)
  for row in rows:
    assert 1 <= len(row) <= max_segments
    assert sum(segment.length for segment in row) <= SEQ_LEN
  targets = np.concatenate([s.ids[1:] for row in rows for s in row] or [[]])
  expected = np.concatenate([ids[1:] for ids in documents] or [[]])
  np.testing.assert_array_equal(np.sort(targets), np.sort(expected))


@given(LENGTHS)
@settings(max_examples=100, deadline=None)
def test_only_documents_longer_than_a_row_are_cut(lengths):
  rows = pack(documents_of(lengths), SEQ_LEN, max_segments=8, open_bins=4)
  cuts = [s for row in rows for s in row if s.ids[0] != 0 or s.ids[-1] != 0]
  longer = sum(length + 1 > SEQ_LEN for length in lengths)
  assert sum(s.ids[0] == 0 for s in cuts) == longer
  for ids in documents_of(lengths):
    parts = list(split(ids, SEQ_LEN))
    assert len(parts) == -(-(len(ids) - 1) // SEQ_LEN)
    assert all(part.length == SEQ_LEN for part in parts[:-1])


def test_the_fullest_bin_is_emitted_and_the_best_fit_filled():
  packer = Packer(seq_len=10, max_segments=9, open_bins=2)
  six, seven, three, five = (Segment(np.arange(n + 1)) for n in (6, 7, 3, 5))
  assert packer.add(six) is None
  assert packer.add(seven) is None
  assert packer.add(three) == [seven, three]  # fits both; leaves no room in the fuller one
  assert packer.add(seven) is None
  assert packer.add(five) == [seven]  # fits none: the fullest goes, the older and emptier stays
  assert packer.flush() == [[six], [five]]


@pytest.mark.parametrize("seq_len", [2_048, 8_192])
@pytest.mark.parametrize(("open_bins", "max_segments"), [(64, 256), (64, 32)])
def test_rows_are_full_on_lengths_like_c4(seq_len, open_bins, max_segments):
  """With the bins of the recipe, and the segments of it and of the reference run."""
  # Log-normal with about the median and the mean of C4: 250 and 480 tokens.
  rng = np.random.default_rng(0)
  lengths = np.exp(rng.normal(np.log(250), 1.14, 20_000)).astype(int)
  packer = Packer(seq_len, max_segments, open_bins)
  segments = (s for n in lengths for s in split(np.zeros(n + 2, np.int32), seq_len))
  rows = [row for segment in segments if (row := packer.add(segment))]
  used = sum(segment.length for row in rows for segment in row)
  assert used / (seq_len * len(rows)) >= 0.995


def test_layout_of_a_row():
  first, second = document_ids([5, 6], eot=9), document_ids([7], eot=9)
  batch = stack_rows([[Segment(first), Segment(second, context=1)], []], seq_len=7)
  expected = {
    "tokens": [9, 5, 6, 9, 7, 0, 0],
    "targets": [5, 6, 9, 7, 9, 0, 0],
    "segment_ids": [1, 1, 1, 2, 2, 0, 0],
    "positions": [0, 1, 2, 0, 1, 0, 0],
    "loss_weights": [1, 1, 1, 0, 1, 0, 0],
  }
  assert list(batch) == list(expected)
  for key, row in expected.items():
    np.testing.assert_array_equal(batch[key], [row, [0] * 7], err_msg=key)
    assert batch[key].dtype == (np.float32 if key == "loss_weights" else np.int32)

"""Prompts in rows that several of them share, of few shapes."""

from collections.abc import Sequence

import numpy as np

from model.decode import Packing

SMALLEST_BUCKET = 16  # tokens
WIDTHS = (64, 96, 128, 192, 256)  # of a row that is longer than its longest prompt


def share(sizes: Sequence[int], longest: int) -> list[list[int]]:
  """Indices of prompts of so many tokens, by row: the fewest tokens, padding included.

  Args:
    longest: tokens that a row may have.
  """
  least = bucket(max(sizes))
  widths = [least, *(width for width in WIDTHS if least < width <= longest)]
  found = [first_fit(sizes, width) for width in widths]
  return min(
    found, key=lambda rows: len(rows) * bucket(max(sum(sizes[i] for i in r) for r in rows))
  )


def first_fit(sizes: Sequence[int], width: int) -> list[list[int]]:
  """Indices by row, the longest prompts first, each in the first row with room for it."""
  rows: list[list[int]] = []
  room: list[int] = []
  for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
    row = next((row for row, left in enumerate(room) if sizes[index] <= left), len(rows))
    if row == len(rows):
      rows.append([])
      room.append(width)
    rows[row].append(index)
    room[row] -= sizes[index]
  return rows


def pack(
  rows: Sequence[Sequence[Sequence[int]]], height: int, size: int
) -> tuple[np.ndarray, Packing]:
  """The tokens of rows of prompts [R,W], and where the prompts lie in them [B,L], in order.

  R is `height` and B `size`, with rows and prompts of nothing behind what there is.
  """
  prompts = [(number, prompt) for number, row in enumerate(rows) for prompt in row]
  width = bucket(max(sum(map(len, row)) for row in rows))
  tokens, segments, positions = (np.zeros((height, width), np.int32) for _ in range(3))
  places = np.zeros((size, bucket(max(len(prompt) for _, prompt in prompts))), np.int32)
  ends, counts = [0] * len(rows), [0] * len(rows)
  for index, (number, prompt) in enumerate(prompts):
    counts[number] += 1
    inside = slice(ends[number], ends[number] + len(prompt))
    tokens[number, inside], segments[number, inside] = prompt, counts[number]
    positions[number, inside] = np.arange(len(prompt))
    places[index, : len(prompt)] = number * width + np.arange(inside.start, inside.stop)
    ends[number] = inside.stop
  return tokens, Packing(segments_RW=segments, positions_RW=positions, places_BL=places)


def bucket(n: int) -> int:
  """The smallest of 16, 32, 48, 64, 96, 128, 192, ... that is at least `n`."""
  size = power_of_two(n, SMALLEST_BUCKET)
  shorter = 3 * size // 4
  return shorter if n <= shorter and shorter % SMALLEST_BUCKET == 0 else size


def power_of_two(n: int, least: int) -> int:
  """The smallest power of two that is at least `n`, but not under `least`."""
  return max(least, 1 << (n - 1).bit_length())

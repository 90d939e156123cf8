"""A document's words, their hashes, and MinHash signatures of them."""

import hashlib
import random

import numpy as np
import pytest

from configs import filters
from data import minhash, words
from data.config import parse

SIZE = parse(minhash.MinHash, filters.get_config().minhash.to_dict())
VOCABULARY = [f"{a}{b}" for a in ("river", "stone", "cloud", "grass") for b in "abcdefghijklmnopq"]


def test_lengths_and_flags_of_words():
  split = words.split("Don't stop, it costs 3.50 €!\n\n“Why…?” 日本 x2 �")
  text = ["Do", "n't", "stop", ",", "it", "costs", "3.50", "€", "!"]
  text += ["“", "Why", "…", "?", "”", "日本", "x2", "�"]
  assert split.lengths.tolist() == [len(word) for word in text]
  flags = {
    words.SYMBOL: {",", "!", "“", "…", "?", "”"},
    words.ALPHABETIC: {"Do", "n't", "stop", "it", "costs", "Why", "日本", "x2"},
    words.ENDS_SENTENCE: {"!", "?"},
    words.PUNCTUATION: {",", "!", "“", "…", "?", "”"},
  }
  for flag, expected in flags.items():
    assert {word for word, bits in zip(text, split.flags, strict=True) if bits & flag} == expected
  assert split.hashes.tolist() == words.hashes_of(text).tolist()


def test_hashes_are_the_same_everywhere():
  (value,) = words.hashes_of(("word",)).tolist()
  assert value == int.from_bytes(hashlib.blake2b(b"word", digest_size=8).digest(), "little")


def test_words_do_not_depend_on_what_was_split_before():
  texts = [" ".join(random.Random(i).choices(VOCABULARY, k=50)) for i in range(20)]
  first = [words.split(text).hashes.tolist() for text in texts]
  words.forget()
  assert [words.split(text).hashes.tolist() for text in reversed(texts)] == first[::-1]


def test_tables_of_runs_stay_small(monkeypatch):
  monkeypatch.setattr(words, "_MAX_REMEMBERED", 8)
  words.forget()
  text = " ".join(f"run{i}" for i in range(100))
  assert len(set(words.split(text).hashes.tolist())) == 100
  assert len(words._WORDS) <= 8
  words.forget()


@pytest.mark.parametrize(
  ("line", "count"),
  [
    ("", 0),
    ("One", 1),
    ("One. Two? Three!", 3),
    ("He said: “Go!” Then he went.", 2),
    ("Mr. Smith lives in the U.S. today.", 1),
    ("... and so on.", 1),
    (". Start", 2),
    ("...", 1),
    ("Wait?!! (Really.) Yes", 3),
  ],
)
def test_sentences(line, count):
  assert words.sentences(line) == count


def test_runs_of_neighbours():
  hashes = words.hashes_of(("a", "b", "c", "a", "b", "c", "d"))
  for width in range(1, 9):
    runs = words.runs_of(hashes, width)
    assert len(runs) == max(len(hashes) - width + 1, 0)
    same = [hashes[i : i + width].tolist() for i in range(len(runs))]
    assert [[a == b for a in runs] for b in runs] == [[a == b for a in same] for b in same]
  assert words.runs_of(hashes[:2], 2) != words.runs_of(hashes[1::-1], 2)  # order counts


@pytest.mark.parametrize(
  "variant",
  [
    "the CAFÉ had 42 rooms, and 7 stairs",
    "The cafe had 1,000 rooms and 3.5 stairs!",
    "the cafe\thad 0 rooms -- and\n0 (stairs).",
  ],
)
def test_normalized_words_ignore_what_near_duplicates_differ_by(variant):
  same = words.normalized("the cafe had 0 rooms and 0 stairs")
  np.testing.assert_array_equal(words.normalized(variant), same)


def test_shingles_of_short_texts():
  assert len(minhash.shingles("one two three four five six", SIZE)) == 2
  assert len(minhash.shingles("one two", SIZE)) == 1
  assert minhash.shingles("...", SIZE) != minhash.shingles("!", SIZE)  # both without words
  assert minhash.signature(minhash.shingles("", SIZE), SIZE).shape == (14, 8)


def test_signature_is_the_least_of_each_hash():
  shingles = minhash.shingles(" ".join(random.Random(0).choices(VOCABULARY, k=900)), SIZE)
  generator = np.random.Generator(np.random.Philox(key=0))
  parameters = generator.integers(0, 2**64, (2, 112), dtype=np.uint64).tolist()
  expected = [
    min(((a | 1) * int(shingle) + b) % 2**64 for shingle in shingles)
    for a, b in zip(*parameters, strict=True)
  ]
  assert minhash.signature(shingles, SIZE).ravel().tolist() == expected


def test_signature_depends_on_the_set_alone():
  shingles = minhash.shingles(" ".join(random.Random(1).choices(VOCABULARY, k=400)), SIZE)
  mixed = np.random.default_rng(0).permutation(np.concatenate([shingles, shingles[:99]]))
  np.testing.assert_array_equal(minhash.signature(shingles, SIZE), minhash.signature(mixed, SIZE))


@pytest.mark.parametrize("similarity", [0.2, 0.5, 0.9])
def test_share_of_equal_hashes_is_the_similarity(similarity):
  rng = np.random.default_rng(0)
  size = minhash.MinHash(n_grams=5, bands=1024, rows=4)
  common = round(600 * similarity)
  a, b = rng.integers(0, 2**64, (2, 600), dtype=np.uint64)
  a, b = a[: common + (600 - common) // 2], np.concatenate([a[:common], b[common:]])
  b = b[: common + (600 - common) // 2]
  true = common / (len(a) + len(b) - common)
  equal = (minhash.signature(a, size) == minhash.signature(b, size)).mean()
  assert abs(equal - true) < 4 * np.sqrt(true * (1 - true) / 4096)


def test_bands_find_a_pair_as_often_as_their_formula_says():
  rng = np.random.default_rng(1)
  trials, found = 400, 0
  for _ in range(trials):
    values = rng.integers(0, 2**64, 90, dtype=np.uint64)
    one, two = values[:80], np.concatenate([values[:72], values[80:88]])  # 72 of 88
    bands = minhash.signature(one, SIZE) == minhash.signature(two, SIZE)
    found += bands.all(axis=1).any()
  expected = 1 - (1 - (72 / 88) ** 8) ** 14
  assert abs(found / trials - expected) < 4 * np.sqrt(expected * (1 - expected) / trials)


@pytest.mark.parametrize("name", ["n_grams", "bands", "rows"])
def test_sizes_are_checked(name):
  with pytest.raises(ValueError, match=f"minhash.{name}=0 must be at least 1"):
    parse(minhash.MinHash, {"n_grams": 5, "bands": 14, "rows": 8} | {name: 0})


@pytest.mark.parametrize(
  "piece", ["x", "-", "a-", "'", ".", "x.", "1.", "(", "http://a.", "é", "a,b", "…"]
)
def test_an_absurd_run_takes_linear_time(piece):
  text = piece * (100_000 // len(piece))
  assert int(words.split(text).lengths.sum()) == len(text)
  words.normalized(text)

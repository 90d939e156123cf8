"""Continuous batching: who shares the slots, and when, changes no output."""

import dataclasses

import jax
import numpy as np
import pytest

from model import batching
from model.batching import Batcher, Request, cut_at
from model.decode import prepare
from model.generate import request_keys, rollout
from model.params import param_specs
from model.prompt_rows import bucket, pack, share
from model.sampling import SamplingConfig, pad_ids, settings
from model.sharding import MeshConfig, make_mesh
from tests.build import compute_config, model_config, numpy_params

CONFIG, COMPUTE = model_config(sliding_window=9), compute_config()
WEIGHTS = prepare(numpy_params(param_specs(CONFIG), 3), CONFIG, COMPUTE)
LENGTH = 40
KINDS = (
  SamplingConfig(0.0, 1.0),
  SamplingConfig(1.0, 0.9),
  SamplingConfig(1.3, 0.8, top_k=20, repetition_penalty=1.3, presence_penalty=0.4),
  SamplingConfig(0.8, 1.0, min_tokens=4, forbidden=(4, 9)),
)


def spell(ids) -> str:
  return "".join("abcdefg"[i % 7] * (1 + i % 3) for i in ids)


def requests(count: int = 11) -> list[Request]:
  rng = np.random.default_rng(1)
  return [
    Request(
      number=number,
      prompt=tuple(rng.integers(0, CONFIG.vocab_size, rng.integers(1, 20)).tolist()),
      max_tokens=int(rng.integers(1, 18)),
      sampling=KINDS[number % len(KINDS)],
      stop_ids=(3, 7, 11),
      seed=5,
    )
    for number in range(count)
  ]


def batcher(slots: int, like, chunk: int = 4) -> Batcher:
  return Batcher(
    WEIGHTS, CONFIG, COMPUTE, slots=slots, length=LENGTH, like=like, chunk=chunk, decode=spell
  )


def alone(request: Request, like) -> tuple[tuple[int, ...], np.ndarray]:
  """Tokens and log-probs by one rollout, whose prompt is not padded to any bucket."""
  out = rollout(
    WEIGHTS,
    np.pad(np.array([request.prompt], np.int32), ((0, 0), (0, 20 - len(request.prompt)))),
    np.array([len(request.prompt)], np.int32),
    request_keys(jax.random.key(request.seed), np.array([request.number])),
    settings([request.sampling], CONFIG.vocab_size, [r.sampling for r in like]),
    pad_ids([request.stop_ids], CONFIG.vocab_size),
    max_tokens=18,
    config=CONFIG,
    compute=COMPUTE,
  )
  count = min(int(out.counts_B[0]), request.max_tokens)
  return tuple(out.tokens_BT[0, :count].tolist()), np.asarray(out.log_probs_BT[0, :count])


@pytest.fixture(scope="module")
def together():
  queue = requests()
  return {done.number: done for done in batcher(4, queue).run(queue)}


def test_every_request_comes_to_what_it_comes_to_alone(together):
  queue = requests()
  assert sorted(together) == list(range(len(queue)))
  for request in queue:
    tokens, log_probs = alone(request, queue)
    done = together[request.number]
    assert done.tokens == tokens, request
    np.testing.assert_allclose(done.log_probs, log_probs, atol=1e-4)
    assert (done.finish_reason == "stop") == (tokens[-1] in request.stop_ids)
    assert done.text == spell(t for t in tokens if t not in request.stop_ids)
  reasons = [done.finish_reason for done in together.values()]
  assert "stop" in reasons and "length" in reasons
  assert any(len(done.tokens) > 4 for done in together.values())


@pytest.mark.parametrize(
  ("slots", "chunk", "order"), [(2, 3, -1), pytest.param(8, 16, 1, marks=pytest.mark.slow)]
)
def test_neither_slots_nor_chunks_nor_the_order_matter(together, slots, chunk, order):
  queue = requests()
  for done in batcher(slots, queue, chunk).run(queue[::order]):
    assert done.tokens == together[done.number].tokens
    np.testing.assert_allclose(done.log_probs, together[done.number].log_probs, atol=1e-4)


@pytest.mark.slow
def test_a_mesh_does_not_matter(together):
  queue = requests()
  with jax.set_mesh(make_mesh(MeshConfig(2, 2, 1, 2))):
    for done in batcher(3, queue).run(queue):  # rounded up to four
      assert done.tokens == together[done.number].tokens


def test_a_stop_string_ends_a_request_across_tokens_and_frees_its_slot(together):
  queue = requests()
  number = max(together, key=lambda n: len(together[n].text))
  text = together[number].text
  string = text[5:9]
  stopping = [dataclasses.replace(r, stop_strings=("zz", string), max_tokens=17) for r in queue]
  found = {done.number: done for done in batcher(2, stopping).run(stopping)}
  done = found[number]
  assert (done.finish_reason, done.stop) == ("stop", string)
  assert done.text == text[: text.index(string)]
  assert string in spell(done.tokens) and string not in spell(done.tokens[:-1])
  assert len(done.log_probs) == len(done.tokens)
  assert len(found) == len(queue)


def test_the_first_stop_string_in_the_text_counts():
  request = dataclasses.replace(requests()[0], stop_strings=("bc", "ab", "abc"), stop_ids=(3,))
  letters = "xabcy"
  decode = lambda ids: "".join(letters[i] for i in ids)  # noqa: E731
  assert cut_at([0, 1, 2, 4], request, decode) == (3, "x", "ab")
  assert cut_at([0, 1, 4], request, decode) is None
  assert cut_at([0, 2, 3], request, decode) is None  # the stop id spells nothing


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"prompt": ()}, "request 0 has 0 tokens"),
    ({"prompt": (1,) * 40}, "request 0 has a prompt of 40 tokens; the context of 40 tokens"),
    ({"prompt": (48,)}, "request 0 has a token outside the vocabulary of 48"),
    ({"max_tokens": 0}, "max_tokens=0"),
    ({"sampling": SamplingConfig(1.0, 1.0, min_p=0.1)}, "sample.min_p is on in a request"),
    ({"stop_ids": (1, 2, 3, 4)}, "a request has 4 ids in a list, and 3 at most were foreseen"),
  ],
)
def test_a_request_that_cannot_go_on_is_refused(changes, message):
  queue = requests()
  with pytest.raises(ValueError, match=message):
    batcher(2, queue).submit(dataclasses.replace(queue[0], **changes))


def test_a_bucket_is_half_as_long_again_as_its_prompt_at_most():
  sizes = [bucket(n) for n in range(1, 1_000)]
  assert sorted(set(sizes)) == [16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
  assert all(n <= size <= max(16, n + 15, 1.5 * n) for n, size in enumerate(sizes, start=1))


def test_a_cache_that_grows_changes_no_output(monkeypatch):
  monkeypatch.setattr(batching, "SHORTEST", 16)
  (request,) = (dataclasses.replace(requests()[0], prompt=(1, 2), max_tokens=30, stop_ids=()),)
  like = dataclasses.replace(request, stop_ids=(3,))
  (done,) = batcher(1, [like]).run([request])
  out = rollout(
    WEIGHTS,
    np.array([[1, 2]], np.int32),
    np.array([2], np.int32),
    request_keys(jax.random.key(5), np.array([0])),
    settings([request.sampling], CONFIG.vocab_size),
    None,
    max_tokens=30,
    config=CONFIG,
    compute=COMPUTE,
  )
  assert done.tokens == tuple(out.tokens_BT[0].tolist())
  np.testing.assert_allclose(done.log_probs, out.log_probs_BT[0], atol=1e-4)


def test_prompts_that_share_rows_are_whole_and_apart():
  rng = np.random.default_rng(0)
  prompts = [rng.integers(1, 48, n).tolist() for n in (90, 3, 40, 64, 1, 17, 30, 90)]
  rows = share([len(p) for p in prompts], 1_000)
  assert sorted(i for row in rows for i in row) == list(range(len(prompts)))
  assert all(sum(len(prompts[i]) for i in row) <= 96 for row in rows)
  tokens, packing = pack([[prompts[i] for i in row] for row in rows], 4, 9)
  assert tokens.shape == packing.segments_RW.shape == (4, 96)
  assert np.count_nonzero(packing.segments_RW) == sum(map(len, prompts))
  for index, i in enumerate(i for row in rows for i in row):
    places = packing.places_BL[index, : len(prompts[i])]
    np.testing.assert_array_equal(tokens.reshape(-1)[places], prompts[i])
    np.testing.assert_array_equal(packing.positions_RW.reshape(-1)[places], np.arange(len(places)))
    assert len({(at // 96, packing.segments_RW.reshape(-1)[at]) for at in places.tolist()}) == 1
  assert share([20, 20], 64) == [[0, 1]]
  assert share([20, 20], 40) == [[0], [1]]  # a row is no longer than the context


def test_a_prompt_that_nearly_fills_the_context_ends_there():
  queue = [dataclasses.replace(requests()[0], prompt=(1,) * 38, max_tokens=9, stop_ids=(47,))]
  (done,) = batcher(1, queue).run(queue)
  assert (len(done.tokens), done.finish_reason) == (2, "length")

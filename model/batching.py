"""Continuous batching: requests enter and leave the slots of one decoding program.

`Batcher` owns the slots. Its requests are read in groups of few shapes (a power of two of rows, by
a power of two of tokens or three quarters of one), and then all slots go on together, several
tokens a dispatch. A request's random numbers depend on its seed, its number and the step, never on
its slot or on the others.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np

from model.config import ComputeConfig, ModelConfig
from model.decode import Cache
from model.generate import Requests, Slots, advance, empty_slots, start
from model.sampling import SamplingConfig, pad_ids, settings
from model.sharding import batch_shards

SMALLEST_BUCKET = 16  # tokens of a prompt
Decode = Callable[[Sequence[int]], str]


@dataclasses.dataclass(frozen=True)
class Request:
  """A prompt and how it goes on.

  Attributes:
    number: distinguishes its random numbers and names it in what comes back.
    prompt: ids, at least one.
    max_tokens: at most so many new tokens; fewer where the slots' length leaves fewer.
    sampling: how tokens are chosen.
    stop_ids: tokens that end it; the one that did is counted, and is not in the text.
    stop_strings: texts that end it, wherever tokens part them; they are not in the text.
    seed: of its random numbers.
  """

  number: int
  prompt: tuple[int, ...]
  max_tokens: int
  sampling: SamplingConfig
  stop_ids: tuple[int, ...] = ()
  stop_strings: tuple[str, ...] = ()
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Completion:
  """What a request came to.

  Attributes:
    number: of the request.
    tokens: new ids, a stop id included, up to the one that completes a stop string.
    text: of the tokens, without the stop id, and up to a stop string.
    log_probs, raw_log_probs: of the tokens, as `model.generate.Generated` has them.
    finish_reason: "stop" for a stop id or string, "length" where the tokens came to their limit.
    stop: the stop id or string that ended it, or None.
  """

  number: int
  tokens: tuple[int, ...]
  text: str
  log_probs: tuple[float, ...]
  raw_log_probs: tuple[float, ...]
  finish_reason: str
  stop: int | str | None


@dataclasses.dataclass
class _Running:
  """A request in a slot, with what it has so far."""

  request: Request
  tokens: list[int] = dataclasses.field(default_factory=list)
  log_probs: list[float] = dataclasses.field(default_factory=list)
  raw: list[float] = dataclasses.field(default_factory=list)


class Batcher:
  """Slots that requests enter and leave.

  Args:
    weights: of `model.decode.prepare`.
    config, compute: of the model. Call it under `jax.set_mesh` where there is one.
    slots: how many requests go on at a time; a multiple of the mesh's row shards.
    length: tokens of a prompt and its continuation together.
    like: requests may use the processors that these use, and as many forbidden and stop ids; a
      program is compiled for that choice, once.
    chunk: the most tokens between two looks at what came out.
    decode: the text of ids, without a special meaning for any.
    calibration: the temperature at which raw log-probs are reported; None for 1.
  """

  def __init__(
    self,
    weights: dict,
    config: ModelConfig,
    compute: ComputeConfig,
    *,
    slots: int,
    length: int,
    like: Sequence[Request],
    chunk: int,
    decode: Decode,
    calibration: float | None = None,
  ):
    mesh = jax.sharding.get_abstract_mesh()
    self._shards = 1 if mesh.empty else batch_shards(mesh)
    if slots < 1 or slots % self._shards:
      raise ValueError(f"slots={slots} must be a multiple of the {self._shards} row shards.")
    self._weights, self._config, self._compute = weights, config, compute
    self._length, self._chunk, self._decode = length, chunk, decode
    self._queue: collections.deque[Request] = collections.deque()
    self._running: list[_Running | None] = [None] * slots
    self._like, self._calibration = tuple(like), calibration
    self._requests = self._fit([like[0]] * slots)
    self._slots = _empty(slots, length, self._requests.rows.history, config, compute)

  @property
  def busy(self) -> bool:
    """Whether any request waits or goes on."""
    return bool(self._queue) or any(self._running)

  def submit(self, request: Request) -> None:
    """Queues a request.

    Raises:
      ValueError: its prompt is empty or leaves no room, it has an id outside the vocabulary, or it
        uses what no request of `like` does.
    """
    n, name = len(request.prompt), f"request {request.number}"
    if not n or request.max_tokens < 1:
      raise ValueError(f"{name} has {n} tokens and max_tokens={request.max_tokens}; both are >= 1.")
    if n >= self._length:
      raise ValueError(
        f"{name} has a prompt of {n} tokens; the context of {self._length} tokens must hold it and "
        "at least one more. Shorten the prompt, or raise the context."
      )
    if max(request.prompt) >= self._config.vocab_size or min(request.prompt) < 0:
      raise ValueError(f"{name} has a token outside the vocabulary of {self._config.vocab_size}.")
    self._fit([request])
    self._queue.append(request)

  def step(self) -> list[Completion]:
    """Fills free slots, goes on by up to `chunk` tokens, and returns what was completed."""
    done = self._admit()
    if not any(self._running):
      return done
    out = _advance(
      self._weights,
      self._slots,
      self._requests,
      until_free=np.array(bool(self._queue)),
      steps=self._chunk,
      config=self._config,
    )
    self._slots, *parts, counts_B = out
    columns = [np.asarray(x) for x in parts]
    counts_B, live_B = np.asarray(counts_B), np.asarray(self._slots.live_B)
    for slot, running in enumerate(self._running):
      if running is not None:
        self._take(running, [x[slot, : counts_B[slot]] for x in columns])
        done += self._finish(slot, bool(live_B[slot]))
    return done

  def run(self, requests: Iterable[Request]) -> Iterator[Completion]:
    """All of them, in the order in which they are completed.

    Those that may go on longest begin first, so that at the end few slots wait for one of them.
    """
    for request in sorted(requests, key=lambda request: -request.max_tokens):
      self.submit(request)
    while self.busy:
      yield from self.step()

  def _admit(self) -> list[Completion]:
    """Reads prompts of about one length into free slots; their first tokens may complete them."""
    done = []
    while self._queue and not all(self._running):
      free = [slot for slot, running in enumerate(self._running) if running is None]
      group = [self._queue.popleft() for _ in range(min(len(free), len(self._queue)))]
      rows = self._shards * _power_of_two(-(-len(group) // self._shards), 1)
      rows = min(rows, len(self._running))
      longest = max(len(request.prompt) for request in group)
      bucket = min(_bucket(longest), self._length)
      prompts = np.zeros((rows, bucket), np.int32)
      lengths = np.ones(rows, np.int32)
      places = np.full(rows, len(self._running), np.int32)  # outside: what fills up the rows
      for row, (slot, request) in enumerate(zip(free, group, strict=False)):
        lengths[row] = len(request.prompt)
        prompts[row, : lengths[row]] = request.prompt
        places[row] = slot
        self._running[slot] = _Running(request)
      entering = self._fit([*group, *[self._like[0]] * (rows - len(group))])
      self._slots, scores_B, raw_B = _enter(
        self._weights,
        self._slots,
        prompts,
        lengths,
        places,
        entering,
        config=self._config,
        compute=self._compute,
      )
      self._requests = _place(self._requests, entering, places)
      slots = free[: len(group)]
      tokens_B, live_B = np.asarray(self._slots.tokens_B), np.asarray(self._slots.live_B)
      scores_B, raw_B = np.asarray(scores_B), np.asarray(raw_B)
      for row, slot in enumerate(slots):
        self._take(self._running[slot], [tokens_B[[slot]], scores_B[[row]], raw_B[[row]]])
        done += self._finish(slot, bool(live_B[slot]))
    return done

  def _take(self, running: _Running, columns) -> None:
    for name, column in zip(("tokens", "log_probs", "raw"), columns, strict=True):
      getattr(running, name).extend(np.asarray(column).tolist())

  def _finish(self, slot: int, live: bool) -> list[Completion]:
    """The completion of the request in a slot, if it has one, whose slot is then free."""
    running = self._running[slot]
    request = running.request
    hit = cut_at(running.tokens, request, self._decode)
    if hit is None and live:
      return []
    if hit is None:
      last = running.tokens[-1]
      stop = last if last in request.stop_ids else None
      count = len(running.tokens)
      text = self._decode(running.tokens[: count - (stop is not None)])
    else:
      count, text, stop = hit
    self._running[slot] = None
    if live:
      self._slots = _release(self._slots, np.int32(slot))
    return [
      Completion(
        number=request.number,
        tokens=tuple(running.tokens[:count]),
        text=text,
        log_probs=tuple(running.log_probs[:count]),
        raw_log_probs=tuple(running.raw[:count]),
        finish_reason="length" if stop is None else "stop",
        stop=stop,
      )
    ]

  def _fit(self, rows: Sequence[Request]) -> Requests:
    """The arrays of requests, with the processors and widths of all that may come."""
    vocab, like = self._config.vocab_size, self._like
    limits = [min(r.max_tokens, self._length - len(r.prompt)) for r in rows]
    return Requests(
      keys_B=_keys(
        np.array([r.seed for r in rows], np.uint32), np.array([r.number for r in rows], np.uint32)
      ),
      limits_B=np.array(limits, np.int32),
      rows=settings([r.sampling for r in rows], vocab, [r.sampling for r in like]),
      report_B=self._calibration and np.full(len(rows), self._calibration, np.float32),
      stop_BI=pad_ids([r.stop_ids for r in rows], vocab, max(len(r.stop_ids) for r in like)),
    )


def cut_at(tokens: Sequence[int], request: Request, decode: Decode) -> tuple[int, str, str] | None:
  """(tokens up to the one that completes a stop string, text before it, the string), or None.

  The first place in the text counts, and the longest string there.
  """
  if not request.stop_strings:
    return None
  end = len(tokens) - (tokens[-1] in request.stop_ids)

  def first(count: int):
    text = decode(tokens[:count])
    found = [(text.find(s), -len(s), s) for s in request.stop_strings if s in text]
    return (text, *min(found)) if found else None

  if first(end) is None:
    return None
  low, high = 1, end  # the fewest tokens with a stop string in their text
  while low < high:
    middle = (low + high) // 2
    low, high = (low, middle) if first(middle) else (middle + 1, high)
  text, at, _, string = first(low)
  return low, text[:at], string


def _bucket(n: int) -> int:
  """The smallest of 16, 32, 48, 64, 96, 128, 192, ... that is at least `n`."""
  size = _power_of_two(n, SMALLEST_BUCKET)
  shorter = 3 * size // 4
  return shorter if n <= shorter and shorter % SMALLEST_BUCKET == 0 else size


def _power_of_two(n: int, least: int) -> int:
  return max(least, 1 << (n - 1).bit_length())


@jax.jit
def _keys(seeds_B, numbers_B):
  return jax.vmap(lambda seed, number: jax.random.fold_in(jax.random.key(seed), number))(
    seeds_B, numbers_B
  )


_empty = jax.jit(empty_slots, static_argnums=range(5))  # so that no two arrays are one buffer
_advance = jax.jit(advance, static_argnames=("steps", "config"), donate_argnames="slots")


@functools.partial(jax.jit, static_argnames=("config", "compute"), donate_argnames="slots")
def _enter(weights, slots, prompts_BL, lengths_B, places_B, requests, *, config, compute):
  """Reads prompts into the slots `places_B`; returns the slots and the first tokens' log-probs."""
  new, scores = start(weights, prompts_BL, lengths_B, requests, config, compute)
  length = prompts_BL.shape[1]

  def put(old, x):
    return old.at[places_B].set(x, mode="drop")

  keys, values = (
    tuple(old.at[(places_B, *at)].set(x, mode="drop") for old, x in zip(olds, xs, strict=True))
    for olds, xs, at in (
      (slots.cache.keys, new.cache.keys, (slice(None), slice(None), slice(length))),
      (slots.cache.values, new.cache.values, (slice(None), slice(length))),
    )
  )
  rest = jax.tree.map(put, slots.replace(cache=None), new.replace(cache=None))
  return rest.replace(cache=Cache(keys=keys, values=values)), *scores


@jax.jit
def _place(all_requests: Requests, entering: Requests, places_B) -> Requests:
  return jax.tree.map(lambda old, x: old.at[places_B].set(x, mode="drop"), all_requests, entering)


@functools.partial(jax.jit, donate_argnames="slots")
def _release(slots: Slots, slot) -> Slots:
  return slots.replace(live_B=slots.live_B.at[slot].set(False))

"""Continuous batching: requests enter and leave the slots of one decoding program.

`Batcher` owns the slots. Its prompts are read several at a time, in rows that they share and of few
shapes (a power of two of rows, by a power of two of tokens or three quarters of one), and then all
slots go on together, several tokens a dispatch. A request's random numbers depend on its seed, its
number and the step, never on its slot or on the others.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np

from model.config import ComputeConfig, ModelConfig
from model.decode import Cache, pad_cache
from model.generate import Requests, Slots, advance, empty_slots, start
from model.prompt_rows import bucket, pack, power_of_two, share
from model.sampling import SamplingConfig, pad_ids, settings
from model.sharding import batch_shards

SHORTEST = 64  # tokens of a cache, before it grows
_REFILL = 8  # prompts are read once one in so many slots is free
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
    slots: how many requests go on at a time; rounded up to a multiple of the mesh's row shards.
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
    if slots < 1:
      raise ValueError(f"slots is {slots}; it must be at least 1.")
    slots += -slots % self._shards
    self._weights, self._config, self._compute = weights, config, compute
    self._length, self._chunk, self._decode = length, chunk, decode
    self._queue: collections.deque[Request] = collections.deque()
    self._running: list[_Running | None] = [None] * slots
    self._like, self._calibration = tuple(like), calibration
    self._requests = self._fit([like[0]] * slots)
    self._slots = self._empty_slots()

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
    self._lengthen()
    out = _advance(
      self._weights,
      self._slots,
      self._requests,
      until_free=np.int32(self._missing() if self._queue else len(self._running) + 1),
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
    """Reads prompts into free slots, some at a time; their first tokens may complete them."""
    done = []
    if not any(self._running):
      self._slots = self._empty_slots()
    while self._queue and self._missing() <= 0:
      free = self._running.count(None)
      group = [self._queue.popleft() for _ in range(min(free, len(self._queue)))]
      for rows in self._rows(group):
        done += self._read(rows)
    return done

  def _missing(self) -> int:
    """How many slots more have to be free before the next prompts are read."""
    free = self._running.count(None)
    wanted = max(1, len(self._running) // _REFILL)
    return 1 - free if free == len(self._running) else min(wanted, len(self._queue)) - free

  def _rows(self, group: Sequence[Request]) -> Iterator[list[list[Request]]]:
    """Requests whose prompts share rows, a power of two of rows a shard at a time."""
    rows = [[group[i] for i in row] for row in share([len(r.prompt) for r in group], self._length)]
    while rows:
      count = self._shards << (max(len(rows) // self._shards, 1).bit_length() - 1)
      yield rows[:count]
      rows = rows[count:]

  def _read(self, rows: Sequence[Sequence[Request]]) -> list[Completion]:
    """Reads the prompts of rows into free slots."""
    free = (slot for slot, running in enumerate(self._running) if running is None)
    group = [request for row in rows for request in row]
    size = self._shards * power_of_two(-(-len(group) // self._shards), 1)
    size = min(size, len(self._running))
    height = self._shards * power_of_two(-(-len(rows) // self._shards), 1)
    tokens, packing = pack([[r.prompt for r in row] for row in rows], height, size)
    lengths = np.ones(size, np.int32)
    places = np.full(size, len(self._running), np.int32)  # outside: what fills up the rows
    for index, (request, slot) in enumerate(zip(group, free, strict=False)):
      lengths[index], places[index] = len(request.prompt), slot
      self._running[slot] = _Running(request)
    entering = self._fit([*group, *[self._like[0]] * (size - len(group))])
    new, (scores_B, raw_B) = _start(
      self._weights,
      tokens,
      lengths,
      entering,
      config=self._config,
      compute=self._compute,
      packing=packing,
    )
    self._lengthen()
    self._slots = _enter(self._slots, new, places)
    self._requests = _place(self._requests, entering, places)
    tokens_B, live_B = np.asarray(self._slots.tokens_B), np.asarray(self._slots.live_B)
    scores_B, raw_B, done = np.asarray(scores_B), np.asarray(raw_B), []
    for index, slot in enumerate(places[: len(group)].tolist()):
      self._take(self._running[slot], [tokens_B[[slot]], scores_B[[index]], raw_B[[index]]])
      done += self._finish(slot, bool(live_B[slot]))
    return done

  def _empty_slots(self) -> Slots:
    history, length = self._requests.rows.history, min(self._length, SHORTEST)
    return _empty(len(self._running), length, history, self._config, self._compute)

  def _lengthen(self) -> None:
    """Gives the cache, of which every step reads all, room for the next tokens."""
    rows = (len(row.request.prompt) + len(row.tokens) for row in self._running if row)
    wanted = min(max(rows) + self._chunk, self._length)
    if wanted > self._slots.cache.length:
      self._slots = _lengthen(self._slots, bucket(wanted) - self._slots.cache.length)

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


@jax.jit
def _keys(seeds_B, numbers_B):
  return jax.vmap(lambda seed, number: jax.random.fold_in(jax.random.key(seed), number))(
    seeds_B, numbers_B
  )


_empty = jax.jit(empty_slots, static_argnums=range(5))  # so that no two arrays are one buffer
_start = jax.jit(start, static_argnames=("config", "compute"))
_advance = jax.jit(advance, static_argnames=("steps", "config"), donate_argnames="slots")


@functools.partial(jax.jit, donate_argnames="slots")
def _enter(slots: Slots, new: Slots, places_B) -> Slots:
  """The slots with the rows of `new` in the slots `places_B`."""
  length = min(new.cache.length, slots.cache.length)

  def put(old, x):
    return old.at[places_B].set(x, mode="drop")

  keys, values = (
    tuple(
      old.at[(places_B, *at)].set(x[(slice(None), *at)], mode="drop")
      for old, x in zip(olds, xs, strict=True)
    )
    for olds, xs, at in (
      (slots.cache.keys, new.cache.keys, (slice(None), slice(None), slice(length))),
      (slots.cache.values, new.cache.values, (slice(None), slice(length))),
    )
  )
  rest = jax.tree.map(put, slots.replace(cache=None), new.replace(cache=None))
  return rest.replace(cache=Cache(keys=keys, values=values))


@functools.partial(jax.jit, static_argnames="length")
def _lengthen(slots: Slots, length: int) -> Slots:
  return slots.replace(cache=pad_cache(slots.cache, length))


@jax.jit
def _place(all_requests: Requests, entering: Requests, places_B) -> Requests:
  return jax.tree.map(lambda old, x: old.at[places_B].set(x, mode="drop"), all_requests, entering)


@functools.partial(jax.jit, donate_argnames="slots")
def _release(slots: Slots, slot) -> Slots:
  return slots.replace(live_B=slots.live_B.at[slot].set(False))

"""Continuations with a key-value cache, each request with its own settings and random numbers."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from model.config import ComputeConfig, ModelConfig
from model.decode import (
  Cache,
  Packing,
  empty_cache,
  extend,
  pad_cache,
  prefill,
  prepare,
  token_logits,
)
from model.sampling import (
  History,
  SamplingConfig,
  Settings,
  add_to_history,
  draw,
  log_probs,
  process,
  scale,
  settings,
  start_history,
)
from model.sharding import batch_shards


@flax.struct.dataclass
class Generated:
  """Continuations of a batch of prompts.

  Attributes:
    tokens_BT: int32; after a row has stopped, the first of its stop ids.
    counts_B: how many of them were generated, the stop token included, int32.
    log_probs_BT: of the tokens under softmax(logits / temperature), before any mask, penalty or
      filter, fp32; under softmax(logits) where the temperature is 0. 0 after a row has stopped.
    raw_log_probs_BT: the same under softmax(logits).
    stopped_B: whether a stop id ended the row, and not `max_tokens`.
  """

  tokens_BT: jax.Array
  counts_B: jax.Array
  log_probs_BT: jax.Array
  raw_log_probs_BT: jax.Array
  stopped_B: jax.Array


def request_keys(key: jax.Array, requests_B: jax.Array) -> jax.Array:
  """A key a request: its random numbers depend on `key`, its number and the step alone."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, requests_B)


@flax.struct.dataclass
class Slots:
  """Rows that are being continued, each at its own place; free ones wait for a request.

  Attributes:
    cache: of every row.
    history: of every row, or None where no penalty is on.
    tokens_B: the newest token of each row, which is not in the cache yet.
    lengths_B: how many are.
    steps_B: how many tokens each row has generated.
    live_B: whether a row goes on.
    stopped_B: whether a stop id ended it.
  """

  cache: Cache
  history: History | None
  tokens_B: jax.Array
  lengths_B: jax.Array
  steps_B: jax.Array
  live_B: jax.Array
  stopped_B: jax.Array


@flax.struct.dataclass
class Requests:
  """What decides how rows go on.

  Attributes:
    keys_B: of `request_keys`.
    limits_B: the most tokens that a row generates, at least 1.
    rows: of `model.sampling.settings`.
    stop_BI: the ids that end each row, of `model.sampling.pad_ids`; None for none.
    report_B: the temperature at which raw log-probs are reported, of a calibration; None for 1.
  """

  keys_B: jax.Array
  limits_B: jax.Array
  rows: Settings
  stop_BI: jax.Array | None
  report_B: jax.Array | None = None


def empty_slots(
  size: int, length: int, history: bool, config: ModelConfig, compute: ComputeConfig
) -> Slots:
  """Free slots with a cache of `length` tokens each."""
  zeros_B, none_B = jnp.zeros((size,), jnp.int32), jnp.zeros((size,), bool)
  counts_BV = jnp.zeros((size, config.vocab_size), jnp.int32) if history else None
  return Slots(
    cache=empty_cache(size, length, config, compute),
    history=History(prompt_BV=counts_BV > 0, output_BV=counts_BV) if history else None,
    tokens_B=zeros_B,
    lengths_B=zeros_B,
    steps_B=zeros_B,
    live_B=none_B,
    stopped_B=none_B,
  )


def start(
  weights: dict,
  prompts_BL: jax.Array,
  lengths_B: jax.Array,
  requests: Requests,
  config: ModelConfig,
  compute: ComputeConfig,
  packing: Packing | None = None,
) -> tuple[Slots, tuple[jax.Array, jax.Array]]:
  """Reads prompts, and chooses the first token of each.

  Args:
    packing: where `prompts_BL` are the rows [R,W] of a packing.

  Returns:
    slots whose cache has the length of the prompts, and the tokens' (log-probs, raw log-probs) [B].
  """
  batch, vocab = len(lengths_B), config.vocab_size
  hidden_B1D, cache = prefill(weights, prompts_BL, config, compute, packing, lengths_B)
  if packing is not None:
    prompts_BL = prompts_BL.reshape(-1)[packing.places_BL]
  rows = requests.rows
  slots = Slots(
    cache=cache,
    history=start_history(prompts_BL, lengths_B, vocab) if rows.history else None,
    tokens_B=jnp.zeros((batch,), jnp.int32),
    lengths_B=lengths_B,
    steps_B=jnp.zeros((batch,), jnp.int32),
    live_B=jnp.ones((batch,), bool),
    stopped_B=jnp.zeros((batch,), bool),
  )
  return _choose(weights, hidden_B1D[:, 0], slots, requests, config)


def step(
  weights: dict, slots: Slots, requests: Requests, config: ModelConfig
) -> tuple[Slots, tuple[jax.Array, jax.Array]]:
  """One more token for every live row; see `start`."""
  hidden_BLD, cache = extend(
    weights, slots.cache, slots.tokens_B[:, None], slots.lengths_B[:, None], config
  )
  lengths_B = slots.lengths_B + slots.live_B.astype(jnp.int32)
  slots = slots.replace(cache=cache, lengths_B=lengths_B)
  return _choose(weights, hidden_BLD[:, 0], slots, requests, config)


def _choose(weights, hidden_BD, slots: Slots, requests: Requests, config: ModelConfig):
  """Draws the next token of every live row from its hidden state."""
  rows, stop_BI, live_B = requests.rows, requests.stop_BI, slots.live_B
  logits_BV = token_logits(weights, hidden_BD, config)
  keys_B = jax.vmap(jax.random.fold_in)(requests.keys_B, slots.steps_B)
  processed_BV = process(logits_BV, rows, slots.history, stop_BI, slots.steps_B)
  tokens_B = jnp.where(live_B, draw(processed_BV, keys_B, rows), slots.tokens_B)
  raw_B = scores_B = log_probs(logits_BV, tokens_B)
  if rows.temperature_B is not None:
    scores_B = log_probs(scale(logits_BV, rows), tokens_B)
  if requests.report_B is not None:
    raw_B = log_probs(logits_BV / requests.report_B[:, None], tokens_B)
  history = slots.history
  if history is not None:
    history = add_to_history(history, jnp.where(live_B, tokens_B, config.vocab_size))
  stopped_B = jnp.zeros_like(live_B)
  if stop_BI is not None:
    stopped_B = live_B & jnp.any(tokens_B[:, None] == stop_BI, axis=-1)
  steps_B = slots.steps_B + live_B.astype(jnp.int32)
  slots = slots.replace(
    history=history,
    tokens_B=tokens_B,
    steps_B=steps_B,
    live_B=live_B & ~stopped_B & (steps_B < requests.limits_B),
    stopped_B=slots.stopped_B | stopped_B,
  )
  return slots, (scores_B, raw_B)


def advance(
  weights: dict,
  slots: Slots,
  requests: Requests,
  config: ModelConfig,
  *,
  steps: int,
  until_free: jax.Array,
) -> tuple[Slots, jax.Array, jax.Array, jax.Array, jax.Array]:
  """Up to `steps` tokens for every live row, in one program; fewer once no row is live.

  Args:
    until_free: int32; once so many rows have ended it returns.

  Returns:
    slots; tokens, log-probs and raw log-probs [B, steps], with zeros where a row was not live; how
    many each row has of them [B].
  """
  batch = len(slots.tokens_B)
  was_live_B, before_B = slots.live_B, slots.steps_B

  def goes_on(carry):
    index, slots, *_ = carry
    ended = jnp.sum(was_live_B & ~slots.live_B, dtype=jnp.int32)
    return (index < steps) & jnp.any(slots.live_B) & (ended < until_free)

  def body(carry):
    index, slots, tokens_BT, scores_BT, raw_BT = carry
    live_B = slots.live_B
    slots, (scores_B, raw_B) = step(weights, slots, requests, config)

    def put(array_BT, new_B):
      new_B1 = jnp.where(live_B, new_B, 0)[:, None].astype(array_BT.dtype)
      return jax.lax.dynamic_update_slice(array_BT, new_B1, (0, index))

    tokens_BT = put(tokens_BT, slots.tokens_B)
    return index + 1, slots, tokens_BT, put(scores_BT, scores_B), put(raw_BT, raw_B)

  none_BT = jnp.zeros((batch, steps), jnp.float32)
  carry = (jnp.int32(0), slots, jnp.zeros((batch, steps), jnp.int32), none_BT, none_BT)
  _, slots, tokens_BT, scores_BT, raw_BT = jax.lax.while_loop(goes_on, body, carry)
  return slots, tokens_BT, scores_BT, raw_BT, slots.steps_B - before_B


@functools.partial(jax.jit, static_argnames=("max_tokens", "config", "compute"))
def rollout(
  params: dict,
  prompts_BL: jax.Array,
  lengths_B: jax.Array,
  keys_B: jax.Array,
  rows: Settings,
  stop_BI: jax.Array | None,
  *,
  max_tokens: int,
  config: ModelConfig,
  compute: ComputeConfig,
) -> Generated:
  """Continues prompts that are padded on the right, each by its own settings.

  Args:
    params: the tree of `model.params.param_specs(config)`, or what `model.decode.prepare` makes of
      it, for many calls with the same weights.
    prompts_BL, lengths_B: int32; every row has at least one token.
    keys_B: of `request_keys`; a row's continuation does not depend on the other rows.
    rows: of `model.sampling.settings`.
    stop_BI: the ids that end each row, of `model.sampling.pad_ids`; None for none.
    max_tokens: after so many tokens every row ends.
  """
  batch, weights = len(lengths_B), params
  if not isinstance(params["layers"], tuple):
    weights = prepare(params, config, compute, one_row=batch == 1)
  requests = Requests(
    keys_B=keys_B, limits_B=jnp.full((batch,), max_tokens), rows=rows, stop_BI=stop_BI
  )
  arrays = (prompts_BL, lengths_B, requests)
  prompts_BL, lengths_B, requests = jax.tree.map(_fill_rows, arrays)
  slots, first = start(weights, prompts_BL, lengths_B, requests, config, compute)
  tokens_B = slots.tokens_B
  slots = slots.replace(cache=pad_cache(slots.cache, max_tokens - 1))
  out = advance(
    weights, slots, requests, config, steps=max(max_tokens - 1, 1), until_free=len(lengths_B)
  )
  slots, *parts, _ = out
  tokens_BT, scores_BT, raw_BT = (
    jnp.concatenate([x_B[:, None], x_BT], axis=1)[:, :max_tokens]
    for x_B, x_BT in zip((tokens_B, *first), parts, strict=True)
  )
  if stop_BI is not None:
    ended_BT = jnp.arange(max_tokens)[None] >= slots.steps_B[:, None]
    tokens_BT = jnp.where(ended_BT, requests.stop_BI[:, :1], tokens_BT)
  return Generated(
    tokens_BT=tokens_BT[:batch],
    counts_B=slots.steps_B[:batch],
    log_probs_BT=scores_BT[:batch],
    raw_log_probs_BT=raw_BT[:batch],
    stopped_B=slots.stopped_B[:batch],
  )


def _fill_rows(x: jax.Array) -> jax.Array:
  """Repeats the last row up to a multiple of the mesh's row shards."""
  mesh = jax.sharding.get_abstract_mesh()
  missing = 0 if mesh.empty else -len(x) % batch_shards(mesh)
  return jnp.concatenate([x, jnp.repeat(x[-1:], missing, axis=0)]) if missing else x


def generate(
  params: dict,
  prompts_BL: jax.Array,
  lengths_B: jax.Array,
  key: jax.Array,
  *,
  max_tokens: int,
  temperature: float,
  top_p: float,
  stop_id: int,
  config: ModelConfig,
  compute: ComputeConfig,
) -> tuple[jax.Array, jax.Array]:
  """`rollout` with the same settings for every row and one stop id.

  Returns:
    tokens int32 [B, max_tokens], with `stop_id` after a row has stopped, and how many of them
    were generated, the stop token included, int32 [B].
  """
  batch = len(prompts_BL)
  out = rollout(
    params,
    prompts_BL,
    lengths_B,
    request_keys(key, jnp.arange(batch)),
    settings([SamplingConfig(temperature, top_p)] * batch, config.vocab_size),
    np.full((batch, 1), stop_id, np.int32),
    max_tokens=max_tokens,
    config=config,
    compute=compute,
  )
  return out.tokens_BT, out.counts_B

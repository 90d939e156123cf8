"""From logits to a token: masks, penalties, temperature, min-p, top-k, top-p, and the draw."""

import dataclasses
import math
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 128  # tokens among which the second number of a draw decides
_LARGEST = np.float32(np.inf).view(np.int32)


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How the tokens of a request are chosen, in the order of application.

  Attributes:
    min_tokens: no stop id is chosen before so many tokens.
    forbidden: ids that are never chosen.
    repetition_penalty: divides the logit of a token of the prompt or the output, or multiplies it
      where it is negative (https://arxiv.org/abs/1909.05858); 1 for off.
    frequency_penalty: taken off a logit for each time that its token is in the output.
    presence_penalty: taken off the logit of every token of the output.
    temperature: divides the logits; 0 chooses the largest.
    min_p: tokens under this part of the largest probability are out; 0 for off.
    top_k: so many tokens stay, and what ties with the last of them; None for off.
    top_p: the smallest set of this probability stays, by descending probability
      (https://arxiv.org/abs/1904.09751); 1 for off.
  """

  temperature: float
  top_p: float
  top_k: int | None = None
  min_p: float = 0.0
  repetition_penalty: float = 1.0
  frequency_penalty: float = 0.0
  presence_penalty: float = 0.0
  min_tokens: int = 0
  forbidden: tuple[int, ...] = ()

  def __post_init__(self):
    for name, holds, rule in (
      ("temperature", 0 <= self.temperature < math.inf, "finite and not negative"),
      ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
      ("top_k", self.top_k is None or self.top_k >= 1, "at least 1, or None for off"),
      ("min_p", 0 <= self.min_p <= 1, "in [0, 1]"),
      ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "finite and positive"),
      ("frequency_penalty", math.isfinite(self.frequency_penalty), "finite"),
      ("presence_penalty", math.isfinite(self.presence_penalty), "finite"),
      ("min_tokens", self.min_tokens >= 0, "at least 0"),
      ("forbidden", all(token >= 0 for token in self.forbidden), "ids, at least 0"),
    ):
      if not holds:
        raise ValueError(f"sample.{name} is {getattr(self, name)}; it must be {rule}.")


@flax.struct.dataclass
class Settings:
  """The `SamplingConfig` of every row, as arrays; None where it is off in all of them.

  What is None is not computed, and a program is compiled for each such choice. A row in which
  something is off gets the same bits whether it is None or not.
  """

  temperature_B: jax.Array | None
  top_p_B: jax.Array | None
  top_k_B: jax.Array | None
  min_p_B: jax.Array | None
  repetition_B: jax.Array | None
  frequency_B: jax.Array | None
  presence_B: jax.Array | None
  min_tokens_B: jax.Array | None
  forbidden_BI: jax.Array | None

  @property
  def history(self) -> bool:
    """Whether penalties need to know which tokens there were."""
    return any(x is not None for x in (self.repetition_B, self.frequency_B, self.presence_B))


def settings(
  rows: Sequence[SamplingConfig], vocab_size: int, like: Sequence[SamplingConfig] | None = None
) -> Settings:
  """The settings of rows, numpy arrays.

  Args:
    like: what is on in any of these is on, and nothing else; by default in the rows themselves.

  Raises:
    ValueError: a row's settings leave no token, or it has something on that `like` has not.
  """
  like = rows if like is None else like

  def column(name: str, off, dtype=np.float32):
    values, kinds = (
      [off if getattr(row, name) is None else getattr(row, name) for row in group]
      for group in (rows, like)
    )
    if any(kind != off for kind in kinds):
      return np.array(values, dtype)
    if any(value != off for value in values):
      raise ValueError(f"sample.{name} is on in a request, and off in all that were foreseen.")
    return None

  for row in rows:
    outside = [token for token in row.forbidden if token >= vocab_size]
    if outside or len(set(row.forbidden)) >= vocab_size:
      raise ValueError(
        f"sample.forbidden has {outside[0] if outside else 'all'} of a vocabulary of {vocab_size}; "
        "name ids of it, and leave some."
      )
  return Settings(
    temperature_B=column("temperature", 0.0),
    top_p_B=column("top_p", 1.0),
    top_k_B=column("top_k", vocab_size, np.int32),
    min_p_B=column("min_p", 0.0),
    repetition_B=column("repetition_penalty", 1.0),
    frequency_B=column("frequency_penalty", 0.0),
    presence_B=column("presence_penalty", 0.0),
    min_tokens_B=column("min_tokens", 0, np.int32),
    forbidden_BI=pad_ids(
      [row.forbidden for row in rows], vocab_size, max(len(row.forbidden) for row in like)
    ),
  )


def pad_ids(
  rows: Sequence[Sequence[int]], vocab_size: int, width: int | None = None
) -> np.ndarray | None:
  """Ids of rows, int32 [B, width], filled with `vocab_size`, which is no id; None for width 0.

  The width is by default that of the longest row. Raises ValueError where a row is longer.
  """
  longest = max(len(row) for row in rows)
  width = longest if width is None else width
  if longest > width:
    raise ValueError(f"a request has {longest} ids in a list, and {width} at most were foreseen.")
  if not width:
    return None
  return np.array([[*row, *[vocab_size] * (width - len(row))] for row in rows], np.int32)


@flax.struct.dataclass
class History:
  """Which tokens were in the prompt, bool [B,V], and how often in the output, int32 [B,V]."""

  prompt_BV: jax.Array
  output_BV: jax.Array


def start_history(prompts_BL: jax.Array, lengths_B: jax.Array, vocab_size: int) -> History:
  """The history before the first token; what lies behind a prompt's length does not count."""
  batch, length = prompts_BL.shape
  inside_BL = jnp.arange(length)[None] < lengths_B[:, None]
  ids_BL = jnp.where(inside_BL, prompts_BL, vocab_size)
  prompt_BV = jnp.zeros((batch, vocab_size), bool)
  return History(
    prompt_BV=prompt_BV.at[jnp.arange(batch)[:, None], ids_BL].set(True, mode="drop"),
    output_BV=jnp.zeros((batch, vocab_size), jnp.int32),
  )


def add_to_history(history: History, tokens_B: jax.Array) -> History:
  rows_B = jnp.arange(tokens_B.shape[0])
  return history.replace(output_BV=history.output_BV.at[rows_B, tokens_B].add(1, mode="drop"))


def mask_ids(logits_BV: jax.Array, ids_BI: jax.Array, where_B: jax.Array | None = None):
  """-inf at the ids of each row (of the rows `where_B`); ids outside the vocabulary are none."""
  if where_B is not None:
    ids_BI = jnp.where(where_B[:, None], ids_BI, logits_BV.shape[-1])
  rows_B1 = jnp.arange(logits_BV.shape[0])[:, None]
  return logits_BV.at[rows_B1, ids_BI].set(-jnp.inf, mode="drop")


def penalize(logits_BV: jax.Array, rows: Settings, history: History) -> jax.Array:
  """The three penalties, repetition first. A masked logit stays -inf."""
  count_BV = history.output_BV.astype(logits_BV.dtype)
  if rows.repetition_B is not None:
    penalty_B1 = rows.repetition_B[:, None]
    changed_BV = jnp.where(logits_BV < 0, logits_BV * penalty_B1, logits_BV / penalty_B1)
    seen_BV = history.prompt_BV | (history.output_BV > 0)
    logits_BV = jnp.where(seen_BV, changed_BV, logits_BV)
  if rows.frequency_B is not None:
    logits_BV -= rows.frequency_B[:, None] * count_BV
  if rows.presence_B is not None:
    logits_BV -= rows.presence_B[:, None] * (count_BV > 0).astype(logits_BV.dtype)
  return logits_BV


def apply_min_p(logits_BV: jax.Array, min_p_B: jax.Array) -> jax.Array:
  """Keeps probabilities of at least `min_p` times the largest (https://arxiv.org/abs/2407.01082)."""
  ratio_BV = jnp.exp(logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True))
  return jnp.where(ratio_BV >= min_p_B[:, None], logits_BV, -jnp.inf)


def apply_top_k(logits_BV: jax.Array, top_k_B: jax.Array) -> jax.Array:
  """Keeps the k largest, and what ties with the k-th."""
  # The order of floats as integers, so that bisection ends: by sign and magnitude.
  bits_BV = jax.lax.bitcast_convert_type(logits_BV, jnp.int32)
  order_BV = jnp.where(bits_BV < 0, bits_BV ^ jnp.int32(2**31 - 1), bits_BV)
  order_BV = jnp.where(logits_BV == 0, 0, order_BV)  # both zeros are one value

  def too_few(bound_B):  # values above the bound; the k-th is the smallest with fewer than k
    return jnp.sum(order_BV > bound_B[:, None], axis=-1, dtype=jnp.int32) < top_k_B

  lowest = np.int32(-_LARGEST - 1)  # -inf
  kth_B = _smallest(too_few, lowest, _LARGEST, logits_BV.shape[0])
  return jnp.where(order_BV >= kth_B[:, None], logits_BV, -jnp.inf)


def apply_top_p(logits_BV: jax.Array, top_p_B: jax.Array) -> jax.Array:
  """Keeps a token iff the mass before it, by descending probability, is below `top_p`.

  So the one that crosses is in, and at least one is. Of tokens that tie, those of smaller id come
  first. Bisection for the smallest probability that is kept replaces the sort of a vocabulary.
  """
  probs_BV = jax.nn.softmax(logits_BV, axis=-1)
  bits_BV = jax.lax.bitcast_convert_type(probs_BV, jnp.int32)  # in order: none is negative

  def mass_above(bound_B):
    return jnp.sum(jnp.where(bits_BV > bound_B[:, None], probs_BV, 0.0), axis=-1)

  smallest_B = _smallest(
    lambda bound_B: mass_above(bound_B) < top_p_B, 0, _LARGEST, logits_BV.shape[0]
  )
  above_BV, equal_BV = bits_BV > smallest_B[:, None], bits_BV == smallest_B[:, None]
  ties_before_BV = jnp.cumsum(equal_BV, axis=-1, dtype=jnp.int32) - 1
  smallest_B1 = jax.lax.bitcast_convert_type(smallest_B, jnp.float32)[:, None]
  before_BV = mass_above(smallest_B)[:, None] + ties_before_BV.astype(jnp.float32) * smallest_B1
  keep_BV = above_BV | (equal_BV & (before_BV < top_p_B[:, None])) | (top_p_B[:, None] >= 1)
  return jnp.where(keep_BV, logits_BV, -jnp.inf)


def _smallest(holds, low: int, high: int, batch: int) -> jax.Array:
  """The smallest int32 [B] from low to high of which `holds`; it does of `high` and all after."""

  def halve(_, bounds):
    low_B, high_B = bounds
    middle_B = (low_B >> 1) + (high_B >> 1) + (low_B & high_B & 1)  # without overflow
    held_B = holds(middle_B)
    return jnp.where(held_B, low_B, middle_B + 1), jnp.where(held_B, middle_B, high_B)

  bounds = (jnp.full((batch,), low, jnp.int32), jnp.full((batch,), high, jnp.int32))
  return jax.lax.fori_loop(0, (int(high) - int(low)).bit_length(), halve, bounds)[0]


def process(
  logits_BV: jax.Array,
  rows: Settings,
  history: History | None,
  stop_BI: jax.Array | None,
  steps_B: jax.Array,
) -> jax.Array:
  """What is drawn from: fp32 logits [B,V] after all processors, -inf where none is left.

  Args:
    logits_BV: of the model, fp32.
    history: of the penalties; None where all of them are off.
    stop_BI: the ids that end a row, for `min_tokens`; ids outside the vocabulary are none.
    steps_B: how many tokens each row has.
  """
  if rows.forbidden_BI is not None:
    logits_BV = mask_ids(logits_BV, rows.forbidden_BI)
  if rows.min_tokens_B is not None and stop_BI is not None:
    logits_BV = mask_ids(logits_BV, stop_BI, steps_B < rows.min_tokens_B)
  if rows.history:
    logits_BV = penalize(logits_BV, rows, history)
  if rows.temperature_B is None:
    return logits_BV
  logits_BV = scale(logits_BV, rows)
  if rows.min_p_B is not None:
    logits_BV = apply_min_p(logits_BV, rows.min_p_B)
  if rows.top_k_B is not None:
    logits_BV = apply_top_k(logits_BV, rows.top_k_B)
  if rows.top_p_B is not None:
    logits_BV = apply_top_p(logits_BV, rows.top_p_B)
  return logits_BV


def scale(logits_BV: jax.Array, rows: Settings) -> jax.Array:
  """Logits over temperature; those of a row with temperature 0 stay."""
  if rows.temperature_B is None:
    return logits_BV
  divisor_B = jnp.where(rows.temperature_B > 0, rows.temperature_B, 1.0)
  return logits_BV / divisor_B[:, None]


def likeliest(logits_BV: jax.Array) -> jax.Array:
  """The id of the largest logit of a row, of equal ones the smallest, int32 [B].

  What argmax gives: of blocks, and then in the block. Over a vocabulary it is ten times slower than
  a maximum, which XLA vectorizes on the CPU.
  """
  blocks_BNK = _blocks(logits_BV, -jnp.inf)
  block_B = jnp.argmax(jnp.max(blocks_BNK, axis=-1), axis=-1)
  block_BK = jnp.take_along_axis(blocks_BNK, block_B[:, None, None], axis=1)[:, 0]
  return (block_B * _BLOCK + jnp.argmax(block_BK, axis=-1)).astype(jnp.int32)


def _blocks(x_BV: jax.Array, fill: float) -> jax.Array:
  """Blocks of the vocabulary [B, N, _BLOCK]; the last is filled up."""
  padded_BV = jnp.pad(x_BV, ((0, 0), (0, -x_BV.shape[1] % _BLOCK)), constant_values=fill)
  return padded_BV.reshape(len(x_BV), -1, _BLOCK)


def draw(processed_BV: jax.Array, keys_B: jax.Array, rows: Settings) -> jax.Array:
  """A token a row, int32 [B]: the likeliest at temperature 0, else one by its probability.

  Args:
    processed_BV: as `process` returns them.
    keys_B: a key a row, of its own request and step.
  """
  likeliest_B = likeliest(processed_BV)
  if rows.temperature_B is None:
    return likeliest_B
  return jnp.where(rows.temperature_B > 0, _categorical(processed_BV, keys_B), likeliest_B)


def _categorical(logits_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
  """Inverts the cumulative distribution: first a block of tokens, then a token of the block.

  Two uniform numbers a row, where Gumbel's maximum takes one for every token of the vocabulary.
  """
  mass_BNK = _blocks(jnp.exp(logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)), 0.0)
  uniform_B2 = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys_B)
  block_B = _invert(jnp.sum(mass_BNK, axis=-1), uniform_B2[:, 0])
  mass_BK = jnp.take_along_axis(mass_BNK, block_B[:, None, None], axis=1)[:, 0]
  return block_B * _BLOCK + _invert(mass_BK, uniform_B2[:, 1])


def _invert(mass_BN: jax.Array, uniform_B: jax.Array) -> jax.Array:
  """The first index whose cumulative mass exceeds `uniform` of the whole; never one of mass 0."""
  total_BN = jnp.where(mass_BN > 0, jnp.cumsum(mass_BN, axis=-1), 0.0)
  target_B = uniform_B * jnp.max(total_BN, axis=-1)
  return jnp.argmax(total_BN > target_B[:, None], axis=-1).astype(jnp.int32)


def log_probs(logits_BV: jax.Array, tokens_B: jax.Array) -> jax.Array:
  """The log-probability of a token a row under softmax(logits), fp32 [B]."""
  chosen_B = jnp.take_along_axis(logits_BV, tokens_B[:, None], axis=-1)[:, 0]
  return chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)

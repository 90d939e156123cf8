"""Dynamic loss scaling for fp16 (https://arxiv.org/abs/1710.03740), by Megatron's rule."""

import dataclasses
import math

import flax.struct
import jax
import jax.numpy as jnp

# fp16 never gets near it. In fp32 nothing overflows and the scale would grow until its product with
# the weight of a batch did, whose inverse is a gradient of zero.
CEILING = 2.0**64


@dataclasses.dataclass(frozen=True)
class LossScaleConfig:
  """Doubles after `period` good steps in a row; halves after `hysteresis` overflows, floor 1.

  `initial` 1 with `dynamic` False is plain bf16 or fp32 training.
  """

  dynamic: bool
  initial: float
  period: int
  hysteresis: int

  def __post_init__(self):
    if not 1 <= self.initial <= CEILING or self.initial != 2.0 ** round(math.log2(self.initial)):
      raise ValueError(
        f"loss_scale.initial is {self.initial}; it must be a power of two, from 1 to 2^64, so that "
        "scaling is exact."
      )
    if self.period < 1 or self.hysteresis < 1:
      raise ValueError(
        f"loss_scale has period={self.period}, hysteresis={self.hysteresis}; both must be >= 1."
      )


@flax.struct.dataclass
class LossScale:
  """Scalars: the scale (fp32), good steps in a row, and overflows left before it halves."""

  scale: jax.Array
  good_steps: jax.Array
  overflows_left: jax.Array


def init(config: LossScaleConfig) -> LossScale:
  return LossScale(
    scale=jnp.asarray(config.initial, jnp.float32),
    good_steps=jnp.asarray(0, jnp.int32),
    overflows_left=jnp.asarray(config.hysteresis, jnp.int32),
  )


def update(state: LossScale, finite: jax.Array, config: LossScaleConfig) -> LossScale:
  """The scale after a step whose loss and gradients were all finite, or not."""
  if not config.dynamic:
    return state
  good_steps = jnp.where(finite, state.good_steps + 1, 0)
  grow = good_steps >= config.period
  overflows_left = jnp.where(finite, state.overflows_left, state.overflows_left - 1)
  shrink = ~finite & (overflows_left <= 0)
  grown = jnp.where(grow, state.scale * 2.0, state.scale)
  scale = jnp.where(shrink, jnp.maximum(state.scale / 2.0, 1.0), jnp.minimum(grown, CEILING))
  return LossScale(
    scale=scale,
    good_steps=jnp.where(grow, 0, good_steps),
    # As in Megatron, hysteresis once used up stays so until the scale has grown again.
    overflows_left=jnp.where(grow, config.hysteresis, jnp.maximum(overflows_left, 0)),
  )

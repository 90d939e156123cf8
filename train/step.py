"""The training step: microbatched gradients of sums, one exact division, a guarded commit."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from model.params import is_spec, join, split_trained
from model.sharding import constrain
from train import loss_scale
from train.average import is_snapshot_step
from train.loss_scale import LossScaleConfig
from train.optimizer import applied_updates
from train.state import TrainState

LossFn = Callable[[dict, dict, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class AverageConfig:
  """The weights' mean over the final `fraction` of the steps, at multiples of `every` and at the
  end; a fraction of 0 keeps no average."""

  fraction: float
  every: int

  def __post_init__(self):
    if not 0 <= self.fraction <= 1 or self.every < 1:
      raise ValueError(
        f"average has fraction={self.fraction}, every={self.every}; "
        "fraction must be in [0, 1] and every at least 1."
      )


def make_train_step(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  specs: dict,
  *,
  scale: LossScaleConfig,
  average: AverageConfig,
  total_steps: int,
  microbatches: int,
  row_shards: int,
) -> Callable[[TrainState, dict], tuple[TrainState, dict[str, jax.Array]]]:
  """Makes `step(state, batch) -> (state, metrics)`, pure; jit it once at the edge.

  Args:
    loss_fn: (params, batch, key) -> (sum of losses, sums to report), "weight" among the sums; one
      named max_... is a largest value instead.
    optimizer: its schedule and moments count the updates that were applied.
    schedule: the learning rate by applied update, for the metrics.
    specs: the parameters' `ParamSpec`s, to which gradients are sharded alike.
    scale: the rule of the dynamic loss scale.
    average: when the running mean of the weights takes a snapshot.
    total_steps: the step at which the run ends.
    microbatches: into how many parts each device's rows are split.
    row_shards: over how many devices the rows of a batch lie.

  Gradients of sums are accumulated in fp32 and divided once by the batch's weight. The backward
  pass starts from scale / (token capacity of one device's microbatch), a constant, since in fp16
  a sum over thousands of tokens times 2^16 would overflow. A step whose loss or gradient norm is
  not finite changes nothing but the step count, the loss scale and `skipped` in the metrics.
  Parameters whose specs are not trained stay as they are.
  """

  def step(state: TrainState, batch: dict) -> tuple[TrainState, dict[str, jax.Array]]:
    rows, length = batch["tokens"].shape
    seed = state.loss_scale.scale / (rows // row_shards // microbatches * length)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    parts = split_rows(batch, microbatches, row_shards)
    sums, grads = accumulate(loss_fn, state.params, parts, key, seed, specs)
    weight = jnp.maximum(sums["weight"], 1e-9)
    trained, frozen = split_trained(specs, state.params)
    with jax.named_scope("optimizer"):
      grads = jax.tree.map(lambda g: g * (1.0 / (seed * weight)), grads)
      grad_norm = optax.tree.norm(grads)
      finite = jnp.isfinite(sums["objective"]) & jnp.isfinite(grad_norm)
      with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        lr = schedule(applied_updates(state.opt_state))
      params = join(keep_if(finite, optax.apply_updates(trained, updates), trained), frozen)
      new_state = TrainState(
        step=state.step + 1,
        params=params,
        opt_state=keep_if(finite, opt_state, state.opt_state),
        loss_scale=loss_scale.update(state.loss_scale, finite, scale),
        key=state.key,
        **_averaged(state, params, finite, average, total_steps),
      )
    metrics = {
      name: total if is_maximum(name) else total / weight
      for name, total in sums.items()
      if name not in ("weight", "objective")
    } | {
      "grad_norm": grad_norm,
      "weight": sums["weight"],
      "lr": lr,
      "loss_scale": state.loss_scale.scale,
      "skipped": ~finite,
      "updates": applied_updates(new_state.opt_state),
    }
    return new_state, metrics

  return step


def split_rows(batch: dict, microbatches: int, row_shards: int) -> dict:
  """[B,...] arrays to [microbatches, B/microbatches, ...], without moving a row between devices.

  A device holds consecutive rows, so a microbatch takes its share of every device's.
  """
  rows, length = batch["tokens"].shape
  assert rows % (row_shards * microbatches) == 0, (rows, row_shards, microbatches)

  def split(x):
    rest = x.shape[1:]
    x = x.reshape(row_shards, microbatches, -1, *rest)
    x = jnp.swapaxes(x, 0, 1).reshape(microbatches, rows // microbatches, *rest)
    return constrain(x, None, "batch", *("length" if n == length else None for n in rest[:1]))

  return jax.tree.map(split, batch)


def accumulate(
  loss_fn: LossFn, params: dict, microbatches: dict, key: jax.Array, seed: jax.Array, specs: dict
) -> tuple[dict[str, jax.Array], dict]:
  """Sums over the microbatches: what the loss reports, and `seed` times the gradient, in fp32.

  The gradient is of the trained parameters, with None in place of the others.
  """
  trained, frozen = split_trained(specs, params)
  wanted, _ = split_trained(specs, specs)

  def scaled(trained, batch, key):
    objective, sums = loss_fn(join(trained, frozen), batch, key)
    return objective * seed, sums | {"objective": objective}

  def one(batch, index):
    with jax.named_scope("gradients"):
      grads, sums = jax.grad(scaled, has_aux=True)(trained, batch, jax.random.fold_in(key, index))
    return sums, jax.tree.map(lambda s, g: constrain(g, *s.axes), wanted, grads, is_leaf=is_spec)

  count = microbatches["tokens"].shape[0]
  if count == 1:
    return one(jax.tree.map(lambda x: x[0], microbatches), 0)

  def body(total, inputs):
    sums, grads = one(*inputs)
    return (combined(total[0], sums), jax.tree.map(jnp.add, total[1], grads)), None

  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(one, jax.tree.map(lambda x: x[0], microbatches), 0),
  )
  return jax.lax.scan(body, zeros, (microbatches, jnp.arange(count)))[0]


def is_maximum(name: str) -> bool:
  """Whether what a loss reports by this name is a largest value, at least 0, and no sum."""
  return name.startswith("max_")


def combined(total: dict[str, jax.Array], sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """What a loss reports of two microbatches together."""
  return {
    name: (jnp.maximum if is_maximum(name) else jnp.add)(total[name], value)
    for name, value in sums.items()
  }


def keep_if(condition: jax.Array, new, old):
  """`new` where the scalar `condition` holds, else `old`, leaf by leaf."""
  return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def _averaged(
  state: TrainState, params: dict, finite: jax.Array, config: AverageConfig, total_steps: int
) -> dict:
  """The fields of the running mean after this step; a skipped one adds no snapshot."""
  if state.average is None:
    return {"average": None, "average_count": state.average_count}
  take = finite & is_snapshot_step(state.step + 1, total_steps, config.fraction, config.every)
  count = state.average_count + take.astype(jnp.int32)

  def snapshot(average):
    n = count.astype(jnp.float32)
    # The first snapshot replaces what an earlier window left, if the run was extended.
    return jax.tree.map(lambda a, p: jnp.where(n == 1, p, a + (p - a) / n), average, params)

  average = jax.lax.cond(take, snapshot, lambda average: average, state.average)
  return {"average": average, "average_count": count}

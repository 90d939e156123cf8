"""Everything that a training step changes, as one tree."""

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from model.params import init_params, split_trained
from model.sharding import param_shardings
from train import loss_scale
from train.loss_scale import LossScale, LossScaleConfig


@flax.struct.dataclass
class TrainState:
  """The state of one trained model.

  Attributes:
    step: batches consumed, skipped ones included, int32 scalar.
    params: the fp32 master weights.
    opt_state: the optax state of the trained parameters, which counts applied updates.
    loss_scale: the dynamic scale of the backward pass.
    average: the running fp32 mean of the weights over the final window, or None without one.
    average_count: how many snapshots the mean is of, int32 scalar.
    key: raw key data [2] uint32; step n draws from it folded with n.
  """

  step: jax.Array
  params: dict
  opt_state: optax.OptState
  loss_scale: LossScale
  average: dict | None
  average_count: jax.Array
  key: jax.Array


def init_state(
  specs: dict,
  optimizer: optax.GradientTransformation,
  scale: LossScaleConfig,
  seed: int,
  average: bool,
) -> TrainState:
  """The state before the first step, on one device; jit it with `state_shardings` for a mesh."""
  params = init_params(specs, seed)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(split_trained(specs, params)[0]),
    loss_scale=loss_scale.init(scale),
    average=jax.tree.map(jnp.zeros_like, params) if average else None,
    average_count=jnp.zeros((), jnp.int32),
    key=jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1)),
  )


def state_shardings(
  abstract: TrainState, optimizer: optax.GradientTransformation, specs: dict, mesh: Mesh
) -> TrainState:
  """A NamedSharding for every leaf: the parameters' for what mirrors them, else replicated."""
  params = param_shardings(specs, mesh)
  replicated = NamedSharding(mesh, PartitionSpec())
  return TrainState(
    step=replicated,
    params=params,
    opt_state=optax.tree.map_params(
      optimizer,
      lambda _, sharding: sharding,
      abstract.opt_state,
      split_trained(specs, params)[0],
      transform_non_params=lambda _: replicated,
    ),
    loss_scale=jax.tree.map(lambda _: replicated, abstract.loss_scale),
    average=params if abstract.average is not None else None,
    average_count=replicated,
    key=replicated,
  )


def abstract_state(make, shardings_of) -> TrainState:
  """The ShapeDtypeStructs of `make()` with the shardings that `shardings_of` gives them."""
  abstract = jax.eval_shape(make)
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    abstract,
    shardings_of(abstract),
  )

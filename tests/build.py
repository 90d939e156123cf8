"""Small models, packed batches and training states that the tests of the core share."""

import functools
from unittest import mock

import jax
import numpy as np

from model.config import ComputeConfig, ModelConfig
from model.params import ParamSpec, map_specs, param_specs
from model.sharding import batch_sharding, batch_shards
from train.loss_scale import LossScaleConfig
from train.losses import next_token_loss
from train.optimizer import OptimizerConfig, learning_rate, make_optimizer
from train.state import init_state, state_shardings
from train.step import AverageConfig, make_train_step


def model_config(**changes) -> ModelConfig:
  return ModelConfig(
    **{
      "vocab_size": 48,
      "d_model": 16,
      "num_layers": 2,
      "num_heads": 4,
      "num_kv_heads": 2,
      "head_dim": 4,
      "d_ff": 24,
      "tie_embeddings": False,
      "qk_norm": True,
      "qkv_bias": False,
      "rope_theta": 10_000.0,
      "rope_scaling": None,
      "sliding_window": None,
      "attention_softcap": None,
      "logit_softcap": None,
      "norm_eps": 1e-5,
      "embed_init_std": 0.5,
    }
    | changes
  )


def compute_config(**changes) -> ComputeConfig:
  return ComputeConfig(
    **{
      "dtype": "float32",
      "scan_layers": True,
      "remat": "none",
      "remat_save": (),
      "remat_offload": (),
      "attention": "xla",
      "max_segments": None,
      "fuse_qkv": False,
      "gradients_in_order": False,
      "reduce_gradients_in_fp32": True,
      "loss_chunks": 2,
    }
    | changes
  )


def scale_config(**changes) -> LossScaleConfig:
  return LossScaleConfig(
    **{"dynamic": True, "initial": 2.0**16, "period": 3, "hysteresis": 1} | changes
  )


def optimizer_config(**changes) -> OptimizerConfig:
  return OptimizerConfig(
    **{
      "peak_lr": 1e-2,
      "final_lr": 1e-3,
      "warmup_steps": 2,
      "b1": 0.9,
      "b2": 0.95,
      "eps": 1e-8,
      "weight_decay": 0.1,
      "clip_norm": 1.0,
    }
    | changes
  )


def packed_rows(lengths: list[list[int]], seq_len: int, vocab_size: int, seed: int = 0) -> dict:
  """A batch whose row i holds documents of `lengths[i]` tokens, then padding."""
  rng = np.random.default_rng(seed)
  shape = (len(lengths), seq_len)
  batch = {name: np.zeros(shape, np.int32) for name in ("segment_ids", "positions")}
  batch["loss_weights"] = np.zeros(shape, np.float32)
  for row, documents in enumerate(lengths):
    start = 0
    for segment, length in enumerate(documents, start=1):
      at = slice(start, start + length)
      batch["segment_ids"][row, at] = segment
      batch["positions"][row, at] = np.arange(length)
      batch["loss_weights"][row, at] = 1.0
      start += length
    assert start <= seq_len, (documents, seq_len)
  real = batch["segment_ids"] > 0
  for name in ("tokens", "targets"):
    batch[name] = np.where(real, rng.integers(1, vocab_size, shape), 0).astype(np.int32)
  return batch


def random_rows(rows: int, seq_len: int, vocab_size: int, seed: int = 0) -> dict:
  """Rows packed unevenly: many documents or one, with little padding or almost nothing else."""
  rng = np.random.default_rng(seed)
  lengths = []
  for _ in range(rows):
    room, documents = int(rng.integers(2, seq_len + 1)), []
    while room > 0 and len(documents) < 4:
      documents.append(int(rng.integers(1, room + 1)))
      room -= documents[-1]
    lengths.append(documents)
  return packed_rows(lengths, seq_len, vocab_size, seed)


def numpy_params(specs: dict, seed: int) -> dict:
  """Weights as `init_params` would make them, without a compilation for every shape."""
  rng = np.random.default_rng(seed)

  def draw(spec: ParamSpec):
    return (spec.mean + spec.std * rng.standard_normal(spec.shape)).astype(np.float32)

  return map_specs(draw, specs)


def make_loss(model: ModelConfig, compute: ComputeConfig, z_loss: float = 1e-4):
  return functools.partial(next_token_loss, config=model, compute=compute, z_loss=z_loss)


class Trainer:
  """A jitted training step of a small model, on `mesh` or on one device, with its first state."""

  def __init__(
    self,
    model: ModelConfig,
    compute: ComputeConfig,
    *,
    scale: LossScaleConfig | None = None,
    average: AverageConfig | None = None,
    total_steps: int = 12,
    microbatches: int = 1,
    mesh=None,
    loss_fn=None,
    z_loss: float = 1e-4,
    **optimizer,
  ):
    specs = param_specs(model)
    scale = scale or scale_config()
    average = average or AverageConfig(fraction=0.0, every=1)
    config = optimizer_config(**optimizer)
    tx = make_optimizer(config, total_steps, specs)
    self.mesh = mesh

    def make():
      with mock.patch("train.state.init_params", numpy_params):
        return init_state(specs, tx, scale, 0, average.fraction > 0)

    step = make_train_step(
      loss_fn or make_loss(model, compute, z_loss),
      tx,
      learning_rate(config, total_steps),
      specs,
      scale=scale,
      average=average,
      total_steps=total_steps,
      microbatches=microbatches,
      row_shards=1 if mesh is None else batch_shards(mesh),
    )
    if mesh is None:
      self.state = make()
      self.step = jax.jit(step)
    else:
      shardings = state_shardings(jax.eval_shape(make), tx, specs, mesh)
      self.state = jax.device_put(make(), shardings)
      self.step = jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, None),
      )

  def run(self, state, batches):
    """The state and the host's copy of the metrics after each of `batches`."""
    metrics = []
    for batch in batches:
      if self.mesh is None:
        state, out = self.step(state, batch)
      else:
        with jax.set_mesh(self.mesh):
          state, out = self.step(state, jax.device_put(batch, batch_sharding(self.mesh)))
      metrics.append(jax.device_get(out))
    return state, metrics

"""AdamW with decay by axes, after clipping by global norm; warmup, then cosine."""

import dataclasses

import jax
import optax

from model.params import map_specs, split_trained


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Steps of the schedule are applied updates: a skipped batch moves neither it nor Adam."""

  peak_lr: float
  final_lr: float
  warmup_steps: int
  b1: float
  b2: float
  eps: float
  weight_decay: float
  clip_norm: float

  def __post_init__(self):
    if not 0 <= self.final_lr <= self.peak_lr:
      raise ValueError(
        f"optimizer.final_lr is {self.final_lr}; it must lie between 0 and "
        f"optimizer.peak_lr={self.peak_lr}."
      )
    for name in ("b1", "b2"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f"optimizer.{name} is {getattr(self, name)}; it must be in [0, 1).")
    for name in ("eps", "clip_norm"):
      if not getattr(self, name) > 0:
        raise ValueError(f"optimizer.{name} is {getattr(self, name)}; it must be positive.")
    for name in ("warmup_steps", "weight_decay"):
      if not getattr(self, name) >= 0:
        raise ValueError(f"optimizer.{name} is {getattr(self, name)}; it must be >= 0.")


def learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
  """Linear from 0 to the peak over the warmup, then a cosine to `final_lr` at `total_steps`."""
  if config.warmup_steps >= total_steps:
    raise ValueError(
      f"optimizer.warmup_steps={config.warmup_steps} leaves nothing of train.steps={total_steps} "
      "for the cosine; use a shorter warmup."
    )
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=config.peak_lr,
    warmup_steps=config.warmup_steps,
    decay_steps=total_steps,
    end_value=config.final_lr,
  )


def make_optimizer(
  config: OptimizerConfig, total_steps: int, specs: dict
) -> optax.GradientTransformation:
  """The optimizer over the trained ones of the parameters; `specs` say which, and what decays."""
  trained, _ = split_trained(specs, specs)
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.adamw(
      learning_rate(config, total_steps),
      b1=config.b1,
      b2=config.b2,
      eps=config.eps,
      weight_decay=config.weight_decay,
      mask=map_specs(lambda spec: spec.decay, trained),
    ),
  )


def applied_updates(opt_state: optax.OptState) -> jax.Array:
  """Adam's count: how many updates were applied, which is also where the schedule stands."""
  return optax.tree.get(opt_state, "ScaleByAdamState").count

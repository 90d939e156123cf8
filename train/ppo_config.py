"""A recipe of reinforcement learning on a policy's own responses, checked."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from data.config import parse
from data.questions import PromptConfig
from model.lora import LoraConfig
from train.advantages import AdvantageConfig
from train.config import RunConfig
from train.kl import KLConfig
from train.optimizer import OptimizerConfig
from train.policy_losses import ClipConfig
from train.rewards import ResponseRewardConfig, refuse_name


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """How responses are drawn: from the whole distribution, so that ratios and KL are valid.

  Attributes:
    temperature: of the policy, the old policy and the reference alike.
    layout: of the weights meanwhile: "training", or "gathered" over the axis fsdp.
    samples: responses to each prompt.
  """

  temperature: float
  layout: str
  samples: int

  def __post_init__(self):
    if not self.temperature > 0:
      raise ValueError(f"rollout.temperature is {self.temperature}; it must be positive.")
    if self.layout not in ("training", "gathered"):
      raise ValueError(f"rollout.layout is {self.layout!r}; it must be 'training' or 'gathered'.")
    if self.samples < 1:
      raise ValueError(f"rollout.samples is {self.samples}; it must be at least 1.")


@dataclasses.dataclass(frozen=True)
class ReuseConfig:
  """How often an iteration's responses are learned from.

  Attributes:
    epochs: passes over them, each in a fresh permutation.
    minibatches: updates in a pass.
    kl_stop: the passes end once a minibatch's approximate KL from the policy that responded, nats
      a token, is over 1.5 times this; None for never.
  """

  epochs: int
  minibatches: int
  kl_stop: float | None

  def __post_init__(self):
    if self.epochs < 1 or self.minibatches < 1 or not (self.kl_stop is None or self.kl_stop > 0):
      raise ValueError(
        f"reuse has epochs={self.epochs}, minibatches={self.minibatches}, kl_stop={self.kl_stop}; "
        "they must be at least 1, at least 1, and positive or null."
      )


@dataclasses.dataclass(frozen=True)
class CriticConfig:
  """The critic, a trunk of its own.

  Attributes:
    init_from: a folder to begin with; None for the first of reward.models, else the policy's.
    optimizer: of its updates.
  """

  init_from: str | None
  optimizer: OptimizerConfig


@dataclasses.dataclass(frozen=True)
class LimitConfig:
  """What ends a run as diverged, before the policy that did it is saved.

  Attributes:
    kl: the most that a response may be from the reference, summed over its tokens; None for any.
    reward_drop: the most that the mean reward of `window` iterations may be under the best such
      mean; None for any.
    window: see above.
    first_ratio: the most that the first minibatch's ratio, before any update, may be off 1.
  """

  kl: float | None
  reward_drop: float | None
  window: int
  first_ratio: float

  def __post_init__(self):
    for name in ("kl", "reward_drop", "window", "first_ratio"):
      value = getattr(self, name)
      if value is not None and not value > 0:
        raise ValueError(f"limits.{name} is {value}; it must be positive.")


@dataclasses.dataclass(frozen=True)
class KeptConfig:
  """How many responses an iteration adds to samples.jsonl."""

  kept: int


@dataclasses.dataclass(frozen=True)
class PPOConfig(RunConfig):
  """Every section of the recipe. `train.steps` counts iterations: rollouts, then updates."""

  data: PromptConfig
  reward: ResponseRewardConfig
  rollout: RolloutConfig
  kl: KLConfig
  advantage: AdvantageConfig
  clip: ClipConfig
  reuse: ReuseConfig
  critic: CriticConfig
  lora: LoraConfig
  limits: LimitConfig
  sample: KeptConfig

  def __post_init__(self):
    super().__post_init__()
    if self.train.steps is None:
      raise ValueError("train.steps is None; it counts iterations: set it.")
    if self.average.fraction:
      raise ValueError("average.fraction must be 0: no mean of weights is kept here.")
    if self.data.response_tokens % self.compute.loss_chunks:
      raise ValueError(
        f"data.response_tokens={self.data.response_tokens} is not divisible by "
        f"compute.loss_chunks={self.compute.loss_chunks}; change either."
      )
    if self.responses % self.reuse.minibatches:
      raise ValueError(
        f"data.batch_size x rollout.samples = {self.responses} is not divisible by "
        f"reuse.minibatches={self.reuse.minibatches}; change either."
      )
    if self.advantage.method != "gae" and self.rollout.samples < 2:
      raise ValueError(
        f"advantage.method is {self.advantage.method!r}, which compares responses to the same "
        "prompt; set rollout.samples to 2 or more."
      )

  @property
  def responses(self) -> int:
    """Responses an iteration."""
    return self.data.batch_size * self.rollout.samples

  @property
  def updates(self) -> int:
    """Updates in the whole run, if the KL stops none of them."""
    return self.train.steps * self.reuse.epochs * self.reuse.minibatches


def parse_config(config: Mapping[str, Any]) -> PPOConfig:
  """The recipe, checked.

  Raises:
    ValueError: a key or value is wrong, or the reward function is a name.
  """
  refuse_name(config)
  return parse(PPOConfig, config)

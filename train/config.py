"""A run's whole configuration as frozen dataclasses that check themselves."""

import dataclasses
from typing import Any

from data.config import DataConfig
from model.config import ComputeConfig, ModelConfig
from model.sharding import MeshConfig
from train.loss_scale import LossScaleConfig
from train.losses import LossConfig
from train.optimizer import OptimizerConfig
from train.step import AverageConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How long, from which weights, and how the step is compiled.

  Attributes:
    steps: batches.
    microbatches: parts of a batch whose gradients are added up.
    max_skipped: so many non-finite steps in a row end the run as diverged.
    init_from: the folder of a run, or of an imported model, with whose newest weights the first
      step begins; None for random ones.
    xla_options: XLA's own for compiling the step, by their names without dashes in front.
  """

  steps: int
  microbatches: int
  max_skipped: int
  init_from: str | None
  xla_options: dict[str, Any]

  def __post_init__(self):
    for name in ("steps", "microbatches", "max_skipped"):
      if getattr(self, name) < 1:
        raise ValueError(f"train.{name} is {getattr(self, name)}; it must be at least 1.")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """Every `every` steps and at the end; `keep_last` newest stay, and every `keep_every`-th."""

  every: int
  keep_last: int
  keep_every: int | None
  verify: bool

  def __post_init__(self):
    if self.every < 1 or self.keep_last < 1 or (self.keep_every or 1) < 1:
      raise ValueError(f"checkpoint is {self}; its counts must be at least 1.")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Held-out evaluation every `every` steps; `files` is a glob of further documents, scored as
  the set "files"."""

  every: int
  batch_size: int
  stride: int
  files: str | None

  def __post_init__(self):
    for name in ("every", "batch_size", "stride"):
      if getattr(self, name) < 1:
        raise ValueError(f"eval.{name} is {getattr(self, name)}; it must be at least 1.")


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """Progress every `every` steps; a profile for communication every `profile_every` (GPU)."""

  every: int
  profile_every: int | None
  peak_flops: float | None

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if value is not None and not value > 0:
        raise ValueError(f"log.{name} is {value}; it must be positive, or null where it may be.")


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """Continuations written at the end of a run, by temperature and nucleus sampling."""

  prompts: tuple[str, ...]
  max_tokens: int
  temperature: float
  top_p: float

  def __post_init__(self):
    if not self.prompts or not all(self.prompts):
      raise ValueError(f"sample.prompts is {self.prompts}; name at least one, and no empty one.")
    if self.temperature < 0 or not 0 < self.top_p <= 1 or self.max_tokens < 1:
      raise ValueError(
        f"sample has temperature={self.temperature}, top_p={self.top_p}, "
        f"max_tokens={self.max_tokens}; they must be >= 0, in (0, 1], and at least 1."
      )


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
  """Every section of a pretraining recipe."""

  stage: str
  seed: int
  model: ModelConfig
  compute: ComputeConfig
  mesh: MeshConfig
  data: DataConfig
  optimizer: OptimizerConfig
  loss_scale: LossScaleConfig
  loss: LossConfig
  train: TrainConfig
  average: AverageConfig
  checkpoint: CheckpointConfig
  eval: EvalConfig
  log: LogConfig
  sample: SampleConfig

  def __post_init__(self):
    if not 0 <= self.seed < 2**32:
      raise ValueError(f"seed is {self.seed}; it must be in [0, 2**32).")
    if self.compute.dtype == "float16" and not self.loss_scale.dynamic:
      raise ValueError(
        "compute.dtype is float16 and loss_scale.dynamic is False; gradients would underflow. "
        "Set loss_scale.dynamic to True and loss_scale.initial to 65536, or compute in bfloat16 or "
        "float32."
      )
    if self.compute.max_segments is not None and self.compute.max_segments < self.data.max_segments:
      raise ValueError(
        f"compute.max_segments={self.compute.max_segments} has no room for the "
        f"data.max_segments={self.data.max_segments} of a packed row; set both alike."
      )
    if self.data.seq_len % self.compute.loss_chunks:
      raise ValueError(
        f"data.seq_len={self.data.seq_len} is not divisible by "
        f"compute.loss_chunks={self.compute.loss_chunks}; change either."
      )

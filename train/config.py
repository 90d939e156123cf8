"""A run's whole configuration as frozen dataclasses that check themselves."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from data.config import DataConfig, InstructionConfig, PairConfig
from model.config import ComputeConfig, ModelConfig
from model.lora import LoraConfig
from model.sharding import MeshConfig
from train.loss_scale import LossScaleConfig
from train.losses import LossConfig, SftLossConfig
from train.optimizer import OptimizerConfig
from train.pair_loss import PairLossConfig
from train.preference_loss import PreferenceLossConfig
from train.step import AverageConfig
from train.suite import SuiteConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How long, from which weights, and how the step is compiled.

  Attributes:
    steps: batches; None where the stage counts them: its data's epochs.
    microbatches: parts of a batch whose gradients are added up.
    max_skipped: so many non-finite steps in a row end the run as diverged.
    init_from: the folder of a run, or of an imported model, with whose newest weights the first
      step begins; None for random ones.
    xla_profile: a named set of XLA's options, of train/xla_profiles.json.
    xla_options: further ones for compiling the step, by their names without dashes in front.
  """

  steps: int | None
  microbatches: int
  max_skipped: int
  init_from: str | None
  xla_profile: str
  xla_options: dict[str, Any]

  def __post_init__(self):
    for name in ("steps", "microbatches", "max_skipped"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"train.{name} is {value}; it must be at least 1.")


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
class HeldOutConfig:
  """Held-out evaluation every `every` steps, in batches of `batch_size` rows."""

  every: int
  batch_size: int

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if isinstance(value, int) and value < 1:
        raise ValueError(f"eval.{name} is {value}; it must be at least 1.")


@dataclasses.dataclass(frozen=True)
class EvalConfig(HeldOutConfig):
  """`files` is a glob of further documents, scored as the set "files"; `sets` are more, by name.

  `suite` are benchmarks that are scored at the same steps; see `train.suite`.
  """

  stride: int
  files: str | None
  sets: dict[str, str]
  suite: SuiteConfig | None


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
class RunConfig:
  """The sections of every supervised stage; each stage adds `data`, `eval` and its own."""

  stage: str
  seed: int
  model: ModelConfig
  compute: ComputeConfig
  mesh: MeshConfig
  optimizer: OptimizerConfig
  loss_scale: LossScaleConfig
  train: TrainConfig
  average: AverageConfig
  checkpoint: CheckpointConfig
  log: LogConfig

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


@dataclasses.dataclass(frozen=True)
class PretrainConfig(RunConfig):
  """Every section of a pretraining recipe."""

  data: DataConfig
  loss: LossConfig
  eval: EvalConfig
  sample: SampleConfig

  def __post_init__(self):
    super().__post_init__()
    if self.train.steps is None:
      raise ValueError("train.steps is None; pretraining has no epochs to count them by: set it.")


@dataclasses.dataclass(frozen=True)
class AnswerConfig:
  """Answers to the first `prompts` held-out prompts, written every `every` steps.

  Attributes:
    every, prompts: see above; 0 prompts for none.
    max_tokens, temperature, top_p: of an answer.
  """

  every: int
  prompts: int
  max_tokens: int
  temperature: float
  top_p: float

  def __post_init__(self):
    if self.every < 1 or self.prompts < 0 or self.max_tokens < 1:
      raise ValueError(
        f"sample has every={self.every}, prompts={self.prompts}, max_tokens={self.max_tokens}; "
        "they must be at least 1, 0 and 1."
      )
    if self.temperature < 0 or not 0 < self.top_p <= 1:
      raise ValueError(
        f"sample has temperature={self.temperature}, top_p={self.top_p}; they must be >= 0 and in "
        "(0, 1]."
      )


@dataclasses.dataclass(frozen=True)
class SftConfig(RunConfig):
  """Every section of a recipe of supervised fine-tuning."""

  data: InstructionConfig
  loss: SftLossConfig
  lora: LoraConfig
  eval: HeldOutConfig
  sample: AnswerConfig


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
  """What is scored, and on what scale.

  Attributes:
    weights: {dimension: its weight in the combined reward}, in the order of the heads.
    reference: the folder of the policy on whose answers scores get mean 0 and deviation 1; null
      takes the comparisons' own answers.
    prompts: held-out prompts that it answers.
    max_tokens, temperature: of its answers.
  """

  weights: dict[str, float]
  reference: str | None
  prompts: int
  max_tokens: int
  temperature: float

  def __post_init__(self):
    if not self.weights:
      raise ValueError("score.weights is empty; name at least one dimension.")
    if self.prompts < 2 or self.max_tokens < 1 or not self.temperature > 0:
      raise ValueError(
        f"score has prompts={self.prompts}, max_tokens={self.max_tokens}, "
        f"temperature={self.temperature}; they must be at least 2, at least 1, and positive."
      )


@dataclasses.dataclass(frozen=True)
class RewardConfig(RunConfig):
  """Every section of a recipe of a reward model."""

  data: PairConfig
  loss: PairLossConfig
  lora: LoraConfig
  score: ScoreConfig
  eval: HeldOutConfig

  def __post_init__(self):
    super().__post_init__()
    _check_dimensions(self.data, self.score.weights, "score.weights")


def _check_dimensions(data: PairConfig, known: Mapping[str, float], where: str) -> None:
  for name, source in data.sources.items():
    if source.dimension is not None and source.dimension not in known:
      raise ValueError(
        f"data.sources.{name}.dimension is {source.dimension!r}, none of {where} "
        f"({', '.join(known)})."
      )


@dataclasses.dataclass(frozen=True)
class DpoConfig(RunConfig):
  """Every section of a recipe of direct preference optimization.

  Attributes:
    preference: {dimension: its weight in which answer is the better one}; see
      `data.preferences.preferred`.
    reference: the folder of the policy that this one is held against; None for `train.init_from`.
  """

  data: PairConfig
  preference: dict[str, float]
  reference: str | None
  loss: PreferenceLossConfig
  lora: LoraConfig
  eval: HeldOutConfig
  sample: AnswerConfig

  def __post_init__(self):
    super().__post_init__()
    if not any(self.preference.values()):
      raise ValueError(
        f"preference is {self.preference}; give at least one dimension a weight that is not 0."
      )
    _check_dimensions(self.data, self.preference, "preference")
    if self.train.init_from is None:
      raise ValueError(
        "train.init_from is None; preferences are learned relative to the policy that one begins "
        "with: name its folder."
      )

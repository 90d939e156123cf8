"""The architecture of a decoder as a frozen dataclass, and the legend of the shape suffixes.

B batch rows, L query length, M key length, D model width, N query heads, G key-value heads,
K head size, F feed-forward width, V vocabulary. A stacked layer parameter has the number of
layers in front, which the suffix leaves out.
"""

import dataclasses

REMAT_POLICIES = ("none", "full", "selective")
# Activations of a layer that a selective policy can save or offload, in the order of computation;
# inverse_rms is of all its norms, a number a token or head. attention_out and _lse are the kernel's
# own residuals: with both, it runs forward once. loss_slope is the loss's: with it, the logits are
# computed once.
SAVABLE = (
  "inverse_rms",
  "attention_norm",
  "qkv",
  "attention_out",
  "attention_lse",
  "attention_proj",
  "mlp_norm",
  "mlp_gate",
  "mlp_up",
  "mlp_hidden",
  "loss_slope",
)
ATTENTION_IMPLEMENTATIONS = ("auto", "xla", "chunked", "pallas", "cudnn")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Llama 3's frequency scaling: https://github.com/meta-llama/llama-models, `apply_scaling`."""

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_positions: int

  def __post_init__(self):
    if self.factor < 1 or self.high_freq_factor <= self.low_freq_factor:
      raise ValueError(
        f"model.rope_scaling has factor={self.factor}, low_freq_factor={self.low_freq_factor}, "
        f"high_freq_factor={self.high_freq_factor}; factor must be >= 1 and high > low."
      )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Architecture: everything that a checkpoint's weights depend on."""

  vocab_size: int
  d_model: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  d_ff: int
  tie_embeddings: bool
  qk_norm: bool
  qkv_bias: bool
  rope_theta: float
  rope_scaling: RopeScaling | None
  sliding_window: int | None
  attention_softcap: float | None
  logit_softcap: float | None
  norm_eps: float
  embed_init_std: float

  def __post_init__(self):
    for name in ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "d_ff"):
      if getattr(self, name) < 1:
        raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1.")
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"model.num_heads={self.num_heads} is not divisible by "
        f"model.num_kv_heads={self.num_kv_heads}; every key-value head serves a whole group."
      )
    if self.head_dim < 2 or self.head_dim % 2:
      raise ValueError(f"model.head_dim is {self.head_dim}; RoPE rotates pairs, so make it even.")
    for name in ("rope_theta", "norm_eps", "embed_init_std"):
      if not getattr(self, name) > 0:
        raise ValueError(f"model.{name} is {getattr(self, name)}; it must be positive.")
    for name in ("sliding_window", "attention_softcap", "logit_softcap"):
      value = getattr(self, name)
      if value is not None and value <= 0:
        raise ValueError(f"model.{name} is {value}; it must be positive, or None for off.")


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
  """How the same function is computed: nothing here changes what the weights mean.

  Attributes:
    dtype: of activations and matrix products; parameters are fp32.
    scan_layers: `lax.scan` over the layers, or all of them in line.
    remat: "none" saves all activations for the backward pass, "full" a layer's input alone,
      "selective" those of SAVABLE that are in `remat_save`, or on the host in `remat_offload`.
    attention: an implementation of `model.attention`.
    max_segments: documents in a row that cuDNN's offsets have room for; None for the others.
    fuse_qkv: queries, keys and values as one product of a layer. A few key-value heads alone are
      too few columns, and in the backward pass too shallow, to keep a matrix unit busy; and it is
      one gather, and one sum of gradients. Laptops are as fast without.
    gradients_in_order: a weight's gradient comes before what follows it in the backward pass. A
      scheduler may otherwise put it off, and keep for it what it is made of, of several layers; but
      then XLA may merge their sums over devices, as few layers with slow networks want it.
    reduce_gradients_in_fp32: whether weight gradients are summed over devices in fp32.
    loss_chunks: parts of a row whose fp32 logits are held at one time; with "loss_slope", parts of
      the vocabulary.
  """

  dtype: str
  scan_layers: bool
  remat: str
  remat_save: tuple[str, ...]
  remat_offload: tuple[str, ...]
  attention: str
  max_segments: int | None
  fuse_qkv: bool
  gradients_in_order: bool
  reduce_gradients_in_fp32: bool
  loss_chunks: int

  def __post_init__(self):
    _one_of("compute.dtype", self.dtype, ("float16", "bfloat16", "float32"))
    _one_of("compute.attention", self.attention, ATTENTION_IMPLEMENTATIONS)
    _one_of("compute.remat", self.remat, REMAT_POLICIES)
    for name in ("remat_save", "remat_offload"):
      for tensor in getattr(self, name):
        _one_of(f"compute.{name}", tensor, SAVABLE)
      if getattr(self, name) and self.remat != "selective":
        raise ValueError(
          f"compute.{name} is {getattr(self, name)} but compute.remat is {self.remat!r}; "
          f"set compute.remat to 'selective', or leave {name} empty."
        )
    if "loss_slope" in self.remat_offload:
      raise ValueError(
        "compute.remat_offload has 'loss_slope', which stays on the device; put it in "
        "compute.remat_save, or leave it out."
      )
    if self.loss_chunks < 1:
      raise ValueError(f"compute.loss_chunks is {self.loss_chunks}; it must be at least 1.")


def _one_of(name: str, value: str, known: tuple[str, ...]):
  if value not in known:
    raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(known)}.")

"""The config.json of Hugging Face's Llama, Mistral, Qwen2 and Qwen3 families, to and from ours.

SmolLM and SmolLM2 are of Llama's architecture, Qwen2.5 of Qwen2's.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.config import ModelConfig, RopeScaling

CONFIG = "config.json"
FAMILIES = {
  "LlamaForCausalLM": "llama",
  "MistralForCausalLM": "mistral",
  "Qwen2ForCausalLM": "qwen2",
  "Qwen3ForCausalLM": "qwen3",
}
_SLIDING, _FULL = "sliding_attention", "full_attention"
LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def read_json(path: Path) -> dict[str, Any]:
  """The object in a file; raises ValueError, naming it, where there is none."""
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise ValueError(f"{path} cannot be read: {error}.") from None
  if not isinstance(content, dict):
    raise ValueError(f"{path} holds {type(content).__name__}, and not an object.")
  return content


def to_model(hf: Mapping[str, Any]) -> ModelConfig:
  """The ModelConfig of a config.json; what that leaves out has the default of `transformers`.

  Raises:
    ValueError: an architecture, or a value in it, that is not supported; the message names it.
  """
  family = _family(hf)
  for key, allowed in (
    ("hidden_act", "silu"),
    ("attention_bias", False),
    ("mlp_bias", False),
    ("partial_rotary_factor", 1.0),
    ("quantization_config", None),
  ):
    if hf.get(key, allowed) != allowed:
      raise ValueError(f"config.json: {key} is {hf[key]!r}; only {allowed!r} is supported.")
  heads, width = _required(hf, "num_attention_heads"), _required(hf, "hidden_size")
  theta, scaling = _rope(hf)
  return ModelConfig(
    vocab_size=_required(hf, "vocab_size"),
    d_model=width,
    num_layers=_required(hf, "num_hidden_layers"),
    num_heads=heads,
    num_kv_heads=_optional(hf, "num_key_value_heads") or heads,
    head_dim=_optional(hf, "head_dim") or (128 if family == "qwen3" else width // heads),
    d_ff=_required(hf, "intermediate_size"),
    tie_embeddings=_flag(hf, "tie_word_embeddings"),
    qk_norm=family == "qwen3",
    qkv_bias=family == "qwen2",
    rope_theta=theta,
    rope_scaling=scaling,
    sliding_window=_sliding_window(hf, family),
    attention_softcap=None,
    logit_softcap=None,
    norm_eps=_number(hf, "rms_norm_eps", 1e-6),
    embed_init_std=_number(hf, "initializer_range", 0.02),
  )


def _family(hf: Mapping[str, Any]) -> str:
  named = hf.get("architectures") or [
    name for name, kind in FAMILIES.items() if kind == hf.get("model_type")
  ]
  for architecture in named if isinstance(named, list) else ():
    if isinstance(architecture, str) and architecture in FAMILIES:
      return FAMILIES[architecture]
  raise ValueError(
    f"config.json: architecture {hf.get('architectures') or hf.get('model_type')} is unknown here; "
    f"known are {', '.join(FAMILIES)}."
  )


def _required(hf: Mapping[str, Any], key: str) -> int:
  value = hf.get(key)
  if type(value) is not int or value < 1:
    raise ValueError(f"config.json: {key} is {value!r}; it must be a positive integer.")
  return value


def max_positions(hf: Mapping[str, Any]) -> int:
  """The longest row of a config.json; 0 where it does not say. Raises ValueError for no integer."""
  return _optional(hf, "max_position_embeddings") or 0


def _optional(hf: Mapping[str, Any], key: str) -> int | None:
  return None if hf.get(key) is None else _required(hf, key)


def _flag(hf: Mapping[str, Any], key: str) -> bool:
  value = hf.get(key)
  if not isinstance(value, bool | None):
    raise ValueError(f"config.json: {key} is {value!r}; it must be true or false.")
  return bool(value)


def _number(hf: Mapping[str, Any], key: str, default: float | None = None) -> float:
  value = default if hf.get(key) is None else hf[key]
  if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
    raise ValueError(f"config.json: {key} is {value!r}; it must be a positive number.")
  return float(value)


def _rope(hf: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
  """Theta and scaling; transformers 5 writes both into `rope_parameters`."""
  scaling = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
  if not isinstance(scaling, dict):
    raise ValueError(f"config.json: RoPE's parameters are {scaling!r}; they must be an object.")
  theta = _number(scaling, "rope_theta", _number(hf, "rope_theta", 10_000.0))
  if (part := scaling.get("partial_rotary_factor", 1.0)) != 1.0:
    raise ValueError(f"config.json: partial_rotary_factor is {part}; only 1.0 is supported.")
  kind = scaling.get("rope_type") or scaling.get("type") or "default"
  if kind == "default":
    return theta, None
  if kind != "llama3":
    raise ValueError(f"config.json: RoPE scaling {kind!r} is not supported; 'llama3' is.")
  for key in LLAMA3_KEYS:
    if key not in scaling:
      raise ValueError(f"config.json: RoPE scaling 'llama3' has no {key!r}.")
  return theta, RopeScaling(
    factor=_number(scaling, "factor"),
    low_freq_factor=_number(scaling, "low_freq_factor"),
    high_freq_factor=_number(scaling, "high_freq_factor"),
    original_max_positions=_required(scaling, "original_max_position_embeddings"),
  )


def _sliding_window(hf: Mapping[str, Any], family: str) -> int | None:
  """The window, where all layers have one; Qwen names the first layer that has."""
  if family == "llama":
    return None
  window = _optional(hf, "sliding_window") if "sliding_window" in hf else 4096
  if family == "mistral":
    return window
  if not _flag(hf, "use_sliding_window") or window is None:
    return None
  layers, first = hf["num_hidden_layers"], hf.get("max_window_layers", 28)
  kinds = hf.get("layer_types")
  if kinds is None and type(first) is int:
    kinds = [_SLIDING] * (first < layers) + [_FULL] * (first > 0)
  if not kinds or not all(kind in (_SLIDING, _FULL) for kind in kinds):
    raise ValueError(
      f"config.json: layer_types is {kinds!r} and max_window_layers {first!r}; the former must be "
      f"a list of {_SLIDING!r} and {_FULL!r}, or the latter an integer."
    )
  if len(set(kinds)) > 1:
    raise ValueError(
      "config.json: some layers have sliding windows and some have not (layer_types, "
      "max_window_layers); all must have, or none."
    )
  return window if kinds[0] == _SLIDING else None


def from_model(config: ModelConfig, max_positions: int) -> dict[str, Any]:
  """The config.json of the family that computes what `config` describes.

  Args:
    config: of the model.
    max_positions: the longest row it was trained on.

  Raises:
    ValueError: none of the families computes that.
  """
  c = config
  for name in ("attention_softcap", "logit_softcap"):
    if getattr(c, name) is not None:
      raise ValueError(f"model.{name}={getattr(c, name)}: no exported family has a soft cap.")
  if c.qk_norm and c.qkv_bias:
    raise ValueError("model.qk_norm and model.qkv_bias are both set: no exported family has both.")
  window: dict[str, Any] = {}
  if c.qk_norm or c.qkv_bias:
    family = "qwen3" if c.qk_norm else "qwen2"
    window = {"use_sliding_window": False, "sliding_window": None}
    if c.sliding_window is not None:
      window = {
        "use_sliding_window": True,
        "sliding_window": c.sliding_window,
        "max_window_layers": 0,
      }
  elif c.sliding_window is not None:
    family, window = "mistral", {"sliding_window": c.sliding_window}
  else:
    family = "llama"
  scaling = c.rope_scaling and {
    "rope_type": "llama3",
    "factor": c.rope_scaling.factor,
    "low_freq_factor": c.rope_scaling.low_freq_factor,
    "high_freq_factor": c.rope_scaling.high_freq_factor,
    "original_max_position_embeddings": c.rope_scaling.original_max_positions,
  }
  return {
    "architectures": [name for name, kind in FAMILIES.items() if kind == family],
    "model_type": family,
    "vocab_size": c.vocab_size,
    "hidden_size": c.d_model,
    "num_hidden_layers": c.num_layers,
    "num_attention_heads": c.num_heads,
    "num_key_value_heads": c.num_kv_heads,
    "head_dim": c.head_dim,
    "intermediate_size": c.d_ff,
    "hidden_act": "silu",
    "tie_word_embeddings": c.tie_embeddings,
    "rope_theta": c.rope_theta,
    "rope_scaling": scaling,
    "max_position_embeddings": max_positions,
    "rms_norm_eps": c.norm_eps,
    "initializer_range": c.embed_init_std,
    "attention_bias": False,
    "torch_dtype": "float32",
    **window,
  }


def from_scorer(
  config: ModelConfig, max_positions: int, dimensions: Sequence[str], scale: Mapping[str, Any]
) -> dict[str, Any]:
  """`from_model` of a trunk with scores: a sequence classification of one label a dimension.

  Hugging Face's score has no bias and no scale, so that its logits are the raw scores without
  their biases. What makes rewards of them is in "straits_reward".

  Args:
    config, max_positions: as of `from_model`.
    dimensions: in the order of the scores.
    scale: what is to be subtracted from the logits, the divisor, weight and temperature of each.
  """
  described = from_model(config, max_positions)
  names = [f"{n.removesuffix('ForCausalLM')}ForSequenceClassification"
           for n in described["architectures"]]  # fmt: skip
  return described | {
    "architectures": names,
    "num_labels": len(dimensions),
    "id2label": {str(i): name for i, name in enumerate(dimensions)},
    "label2id": {name: i for i, name in enumerate(dimensions)},
    "problem_type": "regression",
    "straits_reward": dict(scale),
  }

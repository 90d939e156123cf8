"""GGUF files of llama.cpp as Hugging Face models: config, tensors by their names there, tokenizer.

The `gguf` package (the extra `gguf`) reads and dequantizes them. Format and names:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

ARCHITECTURES = {
  "llama": "LlamaForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
}
NAMES = {
  "token_embd": "model.embed_tokens",
  "output_norm": "model.norm",
  "output": "lm_head",
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "attn_q_norm": "self_attn.q_norm",
  "attn_k_norm": "self_attn.k_norm",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}
ROPE_FACTORS = "rope_freqs.weight"
CONTROL, USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type

# Of the published tokenizers that `tokenizer.ggml.pre` names.
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
  r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class File(Mapping[str, np.ndarray]):
  """A GGUF file: {Hugging Face's name of a tensor: fp32 array}, dequantized when it is asked for.

  Attributes:
    config: what Hugging Face's config.json of the model says.

  Raises:
    ValueError: the file is no GGUF file, is truncated, or its architecture is unknown.
  """

  def __init__(self, path: Path):
    try:
      import gguf
    except ImportError:
      raise ValueError(
        f"{path}: to read GGUF, install the extra: pip install -e '.[gguf]'"
      ) from None
    self._gguf, self._path = gguf, path
    try:
      reader = gguf.GGUFReader(path)
      self._fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, KeyError, IndexError, OverflowError) as error:
      raise ValueError(f"{path} is no GGUF file, or is truncated: {error}.") from None
    self._architecture = self._fields.get("general.architecture")
    if self._architecture not in ARCHITECTURES:
      raise ValueError(
        f"{path}: architecture {self._architecture!r} is unknown here; known are "
        f"{', '.join(ARCHITECTURES)}."
      )
    stored = {tensor.name: tensor for tensor in reader.tensors}
    self._rope_factors = stored.pop(ROPE_FACTORS, None)
    self._tensors = {_name(name): tensor for name, tensor in stored.items()}
    try:
      self.config = self._config()
    except (TypeError, IndexError) as error:
      raise ValueError(f"{path}: its fields describe no model: {error}.") from error

  def __getitem__(self, name: str) -> np.ndarray:
    tensor = self._tensors[name]
    array = self._read(tensor)
    if self._architecture == "llama" and ".attn_q." in tensor.name:
      return _half_rotation(array, self.config["num_attention_heads"])
    if self._architecture == "llama" and ".attn_k." in tensor.name:
      return _half_rotation(array, self.config["num_key_value_heads"])
    return array

  def __iter__(self) -> Iterator[str]:
    return iter(self._tensors)

  def __len__(self) -> int:
    return len(self._tensors)

  def _read(self, tensor) -> np.ndarray:
    try:
      return self._gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    except NotImplementedError:
      raise ValueError(
        f"{self._path}: tensor {tensor.name!r} is {tensor.tensor_type.name}, which the gguf "
        "package does not dequantize."
      ) from None

  def _field(self, key: str, default: Any = None) -> Any:
    return self._fields.get(f"{self._architecture}.{key}", default)

  def _config(self) -> dict[str, Any]:
    embedding = self._tensors.get("model.embed_tokens.weight")
    if embedding is None:
      raise ValueError(f"{self._path}: tensor 'token_embd.weight' is missing.")
    if self._field("expert_count"):
      raise ValueError(f"{self._path}: a mixture of experts is not supported.")
    heads, theta = self._field("attention.head_count"), self._field("rope.freq_base", 10_000.0)
    width = self._field("embedding_length")
    head_dim = self._field("attention.key_length") or self._field("rope.dimension_count")
    head_dim = head_dim or (width // heads if width and heads else 0)
    return {
      "architectures": [ARCHITECTURES[self._architecture]],
      "vocab_size": int(embedding.shape[1]),
      "hidden_size": width,
      "num_hidden_layers": self._field("block_count"),
      "num_attention_heads": heads,
      "num_key_value_heads": self._field("attention.head_count_kv", heads),
      "head_dim": head_dim,
      "intermediate_size": self._field("feed_forward_length"),
      "tie_word_embeddings": "lm_head.weight" not in self._tensors,
      # Stored in fp32: 1e-5 reads as 9.999999747378752e-06.
      "rms_norm_eps": float(f"{self._field('attention.layer_norm_rms_epsilon', 1e-6):.6g}"),
      "rope_theta": theta,
      "rope_scaling": self._rope_scaling(head_dim, theta),
      "max_position_embeddings": self._field("context_length"),
      "bos_token_id": self._fields.get("tokenizer.ggml.bos_token_id"),
      "eos_token_id": self._fields.get("tokenizer.ggml.eos_token_id"),
    }

  def _rope_scaling(self, head_dim: int, theta: float) -> dict[str, Any] | None:
    """Llama 3's, which is stored as a factor a frequency; its other constants are published."""
    kind = self._field("rope.scaling.type", "none")
    if kind != "none":
      raise ValueError(f"{self._path}: RoPE scaling {kind!r} is not supported.")
    if self._rope_factors is None:
      return None
    factors = self._read(self._rope_factors)
    scaling = {
      "rope_type": "llama3",
      "factor": float(factors.max()),
      "low_freq_factor": 1.0,
      "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192,
    }
    turns = 8192 * theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * np.pi)
    keep = np.clip((turns - 1.0) / 3.0, 0.0, 1.0)
    expected = 1 / (keep + (1 - keep) / scaling["factor"])
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
      raise ValueError(f"{self._path}: {ROPE_FACTORS!r} holds other factors than Llama 3's.")
    return scaling

  def write_tokenizer(self, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, with the chat template.

    Raises:
      ValueError: the kind of tokenizer is unknown.
    """
    fields = self._fields
    kind, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
      raise ValueError(
        f"{self._path}: its tokenizer ({kind!r}, pre-tokenizer {pre!r}) cannot be converted; known "
        f"are 'gpt2' with {', '.join(_PRE_TOKENIZERS)}. Import the Hugging Face directory instead."
      )
    names = fields.get("tokenizer.ggml.tokens", [])
    if len(names) > self.config["vocab_size"]:
      raise ValueError(
        f"{self._path}: the tokenizer has {len(names)} ids and the embedding "
        f"{self.config['vocab_size']}."
      )
    try:
      tokenizer, special = self._tokenizer(names, pre)
    except Exception as error:  # the library raises no narrower class
      raise ValueError(f"{self._path}: its tokenizer is damaged: {error!r}.") from error
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    if template := fields.get("tokenizer.chat_template"):
      config["chat_template"] = template
    config["clean_up_tokenization_spaces"] = False
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")

  def _tokenizer(self, names: list[str], pre: str) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The tokenizer, and {"bos_token": name, ...} of its special tokens."""
    fields = self._fields
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    ids = {name: i for i, name in enumerate(names)}
    for merge in merges:  # the library ends the program at such a one
      if len(merge) != 2 or not ids.keys() >= {*merge, "".join(merge)}:
        raise ValueError(f"the merge {' '.join(merge)!r} is of no two tokens to a third")
    tokenizer = tokenizers.Tokenizer(
      models.BPE(vocab=ids, merges=merges, ignore_merges=pre == "llama-bpe")
    )
    if pre == "qwen2":
      tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields.get("tokenizer.ggml.token_type", [1] * len(names))
    for name, token_type in zip(names, kinds, strict=True):
      if token_type in (CONTROL, USER_DEFINED):
        special = token_type == CONTROL
        tokenizer.add_tokens([tokenizers.AddedToken(name, special=special, normalized=False)])
    special = {
      f"{role}_token": names[fields[f"tokenizer.ggml.{key}_token_id"]]
      for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
      if f"tokenizer.ggml.{key}_token_id" in fields
    }
    if fields.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe") and "bos_token" in special:
      bos = special["bos_token"]
      tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, ids[bos])]
      )
    return tokenizer, special


def _split(digits: str):
  split = pre_tokenizers.Split(Regex(_WORDS.format(digits=digits)), behavior="isolated")
  return pre_tokenizers.Sequence(
    [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
  )


def _gpt2():
  return pre_tokenizers.ByteLevel(add_prefix_space=False)


_PRE_TOKENIZERS = {
  "gpt-2": _gpt2,
  "smollm": lambda: pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), _gpt2()]
  ),
  "llama-bpe": lambda: _split(r"\p{N}{1,3}"),
  "qwen2": lambda: _split(r"\p{N}"),
}


def _name(name: str) -> str:
  """Hugging Face's name of a tensor; one that is not known stays, and is refused as such."""
  base, _, kind = name.rpartition(".")
  if base.startswith("blk.") and base.count(".") > 1:
    _, layer, part = base.split(".", 2)
    return f"model.layers.{layer}.{NAMES.get(part, part)}.{kind}"
  return f"{NAMES.get(base, base)}.{kind}"


def _half_rotation(array: np.ndarray, heads: int) -> np.ndarray:
  """Undoes llama.cpp's order of a head's rows: its RoPE rotates neighbours, ours halves."""
  pairs = array.reshape(heads, -1, 2, *array.shape[1:])
  return pairs.swapaxes(1, 2).reshape(array.shape)

"""GGUF files: the models and tokenizers in them are those that were written."""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from data import embedded
from model import hf, hf_config
from model.config import RopeScaling
from model.safetensors import open_directory
from tests.fixtures import make_hf
from tests.test_hf import check_logits, fixture
from train.gguf import ROPE_FACTORS, File

gguf = pytest.importorskip("gguf")
HF_NAMES = {
  "model.embed_tokens": "token_embd",
  "model.norm": "output_norm",
  "lm_head": "output",
  "input_layernorm": "attn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  "post_attention_layernorm": "ffn_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
  base, kind = name.rsplit(".", 1)
  if base.startswith("model.layers."):
    _, _, layer, part = base.split(".", 3)
    return f"blk.{layer}.{HF_NAMES[part]}.{kind}"
  return f"{HF_NAMES[base]}.{kind}"


def neighbours(array, heads):
  """llama.cpp's order of a head's rows, as its converter makes it."""
  halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
  return halves.swapaxes(1, 2).reshape(array.shape)


def write(path, name, kinds=None, extra=None, add=None, architecture=None, theta=None):
  """A fixture's model as llama.cpp would store it; `kinds` are of tensors that are quantized."""
  described = hf_config.read_json(make_hf.FIXTURES / name / "config.json")
  config = hf_config.to_model(described)
  family = "llama" if described["model_type"] == "mistral" else described["model_type"]
  writer = gguf.GGUFWriter(path, architecture or family)
  writer.add_embedding_length(config.d_model)
  writer.add_block_count(config.num_layers)
  writer.add_feed_forward_length(config.d_ff)
  writer.add_head_count(config.num_heads)
  writer.add_head_count_kv(config.num_kv_heads)
  writer.add_key_length(config.head_dim)
  writer.add_context_length(64)
  writer.add_rope_freq_base(theta or config.rope_theta)
  writer.add_layer_norm_rms_eps(config.norm_eps)
  for method, value in (extra or {}).items():
    getattr(writer, method)(value)
  for key, array in open_directory(make_hf.FIXTURES / name).items():
    array = array.astype(np.float32)
    if family == "llama" and "q_proj" in key:
      array = neighbours(array, config.num_heads)
    if family == "llama" and "k_proj" in key:
      array = neighbours(array, config.num_kv_heads)
    kind = (kinds or {}).get(key)
    if kind is None:
      writer.add_tensor(gguf_name(key), array)
    else:
      writer.add_tensor(gguf_name(key), gguf.quantize(array, kind), raw_dtype=kind)
  for key, array in (add or {}).items():
    writer.add_tensor(key, array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.mark.parametrize("name", ["smollm", "qwen2", "qwen3"])
def test_a_model_is_read_as_it_was(tmp_path, name):
  file = File(write(tmp_path / "model.gguf", name))
  config, params = hf.load(make_hf.FIXTURES / name)
  assert hf_config.to_model(file.config) == config
  expected = dict(hf.stored_tensors(params, config))
  assert set(file) == set(expected) and len(file) == len(expected)
  for key, array in expected.items():
    np.testing.assert_array_equal(file[key], array)


@pytest.mark.parametrize(
  ("kind", "error"),
  [("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 1e-2), ("Q4_0", 0.3), ("Q4_1", 0.2)],
)
def test_quantized_tensors_are_near_what_they_were(tmp_path, kind, error):
  key = "model.layers.1.self_attn.q_proj.weight"
  kinds = {key: gguf.GGMLQuantizationType[kind]}
  file = File(write(tmp_path / "model.gguf", "smollm", kinds))
  array = open_directory(make_hf.FIXTURES / "smollm")[key]
  assert 0 < np.abs(file[key] - array).max() < error and file[key].dtype == np.float32


def half(raw, first):
  return float(np.frombuffer(raw, np.float16, 1, first)[0])


def six_bits(raw, j):
  """get_scale_min_k4 of https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c"""
  if j < 4:
    return raw[j] & 63, raw[j + 4] & 63
  low = raw[j + 4]
  return (low & 15) | (raw[j - 4] >> 6 << 4), (low >> 4) | (raw[j] >> 6 << 4)


def q4(raw, least):
  """dequantize_row_q4_0 and q4_1 of the same file: a scale, and a minimum or 8 less."""
  q = [x & 15 for x in raw[-16:]] + [x >> 4 for x in raw[-16:]]
  return [half(raw, 0) * x + half(raw, 2) if least else half(raw, 0) * (x - 8) for x in q]


def q2_k(raw):
  """dequantize_row_q2_K of the same file: 16 bytes of scale and minimum, 2 bits, both in fp16."""
  values = []
  for k in range(16):  # sixteen values each
    part, shift, first = k // 8, k % 8 // 2 * 2, 16 * (k % 2)
    scale, least = half(raw, 80) * (raw[k] & 15), half(raw, 82) * (raw[k] >> 4)
    q = raw[16 + 32 * part + first : 32 + 32 * part + first]
    values += [scale * ((x >> shift) & 3) - least for x in q]
  return values


def q3_k(raw):
  """dequantize_row_q3_K of the same file: the third bits, 2 bits, 16 scales of 6 bits, an fp16."""
  values, packed = [], raw[96:108]
  for k in range(16):
    scale = (packed[k % 8] >> (4 * (k // 8))) & 15
    scale |= ((packed[8 + k % 4] >> (2 * (k // 4))) & 3) << 4
    part, bit, first = k // 8, k // 2, 16 * (k % 2)
    for i in range(first, first + 16):
      q = (raw[32 + 32 * part + i] >> (2 * (bit % 4))) & 3
      q -= 0 if (raw[i] >> bit) & 1 else 4
      values.append(half(raw, 108) * (scale - 32) * q)
  return values


def q4_or_q5_k(raw, fifth):
  """dequantize_row_q4_K and q5_K of the same file: 2 scales in fp16, 12 bytes of 6 bits each."""
  high, low = raw[16:48], raw[16 + 32 * fifth :]
  values = []
  for j in range(8):
    scale, least = six_bits(raw[4:16], j)
    for i in range(32):
      q = (low[j // 2 * 32 + i] >> (4 * (j % 2))) & 15
      q += 16 * ((high[i] >> j) & 1) if fifth else 0
      values.append(half(raw, 0) * scale * q - half(raw, 2) * least)
  return values


def q6_k(raw):
  """dequantize_row_q6_K of the same file: 4 bits, 2 bits, 16 scales of 8 bits, one in fp16."""
  scales = np.frombuffer(raw, np.int8, 16, 192)
  values = np.zeros(256)
  for part in range(2):
    for i in range(32):
      high = raw[128 + 32 * part + i]
      for j in range(4):
        low = raw[64 * part + 32 * (j % 2) + i] >> (4 * (j // 2))
        q = ((low & 15) | (((high >> (2 * j)) & 3) << 4)) - 32
        values[128 * part + 32 * j + i] = half(raw, 208) * scales[8 * part + 2 * j + i // 16] * q
  return values


@pytest.mark.parametrize(
  ("kind", "halves", "reference"),
  [
    ("Q8_0", (0,), lambda raw: half(raw, 0) * np.frombuffer(raw, np.int8, 32, 2).astype(float)),
    ("Q4_0", (0,), lambda raw: q4(raw, False)),
    ("Q4_1", (0, 2), lambda raw: q4(raw, True)),
    ("Q2_K", (80, 82), q2_k),
    ("Q3_K", (108,), q3_k),
    ("Q4_K", (0, 2), lambda raw: q4_or_q5_k(raw, False)),
    ("Q5_K", (0, 2), lambda raw: q4_or_q5_k(raw, True)),
    ("Q6_K", (208,), q6_k),
  ],
)
def test_blocks_are_dequantized_as_llama_cpp_does(tmp_path, kind, halves, reference):
  """Random bits, all of which are valid blocks but for their scales in fp16."""
  kind = gguf.GGMLQuantizationType[kind]
  values, size = gguf.GGML_QUANT_SIZES[kind]
  blocks = np.random.default_rng(0).integers(0, 256, (2, 3, size), np.uint8)
  for first in halves:
    scale = np.linspace(-0.01, 0.02, 6, dtype=np.float16).reshape(2, 3, 1)
    blocks[..., first : first + 2] = scale.view(np.uint8).reshape(2, 3, 2)
  writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
  writer.add_embedding_length(3 * values)
  writer.add_head_count(2)
  writer.add_tensor("token_embd.weight", blocks.reshape(2, -1), raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  array = File(tmp_path / "model.gguf")["model.embed_tokens.weight"]
  expected = np.concatenate([reference(block.tobytes()) for block in blocks.reshape(6, size)])
  assert array.dtype == np.float32 and np.abs(expected).max() > 0.1
  np.testing.assert_allclose(array, expected.reshape(2, -1), rtol=1e-5, atol=1e-6)


def llama3_factors(head_dim, theta, factor):
  """https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py, for Llama 3."""
  factors = []
  for freq in 1.0 / theta ** (np.arange(0, head_dim, 2) / head_dim):
    wavelength = 2 * np.pi / freq
    if wavelength < 8192 / 4:
      factors.append(1.0)
    elif wavelength > 8192:
      factors.append(factor)
    else:
      smooth = (8192 / wavelength - 1) / 3
      factors.append(1 / ((1 - smooth) / factor + smooth))
  return np.array(factors, np.float32)


def test_llama3_scaling_is_recognized_by_its_factors(tmp_path):
  factors = llama3_factors(8, 5e5, 32.0)
  path = write(tmp_path / "a.gguf", "llama", add={ROPE_FACTORS: factors}, theta=5e5)
  scaling = hf_config.to_model(File(path).config).rope_scaling
  assert scaling == RopeScaling(32.0, 1.0, 4.0, 8192)
  path = write(tmp_path / "b.gguf", "llama", add={ROPE_FACTORS: factors[::-1]}, theta=5e5)
  with pytest.raises(ValueError, match="holds other factors than Llama 3's"):
    File(path)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"architecture": "mamba"}, "architecture 'mamba' is unknown here"),
    ({"extra": {"add_expert_count": 4}}, "mixture of experts"),
    ({"extra": {"add_rope_scaling_type": gguf.RopeScalingType.YARN}}, "RoPE scaling 'yarn'"),
  ],
)
def test_what_is_unknown_is_refused(tmp_path, options, message):
  with pytest.raises(ValueError, match=message):
    File(write(tmp_path / "model.gguf", "smollm", **options))


def test_an_odd_name_is_refused_as_such(tmp_path):
  file = File(write(tmp_path / "model.gguf", "smollm", add={"blk.odd": np.zeros(1, np.float32)}))
  with pytest.raises(ValueError, match=r"tensor 'blk\.odd' .* is none of the model"):
    hf.read_params(file, hf_config.to_model(file.config))


def test_a_damaged_file_is_named(tmp_path):
  path = write(tmp_path / "model.gguf", "smollm")
  whole = path.read_bytes()
  for content in (b"", b"no GGUF at all", whole[:100], whole[: len(whole) // 2], whole[:-100]):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.gguf is no GGUF file, or is truncated"):
      File(path)


def trained_tokenizer(special):
  """A small SmolLM-like tokenizer, and its merges as GGUF lists them."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=[AddedToken(name, special=True) for name in special],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  tokenizer.train_from_iterator(TEXTS, trainer)
  return tokenizer


TEXTS = (embedded.__doc__, trainers.__doc__ or "", "Numbers: 2024, 1.8e12; ünïcode — ✓\n\n\tdone  ")


def test_the_tokenizer_is_the_one_that_was_written(tmp_path):
  special = ["<|endoftext|>", "<|im_end|>"]
  tokenizer = trained_tokenizer(special)
  model = json.loads(tokenizer.to_str())["model"]
  names = sorted(model["vocab"], key=model["vocab"].get)
  extra = {
    "add_tokenizer_model": "gpt2",
    "add_tokenizer_pre": "smollm",
    "add_token_list": names,
    "add_token_types": [3 if name in special else 1 for name in names],
    "add_token_merges": [" ".join(merge) for merge in model["merges"]],
    "add_eos_token_id": 1,
    "add_chat_template": "{{ messages }}",
  }
  file = File(write(tmp_path / "model.gguf", "smollm", extra=extra))
  with pytest.raises(ValueError, match=f"the tokenizer has {len(names)} ids and the embedding 64"):
    file.write_tokenizer(tmp_path)
  file.config["vocab_size"] = 512
  file.write_tokenizer(tmp_path)
  written = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
  for text in (*TEXTS, "<|im_end|>12 345 <|endoftext|> x"):
    assert written.encode(text).ids == tokenizer.encode(text).ids
    assert written.decode(written.encode(text).ids) == tokenizer.decode(tokenizer.encode(text).ids)
  config = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert config["eos_token"] == "<|im_end|>" and config["chat_template"] == "{{ messages }}"


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"add_eos_token_id": 9}, "IndexError"),
    ({"add_token_merges": ["a b", "b a"]}, "the merge 'b a' is of no two tokens to a third"),
    ({"add_token_merges": ["ab"]}, "the merge 'ab' is of no two tokens"),
    ({"add_token_types": [1]}, "its tokenizer is damaged"),
  ],
)
def test_a_tokenizer_that_lies_is_refused(tmp_path, changes, message):
  extra = {
    "add_tokenizer_model": "gpt2",
    "add_tokenizer_pre": "smollm",
    "add_token_list": ["a", "b", "ab"],
    "add_token_merges": ["a b"],
  }
  file = File(write(tmp_path / "model.gguf", "smollm", extra=extra | changes))
  with pytest.raises(ValueError, match=rf"model\.gguf: .*{message}"):
    file.write_tokenizer(tmp_path)


def test_another_kind_of_tokenizer_is_refused(tmp_path):
  extra = {"add_tokenizer_model": "llama"}
  with pytest.raises(ValueError, match=r"its tokenizer .* cannot be converted"):
    File(write(tmp_path / "model.gguf", "smollm", extra=extra)).write_tokenizer(tmp_path)


def test_logits_of_a_model_are_those_of_transformers(tmp_path):
  """Through llama.cpp's order of rotated pairs and back."""
  file = File(write(tmp_path / "model.gguf", "smollm"))
  config = hf_config.to_model(file.config)
  check_logits(config, hf.read_params(file, config), *fixture("smollm"))

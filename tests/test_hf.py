"""Models of transformers: their logits from fixtures they made, their tensors, and refusals."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from model import hf, hf_config
from model.config import RopeScaling
from model.params import is_spec, param_specs
from model.safetensors import open_directory
from model.transformer import forward
from tests.build import compute_config, model_config, numpy_params
from tests.fixtures import make_hf

FAMILIES = tuple(make_hf.MODELS)


def fixture(name):
  with np.load(make_hf.FIXTURES / name / "logits.npz") as file:
    return file["ids"], file["logits"]


def check_logits(config, params, ids, expected):
  """Rows alone, and both packed in one row: the second document's logits are its own."""
  length, first = ids.shape[1], 15
  rest = length - first
  tokens = np.concatenate([ids, np.concatenate([ids[1, :first], ids[0, :rest]])[None]])
  segments, positions = np.ones_like(tokens), np.tile(np.arange(length), (3, 1))
  segments[2, first:] = 2
  positions[2, first:] -= first
  rows = (np.asarray(x, np.int32) for x in (tokens, segments, positions))
  logits = jax.jit(lambda p, *rows: forward(p, *rows, config, compute_config()))(params, *rows)
  np.testing.assert_allclose(logits[:2], expected, rtol=0, atol=1e-4)
  np.testing.assert_allclose(logits[2, :first], expected[1, :first], rtol=0, atol=1e-4)
  np.testing.assert_allclose(logits[2, first:], expected[0, :rest], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(name):
  check_logits(*hf.load(make_hf.FIXTURES / name), *fixture(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_came_in_goes_out_the_same(name):
  stored = open_directory(make_hf.FIXTURES / name)
  config, params = hf.load(make_hf.FIXTURES / name)
  written = dict(hf.stored_tensors(params, config))
  assert list(written) == list(hf.stored_shapes(config)) and set(written) == set(stored)
  for tensor, array in written.items():
    assert array.shape == hf.stored_shapes(config)[tensor]
    np.testing.assert_array_equal(array, stored[tensor].astype(np.float32))


@pytest.mark.parametrize(
  "changes",
  [
    {"qk_norm": False},
    {"qk_norm": False, "sliding_window": 7},
    {"qk_norm": False, "qkv_bias": True, "tie_embeddings": True},
    {"qk_norm": False, "qkv_bias": True, "sliding_window": 7},
    {"qk_norm": True, "sliding_window": 7},
    {"qk_norm": True, "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 16)},
  ],
)
def test_every_leaf_is_mapped_once_and_every_config_comes_back(changes):
  config = model_config(**changes)
  specs = jax.tree.leaves(param_specs(config), is_leaf=is_spec)
  tensors = hf.tensors(config)
  assert len({tensor.name for tensor in tensors}) == len(tensors)
  assert len({(tensor.path, tensor.layer) for tensor in tensors}) == len(tensors)
  assert sum(np.prod(tensor.shape) for tensor in tensors) == sum(spec.size for spec in specs)
  described = json.loads(json.dumps(hf_config.from_model(config, 64)))
  assert hf_config.to_model(described) == config
  params = numpy_params(param_specs(config), 0)
  again = hf.read_params(dict(hf.stored_tensors(params, config)), config)
  jax.tree.map(np.testing.assert_array_equal, params, again)


def test_names_have_no_leaf_that_no_model_has():
  leaves = {t.path for bias in (True, False) for t in hf.tensors(model_config(qkv_bias=bias))}
  assert leaves == hf.NAMES.keys()


def test_configs_of_both_generations_of_transformers_read_the_same():
  new = hf_config.read_json(make_hf.FIXTURES / "llama" / "config.json")
  old = {key: value for key, value in new.items() if key != "rope_parameters"}
  rope = dict(new["rope_parameters"])
  old["rope_theta"] = rope.pop("rope_theta")
  assert hf_config.to_model(old | {"rope_scaling": rope}) == hf_config.to_model(new)
  # Llama 1 and 2 leave these out.
  short = {k: v for k, v in old.items() if k not in ("head_dim", "num_key_value_heads")}
  assert hf_config.to_model(short).num_kv_heads == hf_config.to_model(short).num_heads == 4
  assert hf_config.to_model(short).head_dim == 8


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"architectures": ["GPT2LMHeadModel"]}, r"architecture \['GPT2LMHeadModel'\] is unknown"),
    ({"architectures": None, "model_type": "mamba"}, "architecture mamba is unknown"),
    ({"architectures": ["Qwen3MoeForCausalLM"]}, r"\['Qwen3MoeForCausalLM'\] is unknown"),
    ({"architectures": ["SmolLM3ForCausalLM"]}, r"\['SmolLM3ForCausalLM'\] is unknown"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"mlp_bias": True}, "mlp_bias is True"),
    ({"quantization_config": {"bits": 4}}, "quantization_config is"),
    ({"hidden_size": None}, "hidden_size is None; it must be a positive integer"),
    ({"hidden_size": True}, "hidden_size is True; it must be a positive integer"),
    ({"num_key_value_heads": "2"}, "num_key_value_heads is '2'; it must be a positive integer"),
    ({"head_dim": [8]}, r"head_dim is \[8\]; it must be a positive integer"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'; it must be true or false"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'; it must be a positive number"),
    ({"architectures": 3}, "architecture 3 is unknown"),
    ({"rope_parameters": [1]}, r"RoPE's parameters are \[1\]; they must be an object"),
    ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta is 'x'; it must be a positive number"),
    (
      {"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": True, "layer_types": "x"},
      "layer_types is 'x'",
    ),
    ({"rope_parameters": {"rope_type": "yarn"}}, "RoPE scaling 'yarn' is not supported"),
    ({"rope_scaling": {"type": "linear"}, "rope_parameters": None}, "RoPE scaling 'linear'"),
    ({"rope_parameters": {"rope_type": "dynamic"}}, "RoPE scaling 'dynamic' is not supported"),
    ({"rope_parameters": {"rope_type": "llama3"}}, "RoPE scaling 'llama3' has no 'factor'"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    (
      {"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": True, "max_window_layers": 1},
      "some layers have sliding windows",
    ),
  ],
)
def test_what_cannot_be_computed_is_refused(changes, message):
  described = hf_config.read_json(make_hf.FIXTURES / "llama" / "config.json") | changes
  with pytest.raises(ValueError, match=message):
    hf_config.to_model(described)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"attention_softcap": 30.0}, "attention_softcap=30.0"),
    ({"logit_softcap": 30.0}, "logit_softcap=30.0"),
    ({"qk_norm": True, "qkv_bias": True}, "no exported family has both"),
  ],
)
def test_what_no_family_computes_is_not_exported(changes, message):
  with pytest.raises(ValueError, match=message):
    hf_config.from_model(model_config(**changes), 64)


def test_missing_misshapen_and_unknown_tensors_are_named():
  config, _ = hf.load(make_hf.FIXTURES / "smollm")
  stored = dict(open_directory(make_hf.FIXTURES / "smollm"))
  name = "model.layers.1.mlp.up_proj.weight"
  with pytest.raises(ValueError, match=rf"tensor '{name}' is missing \(1 are\)"):
    hf.read_params({k: v for k, v in stored.items() if k != name}, config)
  with pytest.raises(ValueError, match=rf"tensor '{name}' has the shape \[32, 40\].*\[40, 32\]"):
    hf.read_params(stored | {name: stored[name].T}, config)
  bias = "model.layers.0.self_attn.o_proj.bias"
  with pytest.raises(ValueError, match=rf"tensor '{bias}' \(1 such\) is none of the model"):
    hf.read_params(stored | {bias: np.zeros(32, np.float32)}, config)
  with pytest.raises(ValueError, match="describes 1000000000 layers, and there are"):
    hf.read_params(stored, dataclasses.replace(config, num_layers=10**9))
  made = []
  wide = dataclasses.replace(config, d_model=2**20)
  with pytest.raises(ValueError, match=r"embed_tokens\.weight' has the shape"):
    hf.read_params(stored, wide, lambda shape: made.append(shape))
  assert not made  # no memory is taken for a size that the files do not have
  # A tied output that is stored again, and buffers of old releases, mean nothing.
  buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}
  hf.read_params(stored | buffer | {"lm_head.weight": np.zeros(1, np.float32)}, config)
  with pytest.raises(ValueError, match=r"lm_head\.weight' is missing"):
    hf.read_params(stored, dataclasses.replace(config, tie_embeddings=False))


def test_command_writes_logits(tmp_path, capsys):
  ids, expected = fixture("qwen3")  # the one in several files
  np.save(tmp_path / "ids.npy", ids.astype(np.int64))
  arguments = [
    "logits",
    str(make_hf.FIXTURES / "qwen3"),
    f"{tmp_path}/ids.npy",
    f"{tmp_path}/o.npy",
  ]
  assert hf.main(arguments) == 0, capsys.readouterr().err
  written = np.load(tmp_path / "o.npy")
  assert written.dtype == np.float32
  np.testing.assert_allclose(written, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
  ("ids", "message"),
  [
    (np.array([[64]]), "ids go from 64 to 64; the vocabulary has 64"),
    (np.array([[-1]]), "ids go from -1"),
    (np.array([1, 2]), "must be integers (batch, length)"),
    (np.array([[1.0]]), "must be integers (batch, length)"),
  ],
)
def test_command_refuses_bad_ids(tmp_path, capsys, ids, message):
  np.save(tmp_path / "ids.npy", ids)
  folder = str(make_hf.FIXTURES / "llama")
  assert hf.main(["logits", folder, f"{tmp_path}/ids.npy", f"{tmp_path}/out.npy"]) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / "out.npy").exists()


def test_command_refuses_a_folder_without_config(tmp_path, capsys):
  np.save(tmp_path / "ids.npy", np.array([[1]]))
  shutil.copy(make_hf.FIXTURES / "llama" / "model.safetensors", tmp_path)
  assert hf.main(["logits", str(tmp_path), f"{tmp_path}/ids.npy", f"{tmp_path}/out.npy"]) == 2
  assert "config.json cannot be read" in capsys.readouterr().err


@pytest.mark.peers
@pytest.mark.parametrize("name", FAMILIES)
def test_live_transformers_agree(name, tmp_path):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  model = make_hf.make_model(name, seed=1)
  model.save_pretrained(tmp_path)
  ids = np.random.default_rng(1).integers(0, 64, (2, 24)).astype(np.int32)
  check_logits(*hf.load(tmp_path), ids, make_hf.logits(model, ids))

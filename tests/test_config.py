"""Configs at the boundary: unknown keys, wrong types and values that do not fit, by name."""

import pytest

from configs import quickstart
from data.config import parse
from model.config import ComputeConfig, RopeScaling
from tests.build import compute_config, model_config
from train.config import PretrainConfig
from train.pretrain import parse_config


def changed(**changes):
  """The quickstart with dotted keys changed (`__` for a dot), parsed."""
  config = quickstart.get_config().to_dict()
  for key, value in changes.items():
    *sections, name = key.split("__")
    section = config
    for part in sections:
      section = section[part]
    section[name] = value
  return parse_config(config)


def test_a_whole_recipe_becomes_frozen_dataclasses():
  config = changed()
  assert isinstance(config, PretrainConfig)
  with pytest.raises(AttributeError):
    config.seed = 1
  scaling = {
    "factor": 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_positions": 8_192,
  }  # fmt: skip
  config = changed(model__rope_scaling=scaling, compute__remat="selective",
                   compute__remat_save=["qkv"])  # fmt: skip
  assert config.model.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8_192)
  assert config.compute.remat_save == ("qkv",)
  assert hash(config.model) and hash(config.compute)  # they are static arguments of jit


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"optimizer__peek_lr": 1.0}, r"`config\.optimizer\.peek_lr`.*did you mean.*peak_lr"),
    ({"modle": {}}, r"unknown key `config\.modle`; did you mean `config\.model`"),
    ({"model__d_model": "256"}, r"`config\.model\.d_model` is '256' \(str\); it must be int"),
    ({"model__d_model": True}, r"d_model` is True \(bool\); it must be int"),
    ({"model__qk_norm": 1}, r"qk_norm` is 1 \(int\); it must be bool"),
    ({"train": 3}, r"`config\.train` is 3; it must be a section"),
    ({"sample__prompts": "The "}, r"prompts` is 'The '; it must be a sequence"),
    ({"data__sources": {}}, r"data\.sources is empty"),
    ({"train__steps": 0}, r"train\.steps is 0"),
    ({"eval__every": 0}, r"eval\.every is 0"),
    ({"checkpoint__keep_last": 0}, r"counts must be at least 1"),
    ({"sample__top_p": 0.0}, r"top_p=0\.0"),
    ({"compute__dtype": "float16"}, r"float16 and loss_scale\.dynamic is False"),
    ({"compute__loss_chunks": 3}, r"data\.seq_len=\d+ is not divisible by .*loss_chunks=3"),
    ({"compute__max_segments": 2}, r"compute\.max_segments=2 has no room"),
    ({"mesh__data": 0}, r"sizes are at least 1"),
  ],
  ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
  with pytest.raises(ValueError, match=message):
    changed(**changes)


def test_a_missing_key_is_refused_by_name():
  section = compute_config().__dict__.copy()
  del section["loss_chunks"]
  with pytest.raises(ValueError, match=r"`config\.compute\.loss_chunks` is missing"):
    parse(ComputeConfig, section, "config.compute")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_heads": 3}, r"num_heads=3 is not divisible by model\.num_kv_heads=2"),
    ({"head_dim": 5}, r"head_dim is 5; RoPE rotates pairs"),
    ({"d_ff": 0}, r"model\.d_ff is 0"),
    ({"sliding_window": 0}, r"model\.sliding_window is 0"),
    ({"logit_softcap": -1.0}, r"model\.logit_softcap is -1\.0"),
  ],
)
def test_architectures_that_cannot_be_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    model_config(**changes)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"dtype": "fp16"}, r"compute\.dtype is 'fp16'; it must be one of float16"),
    ({"attention": "flash"}, r"compute\.attention is 'flash'"),
    ({"remat": "some"}, r"compute\.remat is 'some'"),
    ({"remat": "selective", "remat_save": ("keys",)}, r"compute\.remat_save is 'keys'"),
    ({"remat": "full", "remat_offload": ("qkv",)}, r"set compute\.remat to 'selective'"),
    ({"remat": "selective", "remat_offload": ("loss_slope",)}, r"stays on the device"),
    ({"loss_chunks": 0}, r"compute\.loss_chunks is 0"),
  ],
)
def test_ways_to_compute_that_cannot_be_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    compute_config(**changes)


def test_a_rope_scaling_that_cannot_be_is_refused():
  with pytest.raises(ValueError, match=r"high_freq_factor=1\.0; factor must be >= 1"):
    RopeScaling(8.0, 4.0, 1.0, 8_192)

"""Every recipe is valid, and the reference run has every number of its table."""

import importlib
import math

import jax
import pytest

from model.params import count, flops_per_token, is_spec, param_specs
from model.sharding import RULES
from train.average import snapshot_steps
from train.pretrain import parse_config

PARSERS = {"pretrain": parse_config}
H100_FLOPS = 989.4e12
TOKENS = 1.8e12


def recipe(name):
  config = importlib.import_module(f"configs.{name}").get_config()
  return PARSERS[config.stage](config.to_dict())


@pytest.mark.parametrize("name", ["pretrain", "pretrain_37b", "quickstart"])
def test_recipes_are_valid(name):
  config = recipe(name)
  assert config.data.vocab_size == config.model.vocab_size
  specs = jax.tree.leaves(param_specs(config.model), is_leaf=is_spec)
  assert all(spec.size > 0 for spec in specs)


def test_a_recipe_gives_a_new_config_each_time():
  module = importlib.import_module("configs.pretrain_37b")
  module.get_config().train.steps = 1
  assert module.get_config().train.steps == 214_577
  assert recipe("pretrain").train.steps != 214_577


@pytest.mark.parametrize(
  ("name", "remedy"),
  [
    ("continued", "train.main --config configs/quickstart.py"),
    ("sft", "train.main --config configs/quickstart.py"),
    ("quickstart_corpus", "data.corpus --config configs/corpus.py"),
  ],
)
def test_a_folder_that_is_not_there_yet_is_named_with_what_makes_it(name, remedy, tmp_path):
  with pytest.raises(ValueError, match=f"no (run|corpus) in '{tmp_path}/none'.*{remedy}"):
    importlib.import_module(f"configs.{name}").get_config(f"{tmp_path}/none")


def test_reference_run_derives_its_table():
  config = recipe("pretrain_37b")
  specs = param_specs(config.model)
  assert count(specs) == pytest.approx(37.1e9, rel=0.002)
  causal, full = flops_per_token(config.model, config.data.seq_len)
  assert causal == pytest.approx(2.40e11, rel=0.002)
  assert full - causal == 6 * 52 * 64 * 128 * 8_192
  batch_tokens = config.data.batch_size * config.data.seq_len
  assert batch_tokens == 8_388_608
  assert config.train.steps == round(TOKENS / batch_tokens) == 214_577
  weeks = causal * TOKENS / (128 * H100_FLOPS * 0.52) / (7 * 24 * 3600)
  assert weeks == pytest.approx(10.9, abs=0.05)
  average = config.average
  assert len(snapshot_steps(config.train.steps, average.fraction, average.every)) == 22


def test_reference_run_has_the_numbers_of_its_source():
  config = recipe("pretrain_37b")
  m, o, s = config.model, config.optimizer, config.loss_scale
  assert (m.d_model, m.num_layers, m.num_heads, m.head_dim) == (8_192, 52, 64, 128)
  assert (m.num_kv_heads, m.d_ff, m.vocab_size, m.tie_embeddings) == (8, 22_016, 65_536, False)
  assert (o.b1, o.b2, o.weight_decay, o.clip_norm) == (0.9, 0.95, 0.1, 1.0)
  assert (o.warmup_steps, o.peak_lr) == (4_000, 1.5e-4)
  assert (config.compute.dtype, config.compute.reduce_gradients_in_fp32) == ("float16", True)
  assert (s.dynamic, s.initial, s.period) == (True, 2.0**16, 2_000)
  assert (config.data.batch_size, config.data.seq_len) == (1_024, 8_192)
  assert (config.checkpoint.every, config.average.fraction, config.average.every) == (
    1_000, 0.1, 1_000,
  )  # fmt: skip
  assert (config.sample.top_p, config.eval.every) == (0.9, 1_000)
  assert set(config.data.sources) == {"commoncrawl", "wikipedia", "academic", "web"}


def test_reference_run_fits_128_devices():
  config = recipe("pretrain_37b")
  mesh = config.mesh.resolve(128)
  shards = mesh.data * mesh.fsdp
  assert config.data.batch_size % (shards * config.train.microbatches) == 0
  assert config.eval.batch_size % shards == 0
  assert config.data.batch_size % config.data.streams == 0
  for spec in jax.tree.leaves(param_specs(config.model), is_leaf=is_spec):
    for size, axis in zip(spec.shape, spec.axes, strict=True):
      assert size % math.prod(getattr(mesh, m) for m in RULES[axis]) == 0, spec

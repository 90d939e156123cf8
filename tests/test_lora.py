"""Adapters: nothing at first, merged the same, and a step that moves them alone."""

import jax
import numpy as np
import pytest

from model import lora
from model.params import count, is_spec, join, param_specs, split_trained
from model.transformer import forward
from tests.build import Trainer, compute_config, model_config, numpy_params, random_rows

MODEL = model_config()
CONFIG = lora.LoraConfig(rank=3, alpha=6.0, targets=tuple(lora.TARGETS))


def specs():
  return lora.add(param_specs(MODEL), CONFIG)


def logits(params, rows, **compute):
  batch = (rows["tokens"], rows["segment_ids"], rows["positions"])
  return jax.jit(lambda params: forward(params, *batch, MODEL, compute_config(**compute)))(params)


def test_adapters_begin_as_nothing_and_merge_into_the_same_function():
  rows = random_rows(2, 12, 48)
  params = numpy_params(specs(), 0)
  base = logits(lora.without(params), rows)
  np.testing.assert_array_equal(logits(params, rows), base)
  rng = np.random.default_rng(1)
  for block in params["layers"].values():
    for adapter in block["lora"].values():
      adapter["out"] = rng.standard_normal(adapter["out"].shape).astype(np.float32)
      assert adapter["scale"].tolist() == [2.0, 2.0]
  adapted = logits(params, rows)
  assert np.abs(adapted - base).max() > 0.1
  merged = lora.merge(params)
  assert jax.tree.structure(merged) == jax.tree.structure(param_specs(MODEL), is_leaf=is_spec)
  np.testing.assert_allclose(logits(merged, rows), adapted, rtol=1e-4, atol=1e-4)
  for other in ({"scan_layers": False}, {"fuse_qkv": True}):
    np.testing.assert_allclose(logits(params, rows, **other), adapted, rtol=1e-5, atol=1e-5)


def test_a_step_moves_the_adapters_alone_and_keeps_no_state_of_the_rest(monkeypatch):
  trained_size = 0
  for leaf in jax.tree.leaves(split_trained(specs(), specs())[0], is_leaf=is_spec):
    trained_size += leaf.size
  assert 0 < trained_size < count(specs()) / 2
  monkeypatch.setattr("tests.build.param_specs", lambda model: specs())
  trainer = Trainer(MODEL, compute_config(), microbatches=2, warmup_steps=0)
  moments = [leaf for leaf in jax.tree.leaves(trainer.state.opt_state) if leaf.ndim]
  assert sum(leaf.size for leaf in moments) == 2 * trained_size
  rows = [random_rows(4, 12, 48, seed) for seed in range(3)]
  before = jax.device_get(trainer.state.params)
  state, metrics = trainer.run(trainer.state, rows)
  (old, base), (new, same) = (split_trained(specs(), tree) for tree in (before, state.params))
  jax.tree.map(np.testing.assert_array_equal, same, base)
  assert all(
    np.any(a != b) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
  )
  assert all(m["grad_norm"] > 0 and not m["skipped"] for m in metrics)


def test_heads_are_trained_beside_adapters():
  from model.heads import scorer_specs

  trained, frozen = split_trained(*[lora.add(scorer_specs(MODEL, 1), CONFIG)] * 2)
  assert trained["heads"]["weight_SD"] is not None and trained["embedding_VD"] is None
  assert frozen["embedding_VD"] is not None


def test_split_and_join_are_inverse():
  params = numpy_params(specs(), 0)
  trained, frozen = split_trained(specs(), params)
  assert len(jax.tree.leaves(trained)) + len(jax.tree.leaves(frozen)) == len(
    jax.tree.leaves(params)
  )
  jax.tree.map(np.testing.assert_array_equal, join(trained, frozen), params)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"rank": -1}, "rank=-1"),
    ({"alpha": 0.0}, "alpha=0.0"),
    ({"targets": ("queries",)}, "'queries'"),
    ({"targets": ()}, "empty"),
  ],
)
def test_bad_configs_are_named(changes, message):
  with pytest.raises(ValueError, match=message):
    lora.LoraConfig(**{"rank": 1, "alpha": 1.0, "targets": ("query",)} | changes)


def test_rank_zero_is_no_adapter():
  base = param_specs(MODEL)
  assert lora.add(base, lora.LoraConfig(0, 1.0, ())) is base
  assert not lora.is_adapted(base) and lora.is_adapted(specs())

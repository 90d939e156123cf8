"""Parameters: decay by axes, counts, and initialization that no mesh or neighbour changes."""

import operator

import jax
import numpy as np
import pytest

from model.params import ParamSpec, count, flops_per_token, init_params, map_specs, param_specs
from model.sharding import MeshConfig, make_mesh, param_shardings
from tests.build import model_config


def leaves(tree) -> dict:
  return {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(tree)}


def some_specs() -> dict:
  """Leaves that are split over every axis that parameters know; few, since each is compiled."""
  # Deviations that are no powers of two, which would be exact in whatever order they multiply.
  specs = param_specs(model_config(num_layers=3, embed_init_std=0.3))
  return {
    "embedding_VD": specs["embedding_VD"],
    "layers": {"attention": {"out_NKD": specs["layers"]["attention"]["out_NKD"]}},
  }


def init_on(specs, sizes):
  mesh = make_mesh(MeshConfig(*sizes))
  return jax.jit(lambda: init_params(specs, 7), out_shardings=param_shardings(specs, mesh))()


def test_matrices_decay_and_stacked_norms_and_biases_do_not():
  specs = param_specs(model_config(qkv_bias=True))
  names = leaves(map_specs(lambda spec: spec.decay, specs))
  assert len(names) == 17
  for name, decays in names.items():
    assert decays == ("norm" not in name and "bias" not in name), name
  # Rank would have decided otherwise: these two are a matrix and a cube.
  attention = specs["layers"]["attention"]
  assert len(attention["norm_D"].shape) == 2 and len(attention["query_bias_NK"].shape) == 3


@pytest.mark.parametrize("tied", [True, False])
def test_counts(tied):
  config = model_config(tie_embeddings=tied, qkv_bias=True)
  specs = param_specs(config)
  arrays = jax.eval_shape(lambda: init_params(specs, 0))
  assert count(specs) == sum(leaf.size for leaf in jax.tree.leaves(arrays))
  d, heads, groups, k, f = 16, 4, 2, 4, 24
  matrices = 2 * d * heads * k + 2 * d * groups * k + 3 * d * f
  layer = matrices + heads * k + 2 * groups * k + 2 * k + 2 * d
  assert count(specs) == 2 * layer + d + 48 * d * (1 if tied else 2)
  # Tied or not, the output projection counts and the lookup does not.
  causal, full = flops_per_token(config, seq_len=32)
  assert causal == 6 * (2 * layer + d + 48 * d) + 6 * 2 * heads * k * 32
  assert full - causal == 6 * 2 * heads * k * 32


def test_initial_values_are_those_of_one_device_on_every_mesh():
  specs = some_specs()
  alone = leaves(init_params(specs, 7))  # eagerly; below compiled, where XLA may fold constants
  for sizes in [(1, 8, 1, 1), (1, 2, 2, 2)]:
    sharded = leaves(init_on(specs, sizes))
    for name, value in alone.items():
      np.testing.assert_array_equal(value, sharded[name], err_msg=f"{name} on {sizes}")


def test_initial_values_do_not_change_when_leaves_are_added():
  plain = leaves(init_params(some_specs(), 7))
  more = leaves(init_params({"adapter_D": ParamSpec((16,), ("embed",), std=0.1)} | some_specs(), 7))
  assert len(more) == len(plain) + 1
  for name, value in plain.items():
    np.testing.assert_array_equal(value, more[name], err_msg=name)


def test_leaves_and_seeds_draw_different_numbers():
  spec = ParamSpec((48, 16), ("vocab", "embed"), std=1.0)
  params, other = (init_params({"a": spec, "b": spec}, seed) for seed in (7, 8))
  assert not np.array_equal(params["a"], params["b"])
  assert not np.array_equal(params["a"], other["a"])


def test_initial_scales():
  config = model_config(d_model=256, d_ff=512, num_layers=3, qkv_bias=True)
  specs = param_specs(config)
  means, stds = (leaves(map_specs(operator.attrgetter(f), specs)) for f in ("mean", "std"))
  into, back = 256**-0.5, (2 * 3) ** -0.5  # back into the stream: GPT-2's 1 / sqrt(2 layers)
  by_name = {
    "embedding_VD": config.embed_init_std,
    "unembedding_DV": into,
    "query_DNK": into,
    "key_DGK": into,
    "value_DGK": into,
    "out_NKD": back * 16**-0.5,
    "gate_DF": into,
    "up_DF": into,
    "down_FD": back * 512**-0.5,
  }
  for name, std in stds.items():
    leaf = name.split("'")[-2]
    assert means[name] == ("norm" in leaf), name
    assert std == pytest.approx(by_name.get(leaf, 0.0)), name


def test_values_have_the_mean_and_deviation_of_their_spec():
  axes = ("layers", "embed")
  specs = {
    "normal": ParamSpec((2, 4096), axes, std=0.5),
    "ones": ParamSpec((2, 3), axes, mean=1.0),
    "zeros": ParamSpec((2, 3), axes),
  }
  params = init_params(specs, 0)
  assert np.std(params["normal"]) == pytest.approx(0.5, rel=0.05)
  assert abs(np.mean(params["normal"])) < 0.02
  assert not np.array_equal(*params["normal"])  # a layer is no copy of the one below
  assert np.all(params["ones"] == 1) and np.all(params["zeros"] == 0)

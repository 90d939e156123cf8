"""One device and every way to split 8 train alike; gradients are summed in the dtype asked."""

import functools
import re

import jax
import numpy as np
import pytest

from model.sharding import MeshConfig, make_mesh
from tests.build import Trainer, compute_config, model_config, random_rows

MODEL = model_config(num_layers=1, qk_norm=False)
STEPS = 10


@functools.cache
def batches():
  return [random_rows(8, 16, 48, seed) for seed in range(STEPS)]


@functools.cache
def on_one_device():
  trainer = Trainer(MODEL, compute_config())
  return trainer.run(trainer.state, batches())


def check(sizes, **options):
  mesh = make_mesh(MeshConfig(*sizes))
  trainer = Trainer(MODEL, compute_config(), mesh=mesh, **options)
  state, metrics = trainer.run(trainer.state, batches())
  expected_state, expected = on_one_device()
  for name in ("loss", "grad_norm", "weight"):
    np.testing.assert_allclose(
      [m[name] for m in metrics],
      [m[name] for m in expected],
      rtol=1e-5 if name != "grad_norm" else 1e-4,
      err_msg=name,
    )
  query = state.params["layers"]["attention"]["query_DNK"]
  _, fsdp, _, tensor = sizes
  assert query.addressable_shards[0].data.shape == (1, 16 // fsdp, 4 // tensor, 4)
  # Adam turns rounding of tiny gradients into steps of its own size, so the weights get more room.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4),
    jax.device_get(state.params),
    jax.device_get(expected_state.params),
  )


# Every axis of (data, fsdp, context, tensor) and every pair of axes is in one of these.
@pytest.mark.parametrize(
  "sizes", [(2, 2, 2, 1), (1, 2, 2, 2), (4, 1, 1, 2)], ids=lambda s: "x".join(map(str, s))
)
def test_trains_like_one_device(sizes):
  check(sizes)


def test_microbatches_on_a_mesh_train_like_one_device():
  check((2, 2, 1, 2), microbatches=2)


@pytest.mark.slow
@pytest.mark.parametrize(
  "sizes",
  [
    (8, 1, 1, 1), (1, 8, 1, 1), (1, 1, 8, 1), (4, 2, 1, 1), (2, 4, 1, 1), (4, 1, 2, 1),
    (2, 1, 4, 1), (1, 4, 2, 1), (1, 2, 4, 1), (1, 4, 1, 2), (1, 1, 4, 2), (2, 1, 2, 2),
  ],
  ids=lambda s: "x".join(map(str, s)),
)  # fmt: skip
def test_trains_like_one_device_in_every_other_way(sizes):
  check(sizes)


@functools.cache
def reduced_over_devices(**changes) -> set[tuple[str, tuple[int, ...]]]:
  """(dtype, shape) of whatever the compiled fp16 step sums over devices."""
  model = model_config(num_layers=1, d_ff=40, qkv_bias=True)
  compute = compute_config(dtype="float16", **changes)
  mesh = make_mesh(MeshConfig(8, 1, 1, 1))
  trainer = Trainer(model, compute, mesh=mesh)
  with jax.set_mesh(mesh):
    text = trainer.step.lower(trainer.state, batches()[0]).compile().as_text()
  types = re.findall(r"= (.*) (?:all-reduce|reduce-scatter)(?:-start)?\(", text)
  return {
    (dtype, tuple(int(size) for size in shape.split(",") if size))
    for line in types
    for dtype, shape in re.findall(r"(f16|f32)\[([\d,]*)\]", line)
  }


@pytest.mark.parametrize("fused", [False, True], ids=["separate", "fused"])
@pytest.mark.parametrize("reduce_in_fp32", [True, False], ids=["fp32", "fp16"])
def test_gradients_of_matrices_are_summed_over_devices_in_the_dtype_asked(reduce_in_fp32, fused):
  found = reduced_over_devices(
    reduce_gradients_in_fp32=reduce_in_fp32, fuse_qkv=fused, gradients_in_order=fused
  )
  # As one, two groups have two queries, a key and a value.
  heads = {(16, 2, 4, 4)} if fused else {(16, 4, 4), (16, 2, 4)}
  matrices = {(16, 40), (40, 16), (4, 4, 16), (16, 48), *heads}
  wanted, other = ("f32", "f16") if reduce_in_fp32 else ("f16", "f32")
  for shape in matrices:
    assert (wanted, shape) in found and (other, shape) not in found, shape
  # Norms, biases and the embedding, small or summed from few places, are fp32 in any case.
  for shape in [(16,), (4, 4), (2, 4), (48, 16)]:
    assert ("f32", shape) in found and ("f16", shape) not in found, shape

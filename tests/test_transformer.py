"""The decoder: nothing crosses time or documents, and how it is computed changes no number."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.config import RopeScaling
from model.layers import qkv, rope_frequencies, rope_turns
from model.params import param_specs
from model.transformer import forward, hidden_states, logits
from tests.build import compute_config, model_config, numpy_params, packed_rows
from train.losses import next_token_loss

# Every option of the architecture at once, and none.
RICH = {
  "tie_embeddings": True,
  "qk_norm": True,
  "qkv_bias": True,
  "sliding_window": 5,
  "attention_softcap": 3.0,
  "logit_softcap": 4.0,
  "rope_scaling": RopeScaling(4.0, 1.0, 4.0, 8),
}
PLAIN = {"tie_embeddings": False, "qk_norm": False}
FUSED = {"fuse_qkv": True, "gradients_in_order": True}
SELECTED = ("attention_norm", "inverse_rms", "qkv", "attention_out", "mlp_gate")


def params_of(config, seed=0):
  """Weights of which no leaf is trivial: biases and norms are random too."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: (leaf + 0.1 * rng.standard_normal(leaf.shape)).astype(np.float32),
    numpy_params(param_specs(config), seed),
  )


@functools.cache
def compiled(config, compute):
  """(params, batch) -> loss, its gradient, logits; one function, since compiling takes the time."""

  def run(params, batch):
    def loss(params):
      return next_token_loss(params, batch, jax.random.key(0), config, compute, 1e-3)[0]

    rows = (batch["tokens"], batch["segment_ids"], batch["positions"])
    return *jax.value_and_grad(loss)(params), forward(params, *rows, config, compute)

  return jax.jit(run)


def assert_trees_close(a, b, rtol=1e-5, atol=1e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@functools.cache
def reference(options):
  """Config, weights, batch, and what the plainest way to compute makes of them."""
  config = model_config(**dict(options))
  params, batch = params_of(config), packed_rows([[5, 8], [3, 9, 2]], 16, 48)
  return config, params, batch, compiled(config, compute_config())(params, batch)


@pytest.mark.parametrize("options", [RICH, PLAIN], ids=["rich", "plain"])
def test_nothing_comes_from_the_future_or_another_document(options):
  config = model_config(num_layers=1, **options)
  params, batch = params_of(config), packed_rows([[4, 6]], 12, 48)
  embedding, unused = params["embedding_VD"], np.zeros((1, 12), np.int32)

  def logit_sums(embedded_BLD):
    table = embedded_BLD.reshape(12, 16)  # every place of the row is its own token
    tokens = unused + np.arange(12)
    out = forward(
      params | {"embedding_VD": table, "unembedding_DV": np.ones((16, 1), np.float32)},
      tokens, batch["segment_ids"], batch["positions"],
      model_config(**{"num_layers": 1} | options | {"tie_embeddings": False, "vocab_size": 12}),
      compute_config(),
    )  # fmt: skip
    return out[0].sum(-1)

  jacobian = jax.jit(jax.jacrev(logit_sums))(embedding[batch["tokens"]])[:, 0]
  depends = np.abs(jacobian).max(-1) > 0
  segments = batch["segment_ids"][0]
  allowed = (segments[:, None] == segments[None]) & np.tri(12, dtype=bool)
  if config.sliding_window is not None:
    allowed &= np.subtract.outer(np.arange(12), np.arange(12)) < config.sliding_window
  real = segments > 0
  np.testing.assert_array_equal(depends[real], allowed[real])


@pytest.mark.parametrize("options", [RICH, PLAIN], ids=["rich", "plain"])
def test_second_document_of_a_row_equals_the_same_alone(options):
  config, params, packed, _ = reference(tuple(options.items()))
  packed = packed | {"loss_weights": packed["loss_weights"] * 0}
  packed["loss_weights"][0, 5:13] = 1.0
  alone = packed_rows([[8], []], 16, 48)
  for name in ("tokens", "targets"):
    alone[name][0, :8] = packed[name][0, 5:13]
  run = compiled(config, compute_config())
  loss, gradient, logits = run(params, packed)
  expected_loss, expected_gradient, expected_logits = run(params, alone)
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
  np.testing.assert_allclose(logits[0, 5:13], expected_logits[0, :8], rtol=1e-5, atol=1e-5)
  assert_trees_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, FUSED], ids=["plain", "fused"])
def test_scanned_equals_unrolled_and_fused(changes):
  config, params, batch, expected = reference(tuple(RICH.items()))
  got = compiled(config, compute_config(scan_layers=False, **changes))(params, batch)
  assert_trees_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, FUSED, {"scan_layers": True}])
def test_the_last_layer_does_no_more_than_is_wanted(changes):
  config, params, batch, _ = reference(tuple(RICH.items()))
  compute = compute_config(**{"scan_layers": False} | changes)

  def run(params, part):
    rows = (batch["tokens"], batch["segment_ids"], batch["positions"])
    return hidden_states(params, *rows, config, compute, part)

  def total(params, part):
    hidden_BLD = run(params, part) if part else run(params, None)[:, 7:12]
    return jnp.sum(jnp.sin(hidden_BLD)), hidden_BLD

  step = jax.jit(jax.grad(total, has_aux=True), static_argnums=1)
  assert_trees_close(step(params, (7, 12)), step(params, None), rtol=1e-4, atol=1e-4)
  work = [step.lower(params, part).cost_analysis()["flops"] for part in (None, (7, 12))]
  if not compute.scan_layers:
    assert work[1] < 0.8 * work[0]


@pytest.mark.parametrize(
  "changes",
  [
    {"remat": "full"},
    {"remat": "full", "scan_layers": False},
    {"remat": "selective", "remat_save": SELECTED},
    {"remat": "selective", "remat_save": SELECTED[:2], "remat_offload": SELECTED[2:]},
    {"remat": "selective", "remat_save": SELECTED, "scan_layers": False} | FUSED,
  ],
  ids=["full", "full-unrolled", "selective", "offload", "selective-fused-unrolled"],
)
def test_remat_changes_no_gradient(changes):
  config, params, batch, expected = reference(tuple(PLAIN.items()))
  got = compiled(config, compute_config(**changes))(params, batch)
  assert_trees_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("remat", ["none", "full", "selective"])
def test_remat_saves_what_it_says(remat):
  config = model_config(**PLAIN)
  save = ("mlp_gate", "attention_out") if remat == "selective" else ()
  compute = compute_config(remat=remat, remat_save=save, scan_layers=False)
  batch = packed_rows([[16]], 16, 48)

  def layers(params):
    return hidden_states(
      params, batch["tokens"], batch["segment_ids"], batch["positions"], config, compute
    )

  def saved_shapes():
    _, pullback = jax.eval_shape(lambda p: jax.vjp(layers, p), params_of(config))
    return [leaf.shape for leaf in jax.tree.leaves(pullback)]

  # The gate [1,16,F] has a shape of its own here; the attention's output shares its with queries.
  gates = saved_shapes().count((1, 16, 24))
  heads = saved_shapes().count((1, 16, 4, 4))
  if remat == "none":
    assert gates > 2 and heads >= 2
  else:
    layers_saved = 2 if remat == "selective" else 0
    assert (gates, heads) == (layers_saved, layers_saved)


def test_options_change_the_function():
  changes = [
    {},
    {"sliding_window": None},
    {"attention_softcap": None},
    {"logit_softcap": None},
    {"rope_scaling": None},
    {"qk_norm": False},
    {"qkv_bias": False},
    {"rope_theta": 100.0},
  ]
  params, batch = params_of(model_config(num_layers=1, **RICH)), packed_rows([[16]], 16, 48)

  @jax.jit
  def sums(params):
    rows = (batch["tokens"], batch["segment_ids"], batch["positions"])
    configs = [model_config(**{"num_layers": 1} | RICH | change) for change in changes]
    return [jnp.abs(forward(params, *rows, c, compute_config())).sum() for c in configs]

  rich, *others = map(float, sums(params))
  for change, other in zip(changes[1:], others, strict=True):
    assert abs(other - rich) > 1e-2, change


def test_soft_capped_logits_stay_under_the_cap():
  hidden_BLD = np.random.default_rng(0).standard_normal((1, 3, 16)).astype(np.float32)
  params = {"unembedding_DV": 2 * np.eye(16, 48, dtype=np.float32)}
  raw, capped = (
    logits(params, hidden_BLD, model_config(logit_softcap=cap), compute_config())
    for cap in (None, 0.5)
  )
  np.testing.assert_allclose(raw[..., :16], 2 * hidden_BLD, rtol=1e-6)
  np.testing.assert_allclose(capped, 0.5 * np.tanh(np.asarray(raw) / 0.5), rtol=1e-5, atol=1e-6)


def test_rope_depends_on_distance_alone():
  config = model_config(qk_norm=False)
  params = jax.tree.map(lambda leaf: leaf[0], params_of(config)["layers"]["attention"])
  x_BLD = np.random.default_rng(0).standard_normal((1, 6, 16)).astype(np.float32)

  def scores(offset):
    positions = np.arange(6, dtype=np.int32)[None] + offset
    q, k, _ = qkv(params, x_BLD, rope_turns(positions, config), config, compute_config())
    return jnp.einsum("BLNK,BMNK->BNLM", q[:, :, :2], k)

  np.testing.assert_allclose(scores(0), scores(1_000), rtol=1e-3, atol=1e-3)
  assert not np.allclose(scores(0)[0, 0, 0], scores(0)[0, 0, 5], atol=1e-3)


def test_a_cpu_reads_rotations_from_a_table():
  config, compute, params = model_config(), compute_config(), params_of(model_config())
  rows = packed_rows([[5, 8], [3, 9, 2], [16]], 16, 48)
  rows = [rows[name] for name in ("tokens", "segment_ids", "positions")]
  program = jax.jit(lambda params: hidden_states(params, *rows, config, compute)).lower(params)
  cosines = [line for line in program.as_text().splitlines() if "cosine" in line]
  assert cosines and all("tensor<16x2xf32>" in line for line in cosines), cosines
  for read, computed in zip(
    rope_turns(rows[2], config, below=16), rope_turns(rows[2], config), strict=True
  ):
    np.testing.assert_allclose(read, computed, rtol=1e-6)


def test_llama3_rope_frequencies_by_their_published_rule():
  scaling = RopeScaling(8.0, 1.0, 4.0, 8_192)
  got = rope_frequencies(128, 500_000.0, scaling)
  plain = 500_000.0 ** -(np.arange(0, 128, 2) / 128)
  expected = []
  for freq in plain:  # as in llama-models, `apply_scaling`
    wavelength = 2 * np.pi / freq
    if wavelength < 8_192 / 4.0:
      expected.append(freq)
    elif wavelength > 8_192 / 1.0:
      expected.append(freq / 8.0)
    else:
      smooth = (8_192 / wavelength - 1.0) / (4.0 - 1.0)
      expected.append((1 - smooth) * freq / 8.0 + smooth * freq)
  np.testing.assert_allclose(got, expected, rtol=1e-5)
  np.testing.assert_allclose(rope_frequencies(128, 500_000.0, None), plain, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 0.02), ("bfloat16", 0.12)])
def test_half_precision_is_close_to_fp32(dtype, tolerance):
  config, params, batch, (loss, gradient, _) = reference(tuple(PLAIN.items()))
  half, half_gradient, logits = compiled(config, compute_config(dtype=dtype))(params, batch)
  assert half.dtype == logits.dtype == jnp.float32
  assert float(half) == pytest.approx(float(loss), rel=tolerance / 4)
  for a, b in zip(jax.tree.leaves(half_gradient), jax.tree.leaves(gradient), strict=True):
    assert a.dtype == jnp.float32
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)

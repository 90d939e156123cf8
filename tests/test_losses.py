"""The loss: chunks change nothing, sums and weights, and no logits of all tokens at one time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.params import param_specs
from model.sharding import MeshConfig, make_mesh
from model.transformer import logits
from tests.build import compute_config, model_config, numpy_params, packed_rows
from train.losses import LossConfig, cross_entropy, next_token_loss

CONFIG = model_config(num_layers=1)
PARAMS = numpy_params(param_specs(CONFIG), 0)
RNG = np.random.default_rng(0)
HIDDEN = RNG.standard_normal((2, 12, 16)).astype(np.float32)
TARGETS = RNG.integers(0, 48, (2, 12)).astype(np.int32)
WEIGHTS = RNG.uniform(0, 2, (2, 12)).astype(np.float32)


def float64_reference(params, hidden, targets):
  """NLL and log Z of every token, and the gradient of their weighted sum by hidden states."""
  table = np.asarray(params["unembedding_DV"], np.float64)
  out = hidden.astype(np.float64) @ table
  log_z = np.log(np.exp(out).sum(-1))
  return log_z - np.take_along_axis(out, targets[..., None], -1)[..., 0], log_z


KEPT = {"remat": "selective", "remat_save": ("loss_slope",)}


@pytest.mark.parametrize("kept", [{}, KEPT], ids=["again", "kept"])
@pytest.mark.parametrize("chunks", [1, 3, 12])
def test_matches_float64_in_any_number_of_chunks(chunks, kept):
  compute = compute_config(loss_chunks=chunks, **kept)

  @jax.jit
  def run(params, hidden):
    def total(params, hidden):
      nll, log_z = cross_entropy(params, hidden, TARGETS, CONFIG, compute)
      return jnp.sum(nll * WEIGHTS) + 0.1 * jnp.sum(jnp.square(log_z) * WEIGHTS), (nll, log_z)

    return jax.grad(total, (0, 1), has_aux=True)(params, hidden)

  (grads, hidden_gradient), (nll, log_z) = run(PARAMS, HIDDEN)
  expected_nll, expected_log_z = float64_reference(PARAMS, HIDDEN, TARGETS)
  assert nll.dtype == log_z.dtype == jnp.float32
  np.testing.assert_allclose(nll, expected_nll, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(log_z, expected_log_z, rtol=1e-5)
  # d(nll)/d(logits) = p - onehot and d(log Z^2) = 2 log Z p, both in float64.
  table = PARAMS["unembedding_DV"].astype(np.float64)
  p = np.exp(HIDDEN @ table - expected_log_z[..., None])
  slope = (p - np.eye(48)[TARGETS] + 0.2 * expected_log_z[..., None] * p) * WEIGHTS[..., None]
  np.testing.assert_allclose(hidden_gradient, slope @ table.T, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
    grads["unembedding_DV"], np.einsum("bld,blv->dv", HIDDEN, slope), rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize(("kept", "products"), [({}, 4), (KEPT, 3)], ids=["again", "kept"])
def test_a_kept_slope_computes_the_logits_once(kept, products):
  compute = compute_config(loss_chunks=1, **kept)

  def total(params, hidden):
    return sum(x.sum() for x in cross_entropy(params, hidden, TARGETS, CONFIG, compute))

  jaxpr = str(jax.make_jaxpr(jax.grad(total, (0, 1)))(PARAMS, HIDDEN))
  assert jaxpr.count("dot_general[") == products


def test_a_slope_in_fp16_keeps_small_probabilities_and_targets_that_are_nearly_certain():
  compute = compute_config(loss_chunks=1, dtype="float16", **KEPT)
  logits = np.array([0.0, -16.0, -8.0, -20.0], np.float16)
  weight = {"unembedding_DV": jnp.eye(4)}

  def total(hidden, target):
    nll, log_z = cross_entropy(weight, hidden, np.array([[target]]), CONFIG, compute)
    return 8 * nll.sum() + 0.01 * log_z.sum()

  exact = np.exp(logits.astype(np.float64))
  exact /= exact.sum()
  for target in (0, 2):
    found = jax.grad(total)(logits[None, None], target)[0, 0]
    expected = 8 * (exact - np.eye(4)[target]) + 0.01 * exact
    np.testing.assert_allclose(found, expected, rtol=2**-9, atol=2**-25)  # fp16's least is 2^-24


def test_a_slope_knows_no_soft_cap():
  config = dataclasses.replace(CONFIG, logit_softcap=5.0)
  with pytest.raises(ValueError, match=r"model\.logit_softcap=5\.0; leave one"):
    cross_entropy(PARAMS, HIDDEN, TARGETS, config, compute_config(**KEPT))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_slope_of_a_vocabulary_over_devices(tied):
  """Each part has a share of every device's tokens, whose ids are far from each other."""
  config = dataclasses.replace(CONFIG, tie_embeddings=tied)
  weight = PARAMS["unembedding_DV"]
  params = {"embedding_VD": weight.T} if tied else PARAMS
  compute = compute_config(loss_chunks=3, **KEPT)

  def outs(params, hidden):
    nll, log_z = cross_entropy(params, hidden, TARGETS, config, compute)
    return jnp.sum((nll + 0.1 * log_z) * WEIGHTS), (nll, log_z)

  run = jax.jit(jax.value_and_grad(outs, (0, 1), has_aux=True))
  expected = run(params, HIDDEN)
  mesh = make_mesh(MeshConfig(2, 1, 1, 4), jax.devices()[:8])
  with jax.set_mesh(mesh):
    found = run(params, HIDDEN)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def test_a_slope_of_a_vocabulary_that_its_parts_do_not_divide_is_refused():
  with pytest.raises(ValueError, match=r"model\.vocab_size=48 is not .* compute\.loss_chunks=9 "):
    targets = np.zeros((2, 9), np.int32)
    cross_entropy(PARAMS, HIDDEN[:, :9], targets, CONFIG, compute_config(loss_chunks=9, **KEPT))


@pytest.mark.parametrize("chunks", [1, 3])
def test_a_tied_table_has_the_same_slope(chunks):
  config = dataclasses.replace(CONFIG, tie_embeddings=True)
  tied = {"embedding_VD": PARAMS["unembedding_DV"].T}

  def gradients(config, params, compute):
    def total(params, hidden):
      nll, log_z = cross_entropy(params, hidden, TARGETS, config, compute)
      return jnp.sum((nll + 0.1 * log_z) * WEIGHTS)

    grads, hidden = jax.grad(total, (0, 1))(params, HIDDEN)
    return grads, hidden

  grads, hidden = gradients(config, tied, compute_config(loss_chunks=chunks, **KEPT))
  expected, expected_hidden = gradients(CONFIG, PARAMS, compute_config(loss_chunks=1))
  np.testing.assert_allclose(hidden, expected_hidden, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
    grads["embedding_VD"], expected["unembedding_DV"].T, rtol=1e-4, atol=1e-5
  )


def test_rows_that_chunks_do_not_divide_are_refused():
  with pytest.raises(ValueError, match=r"rows of 12 tokens .* compute\.loss_chunks=5"):
    cross_entropy(PARAMS, HIDDEN, TARGETS, CONFIG, compute_config(loss_chunks=5))
  with pytest.raises(ValueError, match=r"loss\.z_loss is -1"):
    LossConfig(z_loss=-1)


@jax.jit
def loss_and_gradient(batch, z_loss):
  def total(params):
    return next_token_loss(params, batch, jax.random.key(0), CONFIG, compute_config(), z_loss)

  return jax.value_and_grad(total, has_aux=True)(PARAMS)


def loss_of(batch, z_loss=0.0):
  (objective, sums), grads = loss_and_gradient(batch, np.float32(z_loss))
  return float(objective), {name: float(value) for name, value in sums.items()}, grads


def test_sums_and_weights():
  batch = packed_rows([[5, 3], [6]], 8, 48)
  batch["loss_weights"] *= np.linspace(0.5, 2, 16, dtype=np.float32).reshape(2, 8)
  objective, sums, _ = loss_of(batch, z_loss=0.25)
  assert set(sums) == {"weight", "loss", "z_loss"}
  assert sums["weight"] == pytest.approx(batch["loss_weights"].sum(), rel=1e-6)
  assert objective == pytest.approx(sums["loss"] + sums["z_loss"], rel=1e-6)
  # Twice the weights, twice the sums: nothing was divided.
  doubled = batch | {"loss_weights": 2 * batch["loss_weights"]}
  assert loss_of(doubled, z_loss=0.25)[1]["loss"] == pytest.approx(2 * sums["loss"], rel=1e-6)


def test_weight_zero_counts_for_nothing():
  batch = packed_rows([[5, 3], [6]], 8, 48)
  _, sums, grads = loss_of(batch)
  other = {name: array.copy() for name, array in batch.items()}
  other["targets"][batch["loss_weights"] == 0] = 7
  _, other_sums, other_grads = loss_of(other)
  assert other_sums == sums
  jax.tree.map(np.testing.assert_array_equal, grads, other_grads)


def test_an_empty_mask_gives_zeros_and_no_nan():
  batch = packed_rows([[5, 3], []], 8, 48)
  objective, sums, grads = loss_of(batch | {"loss_weights": 0 * batch["loss_weights"]}, z_loss=0.1)
  assert objective == 0 and sums == {"weight": 0, "loss": 0, "z_loss": 0}
  jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), grads)


def shapes_in(jaxpr):
  """The avals of every equation of a jaxpr, those inside of it included."""
  for equation in jaxpr.eqns:
    yield from (var.aval for var in equation.outvars)
    for value in equation.params.values():
      for inner in value if isinstance(value, (tuple, list)) else (value,):
        inner = getattr(inner, "jaxpr", inner)
        if hasattr(inner, "eqns"):
          yield from shapes_in(inner)


@pytest.mark.parametrize("tied", [True, False])
def test_never_holds_the_logits_of_all_tokens(tied):
  config = model_config(num_layers=1, vocab_size=4_096, tie_embeddings=tied)
  params = jax.eval_shape(lambda: numpy_params(param_specs(config), 0))
  batch, chunks = packed_rows([[64]] * 4, 64, 4_096), 8
  loss = functools.partial(
    next_token_loss, config=config, compute=compute_config(loss_chunks=chunks), z_loss=1e-4
  )

  def total(params, batch):
    return loss(params, batch, jax.random.key(0))[0]

  gradient = jax.jit(jax.grad(total))
  avals = list(shapes_in(jax.make_jaxpr(gradient)(params, batch).jaxpr))
  with_vocabulary = [a.shape for a in avals if 4_096 in getattr(a, "shape", ())]
  assert (4, 64 // chunks, 4_096) in with_vocabulary  # the search finds what is there
  assert max(np.prod(shape) for shape in with_vocabulary) <= 4 * 64 // chunks * 4_096
  # What XLA allocates agrees: less than all the fp32 logits would take, the gradients aside.
  memory = gradient.lower(params, batch).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 4 * 64 * 4_096 * 4


def test_target_logit_is_the_targets():
  # One-hot logits: the NLL is small exactly where the target is the hot one.
  params = {"unembedding_DV": 20 * np.eye(16, 48, dtype=np.float32)}
  hidden = np.eye(16, dtype=np.float32)[None]
  targets = np.arange(16, dtype=np.int32)[None]
  nll, _ = cross_entropy(params, hidden, targets, CONFIG, compute_config(loss_chunks=4))
  assert np.all(nll < 1e-5)
  nll, _ = cross_entropy(params, hidden, targets[:, ::-1], CONFIG, compute_config(loss_chunks=4))
  assert np.all(nll > 19)
  assert logits(params, hidden, CONFIG, compute_config()).shape == (1, 16, 48)

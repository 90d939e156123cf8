"""Attention: every implementation against float64 numpy, forward and backward, on packed rows."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model.attention
from model import attention_cudnn
from model.attention import attention, causal_segment_mask, masked_attention
from model.sharding import MeshConfig, make_mesh

L, N, G, K = 256, 4, 2, 16
IMPLEMENTATIONS = ("xla", "chunked", "pallas")
# Largest absolute error allowed on values of order 1, forward and backward.
TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 8e-2}


def segments(*rows):
  """Segment ids of rows given as document lengths; the rest of a row is padding."""
  ids = np.zeros((len(rows), L), np.int32)
  for row, lengths in zip(ids, rows, strict=True):
    row[: sum(lengths)] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
  return ids


IDS = segments((70, 50, 100), (1, 127, 128))
SECOND = IDS[0] == 2  # the second document of row 0


def inputs(dtype="float32", seed=0, length=L, rows=2):
  """Query, key, value and a gradient of the output, rounded to `dtype`."""
  rng = np.random.default_rng(seed)
  shapes = [(rows, length, heads, K) for heads in (N, G, G, N)]
  return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@functools.cache
def compiled(implementation, **options):
  """The jitted (q, k, v, d_out, ids) -> output and gradients."""

  def run(q, k, v, d_out, ids):
    call = functools.partial(attention, implementation=implementation, **options)
    out, vjp = jax.vjp(lambda q, k, v: call(q, k, v, ids), q, k, v)
    return out, *vjp(d_out)

  return jax.jit(run)


def numpy_attention(q, k, v, d_out, ids, window=None, softcap=None):
  """Output and gradients in float64, from the formulas, one row and head at a time."""
  q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
  out, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
  age = np.subtract.outer(np.arange(ids.shape[1]), np.arange(ids.shape[1]))
  for b in range(len(q)):
    mask = (ids[b][:, None] == ids[b]) & (age >= 0) & (age < (window or np.inf))
    for n in range(q.shape[2]):
      g = n // (q.shape[2] // k.shape[2])
      x = q[b, :, n] @ k[b, :, g].T / np.sqrt(q.shape[3])
      slope = np.ones_like(x)
      if softcap:
        x, slope = softcap * np.tanh(x / softcap), 1 - np.tanh(x / softcap) ** 2
      p = np.exp(np.where(mask, x, -np.inf))
      p /= p.sum(axis=1, keepdims=True)
      out[b, :, n] = p @ v[b, :, g]
      dp = d_out[b, :, n] @ v[b, :, g].T
      dx = p * (dp - (p * dp).sum(axis=1, keepdims=True)) * slope / np.sqrt(q.shape[3])
      dq[b, :, n] = dx @ k[b, :, g]
      dk[b, :, g] += dx.T @ q[b, :, n]
      dv[b, :, g] += p.T @ d_out[b, :, n]
  return out, dq, dk, dv


def assert_close(actual, expected, ids, tolerance):
  """Compares documents only, later ones first: causality alone would get a row's first right."""
  for where in (ids > 1, ids > 0):
    for name, a, b in zip(("out", "dq", "dk", "dv"), actual, expected, strict=True):
      error = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))[where].max()
      assert error < tolerance, f"{name} differs by {error}"


@pytest.mark.parametrize(
  ("implementation", "dtype"),
  [*itertools.product(IMPLEMENTATIONS, ("float32", "float16")), ("chunked", "bfloat16")],
)
def test_matches_float64(implementation, dtype):
  arrays = inputs(dtype)
  actual = compiled(implementation)(*arrays, IDS)
  assert all(x.dtype == dtype for x in actual)
  assert_close(actual, numpy_attention(*arrays, IDS), IDS, TOLERANCE[dtype])


@pytest.mark.parametrize(
  ("implementation", "options"),
  [
    ("xla", {"sliding_window": 90, "logit_softcap": 1.5}),
    ("chunked", {"sliding_window": 90, "logit_softcap": 1.5}),
  ],
)
def test_window_and_softcap_match_float64(implementation, options):
  arrays = inputs()
  expected = numpy_attention(*arrays, IDS, options["sliding_window"], options.get("logit_softcap"))
  actual = compiled(implementation, **options)(*arrays, IDS)
  assert_close(actual, expected, IDS, TOLERANCE["float32"])


@pytest.mark.parametrize("length", [40, 150])
def test_chunks_need_not_divide_the_row(length):
  arrays, ids = inputs(length=length), IDS[:, -length:]
  actual = compiled("chunked")(*arrays, ids)
  assert_close(actual, numpy_attention(*arrays, ids), ids, TOLERANCE["float32"])


def test_softmax_statistics_survive_large_logits():
  q, k, v, d_out = inputs()
  actual = compiled("chunked")(60 * q, k, v, d_out, IDS)
  assert_close(actual, numpy_attention(60 * q, k, v, d_out, IDS), IDS, 1e-3)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nothing_crosses_documents(implementation):
  q, k, v, d_out = inputs()
  run = compiled(implementation)
  out, *_ = run(q, k, v, d_out, IDS)
  others = jnp.asarray(~SECOND)[:, None, None]
  noise = [x.at[0].add(jnp.where(others, 3.0, 0.0)) for x in (q, k, v)]
  noisy_out, *_ = run(*noise, d_out, IDS)
  np.testing.assert_array_equal(out[0][SECOND], noisy_out[0][SECOND])
  # Gradients of the second document's outputs alone.
  d_second = jnp.where(jnp.asarray(SECOND)[None, :, None, None], d_out, 0.0).at[1].set(0.0)
  _, *gradients = run(q, k, v, d_second, IDS)
  for gradient in gradients:
    assert np.abs(gradient[0][SECOND]).min(axis=(1, 2))[:-1].max() > 0
    assert not np.asarray(gradient[0])[~SECOND].any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nothing_comes_from_the_future(implementation):
  q, k, v, d_out = inputs()
  t = int(np.flatnonzero(SECOND)[20])
  d_one = jnp.zeros_like(d_out).at[0, t].set(d_out[0, t])
  _, dq, dk, dv = compiled(implementation)(q, k, v, d_one, IDS)
  assert np.flatnonzero(np.asarray(dq[0]).any(axis=(1, 2))).tolist() == [t]
  for gradient in (dk, dv):
    touched = np.flatnonzero(np.asarray(gradient[0]).any(axis=(1, 2)))
    assert touched.tolist() == [i for i in np.flatnonzero(SECOND) if i <= t]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_padding_is_finite(implementation):
  for ids in (IDS, segments((), (3,))):
    assert all(np.isfinite(x).all() for x in compiled(implementation)(*inputs(), ids))


def test_decoding_one_token_gives_the_last_row():
  q, k, v, d_out = inputs()
  ids = segments((70, 186), (256,))
  mask = causal_segment_mask(ids[:, -1:], ids, q_offset=L - 1)
  last = jax.jit(masked_attention)(q[:, -1:], k, v, mask)
  full, *_ = compiled("xla")(q, k, v, d_out, ids)
  np.testing.assert_allclose(last[:, 0], full[:, -1], atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_queries_of_a_part_of_the_rows(implementation):
  q, k, v, d_out = inputs()
  part = slice(90, 150)  # in two documents of row 0, over chunks' ends
  d_out = jnp.zeros_like(d_out).at[:, part].set(d_out[:, part])
  out, *gradients = compiled(implementation)(q, k, v, d_out, IDS)
  got, dq, *rest = compiled(implementation, first=90)(q[:, part], k, v, d_out[:, part], IDS)
  np.testing.assert_allclose(got, out[:, part], atol=1e-5)
  np.testing.assert_allclose(dq, gradients[0][:, part], atol=1e-5)
  for a, b in zip(rest, gradients[1:], strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
  ("implementation", "mesh", "options"),
  [
    ("xla", MeshConfig(1, 2, 2, 2), {"sliding_window": 90}),
    ("chunked", MeshConfig(1, 1, 4, 2), {}),
    ("pallas", MeshConfig(2, 1, 1, 2), {}),
  ],
)
def test_sharded_equals_unsharded(implementation, mesh, options):
  arrays = inputs()
  expected = compiled("xla", **options)(*arrays, IDS)
  devices = jax.devices()[: mesh.data * mesh.fsdp * mesh.context * mesh.tensor]
  with jax.set_mesh(make_mesh(mesh, devices)):
    actual = jax.jit(compiled(implementation, **options).__wrapped__)(*arrays, IDS)
  assert_close(actual, expected, IDS, TOLERANCE["float32"])


@pytest.mark.parametrize(
  ("implementation", "kernel"),
  [("chunked", "scan["), ("pallas", "name=mha_forward")],
  ids=["chunked", "pallas"],
)
@pytest.mark.parametrize("mesh", [None, MeshConfig(2, 1, 1, 2)], ids=["alone", "sharded"])
def test_saved_residuals_spare_the_second_forward(implementation, kernel, mesh):
  q, k, v, _ = inputs()

  def count(policy):
    @functools.partial(jax.checkpoint, policy=policy)
    def layer(q, k, v):
      return attention(2 * q, k, v, jnp.asarray(IDS), implementation=implementation)

    gradient = jax.grad(lambda q, k, v: (layer(q, k, v) ** 2).sum(), argnums=(0, 1, 2))
    return str(jax.make_jaxpr(gradient)(q, k, v)).count(kernel)

  save = jax.checkpoint_policies.save_only_these_names
  with jax.set_mesh(make_mesh(mesh or MeshConfig(1, 1, 1, 1), jax.devices()[: 4 if mesh else 1])):
    saved = count(save("attention_out", "attention_lse"))
    assert count(save("attention_out")) == saved + 1
    assert count(None) == saved + 1
    assert saved == (2 if implementation == "chunked" else 1)  # backward of chunked scans as well


layout = jax.jit(attention_cudnn.packed_layout, static_argnums=1)


def test_cudnn_layout_of_documents():
  lengths, starts = layout(segments((70, 50, 100), (), (256,), (3, 9)), 3)
  end = 4 * L
  assert lengths.ravel().tolist() == [70, 50, 100, 256, 3, 9, 0, 0, 0, 0, 0, 0]
  assert starts.ravel().tolist() == [0, 70, 120, 2 * L, 3 * L, 3 * L + 3] + [end] * 10
  assert lengths.shape == (4, 3) and starts.shape == (4, 4)


def test_cudnn_layout_matches_numpy():
  rng = np.random.default_rng(0)
  for _ in range(20):
    rows = [np.diff(np.unique(rng.integers(0, L, rng.integers(2, 7)))) for _ in range(3)]
    ids = np.stack(
      [np.roll(row, rng.integers(L - row.astype(bool).sum())) for row in segments(*rows)]
    )
    lengths, starts = (np.ravel(x) for x in layout(ids, 6))
    documents = [(b, s) for b in range(3) for s in range(1, ids[b].max() + 1)]
    assert lengths.tolist()[: len(documents)] == [int((ids[b] == s).sum()) for b, s in documents]
    assert starts.tolist()[: len(documents)] == [
      b * L + int(np.flatnonzero(ids[b] == s)[0]) for b, s in documents
    ]
    assert not lengths[len(documents) :].any() and (starts[len(documents) :] == 3 * L).all()


class FakeCudnn:
  """The two primitives as cuDNN documents them: flat memory, element offsets, garbage elsewhere."""

  MaskType = types.SimpleNamespace(PADDING_CAUSAL="PADDING_CAUSAL")
  AttentionLayout = types.SimpleNamespace(BTNH=types.SimpleNamespace(value=0))

  def __init__(self):
    self._dot_product_attention_fwd_p = types.SimpleNamespace(bind=self.forward)
    self._dot_product_attention_bwd_p = types.SimpleNamespace(bind=self.backward)

  def forward(self, *operands, **parameters):
    out, *_ = self.documents(operands, jnp.zeros_like(operands[0]), parameters)
    return out, self.statistics(operands)

  def backward(self, *operands, **parameters):
    *operands, stats, _, d_out = operands
    kept = jnp.where(self.statistics(operands) == 7.0, 0.0, self.statistics(operands))
    # What the forward pass gave of the documents comes back, each at its place.
    same = (stats == kept).all()
    grads = self.documents(operands, d_out, parameters)[1:]
    return [jnp.where(same, grad, jnp.nan) for grad in grads]

  def statistics(self, operands):
    """[documents,N,L], a number for each document, head and token, and garbage elsewhere."""
    lengths = operands[4].reshape(-1, 1, 1)
    numbers = jnp.arange(lengths.size * N * L, dtype=jnp.float32).reshape(-1, N, L) + 100
    return jnp.where(jnp.arange(L)[None, None] < lengths, numbers, 7.0)

  def documents(self, operands, d_out, parameters):
    assert parameters["mask_type"] == "PADDING_CAUSAL"
    q, k, v, *_ = operands
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, q, k, v)]
    return jax.pure_callback(self.run, shapes, d_out, *operands)

  def run(self, d_out, q, k, v, _, q_lengths, kv_lengths, q_starts, kv_starts, *unused):
    assert (q_lengths == kv_lengths).all()
    results = [np.full(x.size, 7.0, np.float32) for x in (q, q, k, v)]
    for length, q_start, kv_start in zip(
      np.ravel(q_lengths), np.ravel(q_starts), np.ravel(kv_starts), strict=False
    ):
      if length == 0:
        continue
      spans = {
        heads: slice(start, start + length * heads * K)
        for heads, start in ((N, q_start), (G, kv_start))
      }
      document = [
        np.ravel(x)[spans[x.shape[2]]].reshape(1, length, -1, K) for x in (q, k, v, d_out)
      ]
      ones = np.ones((1, length), np.int32)
      for result, values, heads in zip(
        results, numpy_attention(*document, ones), (N, N, G, G), strict=True
      ):
        result[spans[heads]] = values.ravel()
    return [x.reshape(y.shape).astype(q.dtype) for x, y in zip(results, (q, q, k, v), strict=True)]


def test_cudnn_reads_the_right_elements(monkeypatch):
  monkeypatch.setattr(attention_cudnn, "_library", FakeCudnn)
  monkeypatch.setattr(model.attention, "_device", lambda mesh: ("gpu", 9.0))
  arrays = inputs("float16")
  actual = compiled("cudnn", max_segments=3)(*arrays, IDS)
  assert_close(actual, numpy_attention(*arrays, IDS), IDS, TOLERANCE["float16"])
  assert all(not np.asarray(x)[IDS == 0].any() for x in actual)  # not what was in memory
  # Past the packer's bound the third document has no offsets: NaN, which no step commits.
  out, *_ = compiled("cudnn", max_segments=2)(*arrays, IDS)
  assert np.isnan(out[IDS == 3]).all() and np.isfinite(out[IDS < 3]).all()


@pytest.mark.parametrize(("length", "chosen"), [(128, "dot_general"), (129, "scan[")])
def test_auto_loops_over_chunks_of_long_rows_alone(length, chosen):
  call = functools.partial(attention, segment_ids_BL=jnp.asarray(IDS[:, :length]))
  jaxpr = str(jax.make_jaxpr(call)(*(x[:, :length] for x in inputs("float32")[:3])))
  assert next(kernel for kernel in ("scan[", "dot_general") if kernel in jaxpr) == chosen


@pytest.mark.parametrize(
  ("device", "options", "chosen"),
  [
    (("cpu", 0.0), {}, "scan["),
    (("gpu", 7.5), {}, "dot_general"),  # a T4: one chunk of 512
    (("gpu", 8.0), {}, "mha_forward"),
    (("gpu", 9.0), {}, "mha_forward"),
    (("gpu", 9.0), {"sliding_window": 8}, "dot_general"),
  ],
)
def test_auto_takes_what_the_device_can_do(monkeypatch, device, options, chosen):
  monkeypatch.setattr(model.attention, "_device", lambda mesh: device)
  call = functools.partial(attention, segment_ids_BL=jnp.asarray(IDS), **options)
  jaxpr = str(jax.make_jaxpr(call)(*inputs("float16")[:3]))
  found = [kernel for kernel in ("mha_forward", "scan[", "dot_general") if kernel in jaxpr]
  assert found[0] == chosen


def call_with(implementation, *, dtype="float16", length=L, head_dim=K, heads=(N, G), **options):
  q, k = (jnp.zeros((2, length, h, head_dim), dtype) for h in heads)
  ids = jnp.zeros((2, length), jnp.int32)
  return jax.eval_shape(
    lambda q, k: attention(q, k, k, ids, implementation=implementation, **options), q, k
  )


@pytest.mark.parametrize(
  ("implementation", "options", "words"),
  [
    ("flash", {}, "'flash'.*auto, xla, chunked, pallas, cudnn"),
    ("xla", {"heads": (4, 3)}, "multiple of G"),
    ("pallas", {"sliding_window": 8}, "'pallas'.*sliding_window=8.*chunked"),
    ("pallas", {"logit_softcap": 5.0}, "'pallas'.*logit_softcap=5.0"),
    ("pallas", {"head_dim": 24}, "'pallas'.*head_dim=24"),
    ("pallas", {"length": 200}, "'pallas'.*row length 200.*multiple of 128"),
    ("cudnn", {"max_segments": 4, "dtype": "float32"}, "'cudnn'.*dtype float32"),
    ("cudnn", {"max_segments": 4, "logit_softcap": 5.0}, "'cudnn'.*logit_softcap=5.0"),
    ("cudnn", {"max_segments": 4, "head_dim": 20}, "'cudnn'.*head_dim=20"),
    ("cudnn", {}, "'cudnn'.*max_segments=None"),
  ],
)
def test_an_option_that_a_backend_lacks_is_refused(monkeypatch, implementation, options, words):
  monkeypatch.setattr(model.attention, "_device", lambda mesh: ("gpu", 9.0))
  with pytest.raises(ValueError, match=words):
    call_with(implementation, **options)


def test_cudnn_is_refused_off_hopper_and_on_unknown_jax(monkeypatch):
  with pytest.raises(ValueError, match=r"'cudnn'.*'cpu'.*Hopper"):
    call_with("cudnn", max_segments=4)
  monkeypatch.setattr(jax, "__version_info__", (0, 99, 0))
  with pytest.raises(ValueError, match=r"'cudnn'.*private.*use jax 0\.10, 0\.12"):
    call_with("cudnn", max_segments=4)


@pytest.mark.parametrize(
  ("device", "dtype", "words"),
  [
    (("gpu", 7.5), "float16", "'pallas'.*capability 7.5.*at least 8.0"),
    (("gpu", 9.0), "float32", "'pallas'.*float32.*use float16"),
  ],
)
def test_pallas_is_refused_where_triton_can_not_compute_it(monkeypatch, device, dtype, words):
  monkeypatch.setattr(model.attention, "_device", lambda mesh: device)
  with pytest.raises(ValueError, match=words):
    call_with("pallas", dtype=dtype)


@pytest.mark.parametrize(
  ("mesh", "implementation", "options", "words"),
  [
    (MeshConfig(1, 1, 2, 1), "pallas", {}, "'pallas'.*context=2"),
    (MeshConfig(1, 1, 1, 4), "xla", {}, "key-value heads=2.*4 parts.*tensor"),
    (MeshConfig(2, 2, 1, 1), "xla", {}, "batch rows=2.*4 parts.*data.*fsdp"),
    (MeshConfig(1, 1, 4, 1), "chunked", {"length": 30}, "row length=30.*4 parts.*context"),
  ],
)
def test_a_mesh_that_does_not_divide_is_refused(mesh, implementation, options, words):
  devices = jax.devices()[: mesh.data * mesh.fsdp * mesh.context * mesh.tensor]
  with jax.set_mesh(make_mesh(mesh, devices)), pytest.raises(ValueError, match=words):
    call_with(implementation, **options)

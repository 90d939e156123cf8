"""What only a GPU can tell; before a large run, on a node: python -m pytest tests/test_gpu.py."""

import os
import subprocess
import sys

import pytest

# The suite's jax has only CPUs, so the check is a process of its own.
CHECK = """
import jax, jax.numpy as jnp, numpy as np
from model.attention import attention
from tests.build import packed_rows

B, L, N, G, K = 2, 1024, 8, 2, 128
ids = packed_rows([[300, 500, 100], [1, 1000]], L, 8)["segment_ids"]
keys = jax.random.split(jax.random.key(0), 4)
q, d_out = (jax.random.normal(k, (B, L, N, K), jnp.float16) for k in keys[:2])
k, v = (jax.random.normal(k, (B, L, G, K), jnp.float16) for k in keys[2:])
real = jnp.asarray(ids > 0)[..., None, None]

def run(implementation):
  def loss(q, k, v):
    out = attention(q, k, v, ids, implementation=implementation, max_segments=4)
    out = jnp.where(real, out, 0)
    return (out.astype(jnp.float32) * d_out).sum(), out
  grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
  return [np.asarray(x, np.float32) for x in (out, *grads)]

for name in ("cudnn", "pallas"):
  for actual, expected in zip(run(name), run("chunked"), strict=True):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual / scale, expected / scale, atol=5e-3, err_msg=name)
"""


def has_hopper() -> bool:
  command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
  try:
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
  except (OSError, subprocess.CalledProcessError):
    return False
  return bool(found) and float(found[0]) >= 9.0


@pytest.mark.skipif(not has_hopper(), reason="needs a Hopper GPU")
def test_packed_attention_on_tensor_cores_is_the_reference():
  environment = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
  done = subprocess.run(
    [sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-2000:]

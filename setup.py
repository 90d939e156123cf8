"""Packaging of Straits. `pip install -e .` is all that a CPU machine needs."""

import setuptools

# Upper bounds stand only where a release is known to break something, with the reason beside it.
REQUIRED = [
  "jax>=0.10.2",
  "flax>=0.12.0",
  "optax>=0.2.8",
  "orbax-checkpoint>=0.12.0",
  "grain>=0.2.18",
  "seqio>=0.0.20",
  "ml_collections>=1.1.0",
  "absl-py>=2.1.0",
  "numpy>=2.0",
  "tokenizers>=0.21",
]

EXTRAS = {
  "test": ["pytest>=8.3", "hypothesis>=6.100", "ruff>=0.9"],
}

setuptools.setup(
  name="straits",
  version="0.1.0",
  description="A JAX training stack: from raw text to an aligned, evaluated language model.",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=["configs", "data", "model", "train"],
  install_requires=REQUIRED,
  extras_require=EXTRAS,
)

"""Packaging of Straits: `pip install -e .` is all that a machine without a GPU needs."""

import setuptools

# Every package that the code imports, from the oldest release that its tests pass with.
# No upper bounds: no release is known to break anything. On Python 3.11 pip stops at jax 0.10.2.
REQUIRED = [
  "absl-py>=2.1.0",
  "flax>=0.12.0",
  "fsspec>=2024.6.0",
  "grain>=0.2.18",
  "jax>=0.10.2",
  "ml_collections>=1.1.0",
  "numpy>=2.0.0",
  "optax>=0.2.8",
  "orbax-checkpoint>=0.12.0",
  "sentencepiece>=0.2.0",
  "seqio>=0.0.20",
  "tensorflow>=2.21.0",  # seqio's; only data/tasks.py imports either
  "tokenizers>=0.21.0",
]

EXTRAS = {
  # Releases of ruff format differently, so it is the one that a test holds the code to.
  "test": [
    "gguf>=0.17.0",
    "hypothesis>=6.100.0",
    "matplotlib>=3.9.0",
    "pytest>=8.3.0",
    "ruff==0.17.6",
    "safetensors>=0.5.0",
    "setuptools>=65.5.0",
  ],
  # To import GGUF files.
  "gguf": ["gguf>=0.17.0"],
  # What tests compare with, on the CPU; transformers reads GGUF with accelerate.
  "peers": ["accelerate>=1.0.0", "torch==2.13.0", "transformers>=4.50.0"],
  "cuda12": ["jax[cuda12]>=0.10.2"],
  # To compile for a GPU without one: the plugin of jax's own version, ptxas and cuDNN's headers,
  # without the rest of CUDA.
  "plan": [
    "jax[cuda12-local]>=0.10.2",
    "nvidia-cuda-nvcc-cu12>=12.6",
    "nvidia-cudnn-cu12>=9.8,<10",
  ],
}

setuptools.setup(
  name="straits",
  version="0.1.0",
  description="A JAX training stack for decoder language models, from raw text to sampled text.",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=["configs", "data", "model", "train"],
  package_data={"train": ["clusters/*.json"]},
  install_requires=REQUIRED,
  extras_require=EXTRAS,
)

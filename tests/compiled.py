"""One compilation cache for the runs of a test file, which compile the same few programs."""

import contextlib
import os
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@contextlib.contextmanager
def kept_in(folder: Path, **settings):
  """Keeps every compiled program in `folder`, in this process and those that it starts.

  `settings` are further ones of jax for the time.
  """
  settings |= {
    "jax_compilation_cache_dir": str(folder),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  before = {name: jax.config.values[name] for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
      del os.environ[name.upper()]
    compilation_cache.reset_cache()


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
  """For files that import it."""
  with kept_in(tmp_path_factory.mktemp("compiled")):
    yield

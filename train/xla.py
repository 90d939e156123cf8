"""XLA's settings of a run: a named profile of options, the environment's flags, a cache on disk.

The profiles are in train/xla_profiles.json. Their options go to XLA with the training step, where a
wrong one is an error; flags of the environment (XLA_FLAGS) end the process when jax starts if XLA
does not know one, so they are tried in another process first.
"""

import ctypes
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

PROFILES = Path(__file__).with_name("xla_profiles.json")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclasses.dataclass(frozen=True)
class Profile:
  """XLA's options by name, and the part of a GPU's memory that the client takes; None for XLA's."""

  options: Mapping[str, Any]
  memory_fraction: float | None


def load_profile(name: str) -> Profile:
  """A profile of xla_profiles.json, with the options of its base. ValueError for another name."""
  profiles = json.loads(PROFILES.read_text())
  if name not in profiles:
    raise ValueError(f"train.xla_profile is {name!r}; known: {', '.join(profiles)}.")
  entry = profiles[name]
  base = load_profile(entry["base"]) if "base" in entry else Profile({}, None)
  return Profile(
    {**base.options, **entry["options"]}, entry.get("memory_fraction", base.memory_fraction)
  )


def step_options(profile: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """What the training step is compiled with: the profile's options, and the recipe's own."""
  return {**load_profile(profile).options, **options}


def jit_options(profile: str, options: Mapping[str, Any]) -> dict[str, Any] | None:
  """The same for `jax.jit`'s `compiler_options`: None where there is none."""
  return step_options(profile, options) or None


def cache_folder() -> Path:
  """STRAITS_CACHE, or the user's own cache folder."""
  return Path(os.environ.get("STRAITS_CACHE") or Path.home() / ".cache" / "straits")


def prepare(profile: str) -> None:
  """Call it before jax touches a device: checks XLA_FLAGS, sets memory and jax's compilation cache.

  What the environment sets already stays. Programs for CPUs are small and made for one machine, so
  they are kept only where STRAITS_CACHE says where.

  Raises ValueError for an unknown profile, and for XLA_FLAGS that XLA would abort on.
  """
  check_flags(os.environ.get("XLA_FLAGS", ""))
  fraction = load_profile(profile).memory_fraction
  if fraction is not None:
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(fraction))
  keep_memory()
  if jax.config.jax_compilation_cache_dir is None and (
    "STRAITS_CACHE" in os.environ or jax.default_backend() != "cpu"
  ):
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))


def keep_memory() -> None:
  """On CPUs, keeps the memory of a program for its next run.

  A program's temporaries are one block, of hundreds of MB for a training step. glibc would map it
  anew at every run, and the kernel fill it with zeros page after page: a third of a step's time. It
  keeps what lies in the heap of the main thread, so programs run in the thread that calls them.
  """
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
  if jax.default_backend() == "cpu" and mallopt is not None:
    mallopt(_MMAP_THRESHOLD, 2**31 - 1)
    mallopt(_TRIM_THRESHOLD, -1)  # never


def check_flags(flags: str) -> None:
  """Raises ValueError, naming them, where XLA would abort on some of `flags`; keeps good ones."""
  if not flags.strip():
    return
  known = f"{flags}\0{jax.lib.__version__}"
  seen = cache_folder() / "flags" / hashlib.sha256(known.encode()).hexdigest()[:16]
  if seen.exists():
    return
  environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  tried = subprocess.run(
    [sys.executable, "-c", "import jax; jax.devices('cpu')"],
    env=environment,
    capture_output=True,
    text=True,
  )
  if tried.returncode != 0:
    unknown = re.search(r"Unknown flags? in XLA_FLAGS: (.*)", tried.stderr)
    what = f"has flags that XLA does not know: {unknown.group(1)}" if unknown else "does not parse"
    raise ValueError(f"XLA_FLAGS={flags!r} {what}; leave them out, jax would abort.")
  try:
    seen.parent.mkdir(parents=True, exist_ok=True)
    seen.touch()
  except OSError:
    pass  # nowhere to remember it: it is tried again

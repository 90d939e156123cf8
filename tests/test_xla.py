"""Named XLA profiles, flags of the environment, and what is set before jax touches a device."""

import json
import os
import subprocess
import sys

import pytest

from configs import pretrain, pretrain_37b
from train import xla


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("STRAITS_CACHE", str(tmp_path))
  return tmp_path


def test_a_profile_has_the_options_of_its_base_and_a_recipe_has_the_last_word():
  base, derived = xla.load_profile("h100"), xla.load_profile("h100-deterministic")
  assert base.options.items() < derived.options.items()
  assert derived.options["xla_gpu_deterministic_ops"] is True
  assert derived.memory_fraction == base.memory_fraction == 0.9
  own = {"xla_gpu_enable_triton_gemm": True}
  assert xla.step_options("h100", own) == {**base.options, **own}
  assert xla.step_options("none", own) == own
  with pytest.raises(ValueError, match=r"'h1000'; known: none, h100, h100-det"):
    xla.load_profile("h1000")


def test_the_memory_that_a_profile_takes_is_what_xla_is_told_to_plan_with():
  # XLA plans with slop percent of four fifths of the device; the client reserves a fraction of it.
  for name in json.loads(xla.PROFILES.read_text()):
    profile = xla.load_profile(name)
    if profile.memory_fraction is not None:
      slop = profile.options["xla_gpu_memory_limit_slop_factor"]
      assert 0.8 * slop / 100 == pytest.approx(profile.memory_fraction, abs=0.005), name


def test_recipes_name_profiles_that_exist():
  for recipe in (pretrain, pretrain_37b):
    xla.load_profile(recipe.get_config().train.xla_profile)


def test_flags_that_xla_would_abort_on_are_one_message(cache, monkeypatch):
  with pytest.raises(ValueError, match="does not know: --xla_no_such_flag=1;"):
    xla.check_flags("--xla_gpu_enable_triton_gemm=false --xla_no_such_flag=1")
  good = "--xla_gpu_enable_triton_gemm=false"
  xla.check_flags(good)
  monkeypatch.setattr(xla.subprocess, "run", lambda *args, **options: pytest.fail("tried again"))
  xla.check_flags(good)
  xla.check_flags("  ")


def test_every_option_of_every_profile_is_one_that_xla_has(cache):
  for name in json.loads(xla.PROFILES.read_text()):
    options = xla.load_profile(name).options
    values = {k: str(v).lower() if isinstance(v, bool) else v for k, v in options.items()}
    xla.check_flags(" ".join(f"--{key}={value}" for key, value in values.items()))


def test_prepare_sets_memory_and_keeps_what_the_environment_says(cache, monkeypatch):
  updates = {}
  monkeypatch.setattr(xla.jax.config, "update", lambda key, value: updates.update({key: value}))
  monkeypatch.setattr(xla, "keep_memory", lambda: None)  # it asks for the devices
  monkeypatch.setenv("XLA_FLAGS", "")
  monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
  xla.prepare("h100")
  assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.9"
  assert updates == {"jax_compilation_cache_dir": str(cache / "xla")}
  monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
  xla.prepare("h100")
  assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"


def test_a_program_runs_again_in_the_memory_it_had():
  code = """if True:
    import resource
    from train import xla
    xla.prepare("none")
    import jax, jax.numpy as jnp
    w = jnp.ones((64, 64))
    program = jax.jit(lambda x: jnp.sort(x @ w, axis=0)[::7].sum())  # a sort fuses with nothing
    x = jnp.ones((400_000, 64))  # 100 MB of temporaries, 25,000 pages
    assert program.lower(x).compile().memory_analysis().temp_size_in_bytes > 100e6
    faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    seen = []
    for _ in range(6):  # until the heap has a hole of that size
      before = faults()
      program(x).block_until_ready()
      seen.append(faults() - before)
    print(min(seen))
  """
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  done = subprocess.run(
    [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
  )
  assert int(done.stdout) < 1000

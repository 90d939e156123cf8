"""Strict jax on 8 virtual CPU devices, for every test."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# LLVM's passes cost more than they save on programs as small as these. Whole runs keep them
# (test_run.py), and what XLA itself does to a program, collectives say, stays the same.
jax.config.update("jax_disable_most_optimizations", True)

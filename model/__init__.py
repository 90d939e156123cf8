"""Pure functions of (params, arrays, config). Imports jax only, never `data` or `train`."""

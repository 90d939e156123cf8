"""Documents in, numpy batches out. Imports no jax."""

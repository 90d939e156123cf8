"""The processors against those of transformers, in the order of this project."""

import jax.numpy as jnp
import numpy as np
import pytest

from model.sampling import SamplingConfig, process, settings, start_history

pytestmark = pytest.mark.peers
VOCAB, BATCH = 500, 4


@pytest.mark.parametrize(
  "row",
  [
    SamplingConfig(0.7, 0.9),
    SamplingConfig(1.3, 0.4, top_k=25),
    SamplingConfig(1.0, 1.0, min_p=0.03),
    SamplingConfig(1.0, 0.95, repetition_penalty=1.7, min_tokens=3, forbidden=(4, 9)),
  ],
)
def test_each_processor_is_that_of_transformers(row):
  import torch
  import transformers.generation.logits_process as hf

  rng = np.random.default_rng(0)
  logits = (3 * rng.standard_normal((BATCH, VOCAB))).astype(np.float32)
  prompts = rng.integers(0, VOCAB, (BATCH, 30), np.int32)
  stop = 11
  chain = []
  if row.forbidden:
    chain.append(hf.SuppressTokensLogitsProcessor(list(row.forbidden)))
  if row.min_tokens:
    chain.append(hf.MinNewTokensLengthLogitsProcessor(prompts.shape[1], row.min_tokens, [stop]))
  if row.repetition_penalty != 1:
    chain.append(hf.RepetitionPenaltyLogitsProcessor(row.repetition_penalty))
  chain.append(hf.TemperatureLogitsWarper(row.temperature))
  if row.min_p:
    chain.append(hf.MinPLogitsWarper(row.min_p))
  if row.top_k is not None:
    chain.append(hf.TopKLogitsWarper(row.top_k))
  if row.top_p < 1:
    chain.append(hf.TopPLogitsWarper(row.top_p))
  expected = torch.from_numpy(logits)
  for one in chain:
    expected = one(torch.from_numpy(prompts).long(), expected)
  got = process(
    jnp.asarray(logits),
    settings([row] * BATCH, VOCAB),
    start_history(prompts, np.full(BATCH, 30), VOCAB),
    np.full((BATCH, 1), stop),
    np.zeros(BATCH, np.int32),
  )
  np.testing.assert_allclose(got, expected.numpy(), rtol=2e-6, atol=2e-6)

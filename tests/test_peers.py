"""Ours against transformers' Llama and Qwen3 and torch's AdamW, from files that they made.

`tests/fixtures/make_llama.py` makes the files; the tests marked `peers` make them again.
"""

import jax
import numpy as np
import pytest

from model.config import RopeScaling
from model.transformer import forward
from tests.build import Trainer, compute_config, model_config
from tests.fixtures import make_llama
from train.losses import next_token_loss

NAMES = ("llama", "llama3_rope", "qwen3")
# Hugging Face's name, and its [out, in] weight in our order of axes.
LAYER = {
  "input_layernorm.weight": ("attention", "norm_D", lambda w: w),
  "self_attn.q_proj.weight": ("attention", "query_DNK", lambda w: w.T.reshape(16, 4, 8)),
  "self_attn.k_proj.weight": ("attention", "key_DGK", lambda w: w.T.reshape(16, 2, 8)),
  "self_attn.v_proj.weight": ("attention", "value_DGK", lambda w: w.T.reshape(16, 2, 8)),
  "self_attn.o_proj.weight": ("attention", "out_NKD", lambda w: w.T.reshape(4, 8, 16)),
  "self_attn.q_norm.weight": ("attention", "query_norm_K", lambda w: w),
  "self_attn.k_norm.weight": ("attention", "key_norm_K", lambda w: w),
  "post_attention_layernorm.weight": ("mlp", "norm_D", lambda w: w),
  "mlp.gate_proj.weight": ("mlp", "gate_DF", lambda w: w.T),
  "mlp.up_proj.weight": ("mlp", "up_DF", lambda w: w.T),
  "mlp.down_proj.weight": ("mlp", "down_FD", lambda w: w.T),
}


def config_of(name):
  rope = make_llama.LLAMA3
  scaling = RopeScaling(
    rope["factor"],
    rope["low_freq_factor"],
    rope["high_freq_factor"],
    rope["original_max_position_embeddings"],
  )
  return model_config(
    vocab_size=64,
    head_dim=8,
    qk_norm=name == "qwen3",
    rope_scaling=scaling if name == "llama3_rope" else None,
  )


def load(name) -> dict[str, np.ndarray]:
  with np.load(make_llama.FOLDER / f"{name}.npz") as file:
    return dict(file)


def tree_of(arrays, prefix):
  """All the weights under `prefix` as our tree."""
  layers = {"attention": {}, "mlp": {}}
  for name, (block, leaf, convert) in LAYER.items():
    stack = [arrays.get(f"{prefix}/model.layers.{i}.{name}") for i in range(2)]
    if stack[0] is not None:
      layers[block][leaf] = np.stack([convert(weight) for weight in stack])
  return {
    "embedding_VD": arrays[f"{prefix}/model.embed_tokens.weight"],
    "layers": layers,
    "final_norm_D": arrays[f"{prefix}/model.norm.weight"],
    "unembedding_DV": arrays[f"{prefix}/lm_head.weight"].T,
  }


def batch_of(ids):
  rows, length = ids.shape[0], ids.shape[1] - 1
  return {
    "tokens": ids[:, :-1].astype(np.int32),
    "targets": ids[:, 1:].astype(np.int32),
    "segment_ids": np.ones((rows, length), np.int32),
    "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
    "loss_weights": np.ones((rows, length), np.float32),
  }


def check_function(name, arrays):
  """Logits, loss and gradients are those of the peer."""
  config, params, batch = config_of(name), tree_of(arrays, "weights"), batch_of(arrays["ids"])

  @jax.jit
  def run(params):
    def loss(params):
      total, sums = next_token_loss(
        params, batch, jax.random.key(0), config, compute_config(), z_loss=0.0
      )
      return total / sums["weight"]

    rows = (batch["tokens"], batch["segment_ids"], batch["positions"])
    return *jax.value_and_grad(loss)(params), forward(params, *rows, config, compute_config())

  loss, gradient, logits = run(params)
  np.testing.assert_allclose(logits, arrays["logits"], rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(loss, arrays["loss"], rtol=1e-5)
  layers, compared = gradient["layers"], 0
  for key, theirs in arrays.items():
    hf = key.removeprefix("gradient/")
    if hf == key:
      continue
    if hf.startswith("model.layers."):
      index, short = hf.removeprefix("model.layers.").split(".", 1)
      block, leaf, convert = LAYER[short]
      ours, theirs = layers[block][leaf][int(index)], convert(theirs)
    elif hf == "lm_head.weight":
      ours, theirs = gradient["unembedding_DV"], theirs.T
    else:
      ours = gradient["embedding_VD"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5, err_msg=hf)
    compared += 1
  assert compared == (6 if name == "qwen3" else 5)


def check_training(name, arrays):
  """Five clipped AdamW updates lead to the same losses, gradient norms and weights."""
  trainer = Trainer(
    config_of(name),
    compute_config(),
    z_loss=0.0,
    total_steps=5,
    warmup_steps=1,
    peak_lr=make_llama.PEAK,
    final_lr=0.0,
    b1=make_llama.ADAMW["betas"][0],
    b2=make_llama.ADAMW["betas"][1],
    eps=make_llama.ADAMW["eps"],
    weight_decay=make_llama.WEIGHT_DECAY,
    clip_norm=make_llama.CLIP_NORM,
  )
  state = trainer.state.replace(params=tree_of(arrays, "weights"))
  state, metrics = trainer.run(state, [batch_of(arrays["ids"])] * 5)
  np.testing.assert_allclose([m["loss"] for m in metrics], arrays["losses"], rtol=1e-4)
  np.testing.assert_allclose([m["grad_norm"] for m in metrics], arrays["norms"], rtol=1e-3)
  assert min(arrays["norms"]) > make_llama.CLIP_NORM  # the clip did something
  jax.tree.map(
    lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4),
    state.params,
    tree_of(arrays, "trained"),
  )


@pytest.mark.parametrize("name", NAMES)
def test_logits_loss_and_gradients_are_those_of_transformers(name):
  check_function(name, load(name))


@pytest.mark.parametrize(
  "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "qwen3")) for n in NAMES]
)
def test_training_follows_torch(name):
  check_training(name, load(name))


@pytest.mark.peers
@pytest.mark.parametrize("name", NAMES)
def test_live_peers_agree_with_their_files_and_with_us(name):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  arrays = make_llama.compute(make_llama.models()[name])
  for key, value in load(name).items():
    np.testing.assert_allclose(arrays[key], value, rtol=1e-3, atol=1e-4, err_msg=key)
  check_function(name, arrays)
  check_training(name, arrays)

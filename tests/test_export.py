"""Models through a run's folder and back: weights, tokenizers, refusals; and training from them."""

import dataclasses
import functools
import importlib.util
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from configs import continued
from data import tokenizer as tokenizer_files
from model import hf, hf_config
from model.params import map_specs, param_specs
from model.safetensors import open_directory
from model.sharding import make_mesh
from model.transformer import forward
from tests import smollm2, tiny
from tests.build import model_config, numpy_params
from tests.fixtures import make_hf
from train import export, loop
from train.checkpoint import Checkpointer
from train.optimizer import make_optimizer
from train.pretrain import parse_config

EOT = "<|endoftext|>"
TEXTS = ["The quick brown fox jumps over the lazy dog.", "Numbers: 2024 and 1.8e12 — ünïcode"]


def has_peers():
  return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def weights(folder, config, which="raw"):
  specs = param_specs(config)
  abstract = map_specs(lambda spec: jax.ShapeDtypeStruct(spec.shape, np.float32), specs)
  checkpoints = Checkpointer(folder / "checkpoints")
  return checkpoints.restore_weights({"model": abstract}, None, which)["model"]


def add_tokenizer(folder, vocab_size=300):
  """tokenizer.json and its companions, as a published model has them."""
  tokenizer_files.train(iter(TEXTS), vocab_size, EOT, folder / "tokenizer.json")
  companions = {
    "tokenizer_config.json": {"eos_token": {"content": EOT}, "chat_template": "{{ messages }}"},
    "special_tokens_map.json": {"eos_token": EOT},
    "generation_config.json": {"eos_token_id": 0, "top_p": 0.5},
  }
  for name, content in companions.items():
    (folder / name).write_text(json.dumps(content))
  (folder / "chat_template.jinja").write_text("{{ messages }}")
  return companions


def published(folder, **changes):
  """A directory with a tokenizer that fits its vocabulary, of random weights."""
  config = model_config(vocab_size=320, **changes)
  folder.mkdir()
  params = numpy_params(param_specs(config), 0)
  described = hf_config.from_model(config, 64)
  (folder / "config.json").write_text(json.dumps(described))
  export.safetensors.write_directory(
    folder, hf.stored_shapes(config), hf.stored_tensors(params, config), 10_000
  )
  return config, params, add_tokenizer(folder)


def test_a_model_comes_in_and_goes_out_the_same(tmp_path, capsys):
  config, params, companions = published(tmp_path / "source")
  assert export.main(["import", f"{tmp_path}/source", f"{tmp_path}/run"]) == 0
  recipe = json.loads((tmp_path / "run" / "config.json").read_text())
  assert recipe["data"]["eot"] == EOT
  assert tokenizer_files.load(recipe["data"]["tokenizer"], EOT).vocab_size == 300
  jax.tree.map(np.testing.assert_array_equal, weights(tmp_path / "run", config), params)

  assert export.main(["export", f"{tmp_path}/run", f"{tmp_path}/out"]) == 0
  assert "transformers: not installed" in capsys.readouterr().out or has_peers()
  first, second = (open_directory(tmp_path / name) for name in ("source", "out"))
  assert first.keys() == second.keys()
  for name in first:
    np.testing.assert_array_equal(first[name], second[name])
  for name in (*companions, "tokenizer.json", "chat_template.jinja"):
    ours, theirs = (tmp_path / folder / name for folder in ("out", "source"))
    assert ours.read_text() == theirs.read_text()
  described = hf_config.read_json(tmp_path / "out" / "config.json")
  assert hf_config.to_model(described) == config
  assert described["eos_token_id"] == 0 and described["max_position_embeddings"] == 64
  assert not list(tmp_path.glob(".*partial"))


def test_a_model_of_several_files_without_a_tokenizer(tmp_path):
  export.import_model(make_hf.FIXTURES / "qwen3", tmp_path / "run")
  config, params = hf.load(make_hf.FIXTURES / "qwen3")
  jax.tree.map(np.testing.assert_array_equal, weights(tmp_path / "run", config), params)
  export.export_run(tmp_path / "run", tmp_path / "out", shard_bytes=16_000)
  assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
  jax.tree.map(np.testing.assert_array_equal, hf.load(tmp_path / "out")[1], params)


def make_run(folder, **changes):
  """The folder of a run of tests/tiny.py with raw and averaged weights, and its tokenizer."""
  recipe = tiny.get_config().to_dict()
  recipe["model"] |= changes
  recipe["data"]["tokenizer"] = "train"
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(recipe))
  tokenizer_files.train(iter(TEXTS), 300, EOT, folder / "tokenizer" / "tokenizer.json")
  config = export.parse(export.ModelConfig, recipe["model"])
  state = {
    "params": numpy_params(param_specs(config), 1),
    "average": numpy_params(param_specs(config), 2),
    "average_count": np.int32(3),
    "step": np.int32(24),
  }
  checkpoints = Checkpointer(folder / "checkpoints")
  checkpoints.save(24, {"model": state}, {}, wait=True)
  checkpoints.close()
  return config, state


def test_a_run_goes_out_with_its_average_or_its_raw_weights(tmp_path):
  config, state = make_run(tmp_path / "run")
  export.export_run(tmp_path / "run", tmp_path / "average")
  export.export_run(tmp_path / "run", tmp_path / "raw", which="raw", step=24)
  for which, leaf in (("average", "average"), ("raw", "params")):
    read, params = hf.load(tmp_path / which)
    assert read == config
    jax.tree.map(np.testing.assert_array_equal, params, state[leaf])


def test_an_exported_tokenizer_begins_texts_as_the_documents_did(tmp_path):
  make_run(tmp_path / "run")
  export.export_run(tmp_path / "run", tmp_path / "out")
  ours = tokenizer_files.load(str(tmp_path / "run" / "tokenizer" / "tokenizer.json"), EOT)
  theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
  for text, ids in zip(TEXTS, ours.encode_batch(TEXTS), strict=True):
    assert theirs.encode(text).ids == [ours.eot, *ids]
  generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
  assert generation == {
    "bos_token_id": ours.eot,
    "eos_token_id": ours.eot,
    "do_sample": True,
    "temperature": 1.0,
    "top_p": 0.9,
  }
  names = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
  assert names["eos_token"] == EOT and names["model_max_length"] == 64


def test_weights_are_read_a_chunk_at_a_time(tmp_path, monkeypatch):
  monkeypatch.setattr("train.checkpoint.CHUNK_BYTES", 256)
  rng = np.random.default_rng(0)
  shapes = {"a": (5, 12, 7), "b": {"c": (3,), "d": (40, 3)}}
  is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
  tree = jax.tree.map(lambda s: rng.standard_normal(s, np.float32), shapes, is_leaf=is_shape)
  checkpoints = Checkpointer(tmp_path)
  checkpoints.save_weights(0, {"model": jax.tree.map(jnp.asarray, tree)}, {})
  checkpoints.close()
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
  nothing = functools.partial(np.full, fill_value=np.nan, dtype=np.float32)
  read = checkpoints.restore_weights({"model": abstract}, empty=nothing)["model"]
  jax.tree.map(np.testing.assert_array_equal, read, tree)


def test_other_logits_are_no_export(tmp_path, monkeypatch, capsys):
  make_run(tmp_path / "run")
  load = hf.load

  def damaged(folder, empty):
    config, params = load(folder, empty)
    params["layers"]["mlp"]["down_FD"][1, 3, 5] += 1e-2
    return config, params

  monkeypatch.setattr(hf, "load", damaged)
  assert export.main(["export", f"{tmp_path}/run", f"{tmp_path}/out"]) == 2
  assert "gives other logits" in capsys.readouterr().err
  assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def refused(command, source, tmp_path, capsys):
  """The message of a command that must fail and leave nothing."""
  assert export.main([command, str(source), f"{tmp_path}/refused"]) == 2
  assert not list(tmp_path.glob("*refused*")) and not list(tmp_path.glob(".*"))
  return capsys.readouterr().err


def test_bad_input_is_one_message_and_leaves_nothing(tmp_path, capsys):
  source = tmp_path / "source"
  published(source)
  assert "no-such" in refused("import", tmp_path / "no-such", tmp_path, capsys)
  assert "config.json cannot be read" in refused("export", tmp_path / "no-such", tmp_path, capsys)
  assert "no section `model`" in refused("export", source, tmp_path, capsys)
  assert "no GGUF file" in refused("import", _file(tmp_path / "a.gguf", b"GG"), tmp_path, capsys)

  tokenizer = (source / "tokenizer.json").read_text()
  larger = tokenizers.Tokenizer.from_str(tokenizer)
  larger.add_tokens([f"<extra {i}>" for i in range(100)])
  larger.save(str(source / "tokenizer.json"))
  assert "ids and the model's vocabulary 320" in refused("import", source, tmp_path, capsys)
  (source / "tokenizer.json").write_text(tokenizer)

  described = (source / "tokenizer_config.json").read_text()
  for wrong in (5, {"content": ["a"]}):
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": wrong}))
    assert "eos_token is" in refused("import", source, tmp_path, capsys)
  (source / "tokenizer_config.json").write_text("{")
  assert f"{source}/tokenizer_config.json" in refused("import", source, tmp_path, capsys)
  (source / "tokenizer_config.json").write_text(described)
  config = json.loads((source / "config.json").read_text())
  (source / "config.json").write_text(json.dumps(config | {"max_position_embeddings": "long"}))
  assert "max_position_embeddings is 'long'" in refused("import", source, tmp_path, capsys)
  (source / "config.json").write_text(json.dumps(config))

  shard = sorted(source.glob("*.safetensors"))[1]
  shard.write_bytes(shard.read_bytes()[:-4])
  assert f"{shard.name} has" in refused("import", source, tmp_path, capsys)
  shard.unlink()
  assert f"{shard.name} is missing" in refused("import", source, tmp_path, capsys)


def _file(path, content):
  path.write_bytes(content)
  return path


def test_what_exists_is_not_overwritten(tmp_path, capsys):
  shutil.copytree(make_hf.FIXTURES / "smollm", tmp_path / "out")
  assert export.main(["import", f"{make_hf.FIXTURES}/smollm", f"{tmp_path}/out"]) == 2
  assert "exists; name a folder that does not" in capsys.readouterr().err


def test_training_begins_with_given_weights_and_goes_on_with_its_own(tmp_path, monkeypatch):
  monkeypatch.setattr("train.state.init_params", numpy_params)  # compiles faster
  config, state = make_run(tmp_path / "first")
  recipe = tiny.get_config()
  recipe.train.init_from = str(tmp_path / "first")
  nowhere = recipe.copy_and_resolve_references()
  nowhere.train.init_from = "nowhere"
  parsed = parse_config(recipe.to_dict())
  mesh = make_mesh(parsed.mesh, jax.devices()[:2])
  specs = param_specs(config)
  optimizer = make_optimizer(parsed.optimizer, parsed.train.steps, specs)
  abstract = loop.abstract_train_state(specs, parsed, optimizer, mesh)

  def begin(config=parsed):
    checkpoints = loop.open_checkpoints(parsed, tmp_path / "second")
    return checkpoints, loop.restore_or_init(checkpoints, specs, config, optimizer, abstract)

  with pytest.raises(ValueError, match=r"train\.init_from='nowhere' holds no checkpoints"):
    begin(parse_config(nowhere.to_dict()))

  checkpoints, (begun, extra) = begin()
  jax.tree.map(np.testing.assert_array_equal, begun.params, state["params"])
  assert int(begun.step) == 0 and extra == {"cursors": None, "tokens": 0.0}
  leaves = jax.tree.leaves(begun.params)
  assert all(leaf.sharding == jax.tree.leaves(abstract.params)[i].sharding
             for i, leaf in enumerate(leaves))  # fmt: skip
  later = begun.replace(params=jax.tree.map(lambda x: x + 1, begun.params))
  extra["average_window"] = loop.average_window(parsed)
  checkpoints.save(4, {loop.MODEL: later}, extra, wait=True)
  checkpoints.close()
  checkpoints, (restored, _) = begin()
  jax.tree.map(np.testing.assert_array_equal, restored.params, later.params)
  checkpoints.close()


def test_the_recipe_takes_the_model_and_tokenizer_of_a_folder(tmp_path):
  config, _, _ = published(tmp_path / "source")
  export.import_model(tmp_path / "source", tmp_path / "run")
  recipe = continued.get_config(str(tmp_path / "run"))
  parsed = parse_config(recipe.to_dict())
  assert parsed.model == config and parsed.train.init_from == str(tmp_path / "run")
  assert tokenizer_files.load(parsed.data.tokenizer, parsed.data.eot).vocab_size == 300
  make_run(tmp_path / "own")
  recipe = continued.get_config(str(tmp_path / "own"))
  assert recipe.data.tokenizer == str(tmp_path / "own" / "tokenizer" / "tokenizer.json")


@pytest.mark.peers
@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"sliding_window": 9},
    {"rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_positions": 16}},
    {"qk_norm": False},
    {"qk_norm": False, "sliding_window": 9},
    {"qk_norm": False, "qkv_bias": True, "sliding_window": 9, "tie_embeddings": False},
  ],
)  # fmt: skip
def test_transformers_computes_the_exported_logits(tmp_path, capsys, changes):
  transformers = pytest.importorskip("transformers")
  pytest.importorskip("torch")
  make_run(tmp_path / "run", **changes)
  export.export_run(tmp_path / "run", tmp_path / "out")
  assert "transformers: not installed" not in capsys.readouterr().out
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  assert tokenizer.eos_token == EOT
  ids = tokenizer(TEXTS[0])["input_ids"]
  assert ids[0] == tokenizer.eos_token_id
  assert tokenizer.decode(ids, skip_special_tokens=True) == TEXTS[0]


@pytest.mark.peers
@pytest.mark.slow
def test_smollm2_gives_the_logits_of_transformers_on_real_text(tmp_path, capsys):
  """transformers reads the GGUF by its own code, into its own model and tokenizer."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  pytest.importorskip("gguf")
  file = smollm2.gguf_file()
  export.import_model(file, tmp_path / "run")
  recipe = json.loads((tmp_path / "run" / "config.json").read_text())
  config = export.parse(export.ModelConfig, recipe["model"])
  params = weights(tmp_path / "run", config)

  options = {"gguf_file": file.name}
  peer_tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **options)
  # Without digits: transformers passes over `tokenizer.ggml.pre`, which takes each of them alone.
  text = re.sub(r"\d", "", (Path(__file__).parent.parent / "LICENSE").read_text())
  tokenizer = tokenizer_files.load(recipe["data"]["tokenizer"], recipe["data"]["eot"])
  ids = tokenizer.encode_batch([text])[0]
  assert ids == peer_tokenizer(text)["input_ids"]
  rows = np.array(ids[:512], np.int32).reshape(2, 256)

  peer = transformers.AutoModelForCausalLM.from_pretrained(file.parent, **options).eval()
  with torch.no_grad():
    expected = peer(torch.from_numpy(rows).long()).logits.numpy()
  ours = np.stack(list(hf.logits(params, rows, config)))
  export._require_same("the import", ours, expected)
  assert np.abs(ours - expected).mean() < 2e-5

  half = dataclasses.replace(hf.FP32, dtype="float16")
  positions = np.tile(np.arange(256, dtype=np.int32), (2, 1))
  run = jax.jit(lambda p, t, q: forward(p, t, jnp.ones_like(t), q, config, half))
  in_half = np.asarray(run(params, rows, positions))
  with capsys.disabled():
    print(f"\nSmolLM2-135M: fp32 {np.abs(ours - expected).max():.1e} from transformers; "
          f"fp16 {np.abs(in_half - ours).max():.2f} from fp32 at most, "
          f"{np.abs(in_half - ours).mean():.3f} in the mean")  # fmt: skip
  assert np.abs(in_half - ours).mean() < 0.05
  assert (in_half.argmax(-1) == ours.argmax(-1)).mean() > 0.98

"""Whole runs of supervised fine-tuning, and what enters its loss."""

import json

import jax
import numpy as np
import pytest

from configs import sft as recipe
from data import conversations, instructions
from data.chat import TEMPLATES, ChatTemplate
from data.examples import Example, to_batch
from model import hf
from model.params import param_specs
from tests import base_run
from tests.base_run import on_one_device  # noqa: F401
from tests.build import compute_config, model_config, numpy_params
from tests.compiled import compiled_once  # noqa: F401
from tests.fixtures import make_chat
from train import export, main
from train.initial import given_params
from train.losses import SftLossConfig, answer_loss, next_token_loss
from train.metrics import read
from train.signals import StopRequest


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return base_run.make(tmp_path_factory.mktemp("base") / "run")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
  path = tmp_path_factory.mktemp("rows") / "talks.jsonl"
  words = ["one", "two", "three", "four", "five", "six"]
  talks = [
    make_chat.turns(f"{a} {b}", f"{b} {a}", f"{i}", "yes")
    for i, (a, b) in enumerate((a, b) for a in words for b in words)
  ]
  path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
  return path


def config_of(base, rows, **changes):
  config = recipe.get_config(str(base))
  base_run.shrink(config)
  config.data.update(sources={"main": str(rows)}, heldout_fraction=0.2, epochs=4.0)
  config.optimizer.update(peak_lr=1e-2, final_lr=1e-3)
  config.sample.update(every=8, prompts=3, max_tokens=6)
  config.update_from_flattened_dict(changes)
  return config.to_dict()


@pytest.mark.parametrize("buckets", [(), (32, 64)], ids=["packed", "buckets"])
def test_a_run_fine_tunes_and_goes_on_with_the_same_bits(
  base, rows, tmp_path, monkeypatch, capsys, buckets
):
  config = config_of(base, rows, **{"data.buckets": buckets})
  assert main.run(config, tmp_path / "straight") == main.DONE
  assert "36 rows: 36 kept; dropped: none" in capsys.readouterr().out
  lines = read(tmp_path / "straight" / "metrics.jsonl")
  losses = [line["loss"] for line in lines if line["kind"] == "train"]
  evaluations = {line["step"]: line for line in lines if line["kind"] == "eval"}
  total = len(losses)
  assert set(evaluations) >= {0, 8, total} and evaluations[0]["set"] == "answers"
  assert evaluations[total]["loss"] < 0.8 * evaluations[0]["loss"]
  answers = (tmp_path / "straight" / "samples" / f"{total}.jsonl").read_text().splitlines()
  assert len(answers) == 3 and {"messages", "answer", "ended"} < json.loads(answers[0]).keys()
  assert [line["answers"] for line in lines if line["kind"] == "sample"][-1] == 3
  assert json.loads((tmp_path / "straight" / "curation.json").read_text())["kept"] == 36

  calls = iter([False] * 5 + [True])
  monkeypatch.setattr(StopRequest, "wanted", lambda self: next(calls, False))
  assert main.run(config, tmp_path / "resumed") == main.STOPPED
  assert main.run(config, tmp_path / "resumed") == main.DONE
  again = read(tmp_path / "resumed" / "metrics.jsonl")
  assert [line["step"] for line in again if line["kind"] == "resume"] == [6]
  assert [line["loss"] for line in again if line["kind"] == "train"] == losses
  last = [line for line in again if line["kind"] == "eval"][-1]
  assert last["loss"] == evaluations[total]["loss"]


@pytest.mark.slow
def test_adapters_alone_are_trained_and_exported_merged(base, rows, tmp_path, monkeypatch):
  config = config_of(base, rows, **{"lora.rank": 2, "train.steps": 4})
  assert main.run(config, tmp_path / "run") == main.DONE
  abstract = jax.tree.map(
    lambda spec: jax.ShapeDtypeStruct(
      spec.shape, np.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    ),
    param_specs(base_run.MODEL),
    is_leaf=lambda x: hasattr(x, "axes"),
  )
  before, after = (given_params(str(folder), abstract) for folder in (base, tmp_path / "run"))
  for name in ("embedding_VD", "unembedding_DV"):
    np.testing.assert_array_equal(before[name], after[name])
  assert np.any(
    before["layers"]["attention"]["query_DNK"] != after["layers"]["attention"]["query_DNK"]
  )
  np.testing.assert_array_equal(before["layers"]["mlp"]["up_DF"], after["layers"]["mlp"]["up_DF"])
  # An export has the adapters merged, and the chat template beside it.
  monkeypatch.setattr("train.export._compare_with_transformers", lambda *_: None)
  export.export_run(tmp_path / "run", tmp_path / "out")
  _, exported = hf.load(tmp_path / "out")
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), exported, after)
  assert (tmp_path / "out" / "chat_template.jinja").read_text() == TEMPLATES["chatml"]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data.chat_template": "nowhere"}, "data.chat_template='nowhere'"),
    ({"data.refuse": ("no_answer",)}, "talks.jsonl:1: no_answer"),
    ({"data.sources.main": "nowhere.jsonl"}, "matches no file"),
    ({"data.heldout_fraction": 0.0}, "no conversation is held out"),
    ({"data.too_long": "cut"}, "data.too_long='cut'"),
    ({"data.buckets": (24, 64)}, "data.buckets=(24, 64) must be ascending divisors"),
    ({"data.buckets": (32,)}, "and end with it"),
    ({"data.buckets": (1, 64)}, "data.buckets=1 is not divisible by the 2 loss chunks"),
    ({"train.init_from": "nowhere"}, "holds no checkpoints"),
    ({"model.d_ff": 32}, "is of another model: leaf layers/mlp/down_FD"),
    ({"model.vocab_size": 200}, "do not belong together"),
    ({"lora.targets": ("key", "keys")}, "lora.targets has 'keys'"),
  ],
)
def test_bad_input_is_one_clear_message(base, rows, tmp_path, capsys, changes, message):
  bad = tmp_path / "talks.jsonl"
  bad.write_text(
    json.dumps({"prompt": "x", "messages": make_chat.turns("q")}) + "\n" + rows.read_text()
  )
  assert main.run(config_of(base, bad, **changes), tmp_path / "run") == main.BAD_INPUT
  error = capsys.readouterr().err
  assert message in error and "Traceback" not in error


def test_nothing_but_bad_rows_is_refused(base, tmp_path, capsys):
  bad = tmp_path / "bad.jsonl"
  bad.write_text('{"text": "x"}\n')
  assert main.run(config_of(base, bad), tmp_path / "run") == main.BAD_INPUT
  assert "no conversation is left to train on. 1 rows: 0 kept; dropped: 1 broken_row" in (
    capsys.readouterr().err
  )


def test_the_recipe_says_what_to_run_first():
  with pytest.raises(ValueError, match=r"--config configs/quickstart\.py"):
    recipe.get_config("nowhere")


# The loss.

MODEL = model_config(vocab_size=300)


def batch_of(*talks):
  data = json.loads(make_chat.FILE.read_text())["tokenizer"].encode()
  template = ChatTemplate(TEMPLATES["chatml"], data, make_chat.NAMES)
  chats = [template.encode(talk) for talk in talks]
  return template, to_batch([[Example(c.ids, c.mask) for c in chats]], 128)


def loss_of(params, batch, alpha=0.0, key=0):
  config = SftLossConfig(z_loss=0.0, neftune_alpha=alpha)
  return jax.jit(
    lambda params: answer_loss(params, batch, jax.random.key(key), MODEL, compute_config(), config)
  )(params)


def test_the_targets_are_the_answers_with_their_ends_and_nothing_else():
  talks = [make_chat.turns("one", "two", "three", "four"), make_chat.turns("five", "six")]
  template, batch = batch_of(*talks)
  targets = batch["targets"][0][batch["loss_weights"][0] > 0]
  assert template.decode(targets) == "two<|im_end|>four<|im_end|>six<|im_end|>"
  assert template.stop_ids[-1] in targets.tolist()


def test_the_loss_is_the_sum_over_answers_and_knows_no_prompt():
  params = numpy_params(param_specs(MODEL), 0)
  params = jax.tree.map(jax.numpy.asarray, params)
  _, batch = batch_of(make_chat.turns("one", "two"), make_chat.turns("five", "six"))
  total, sums = loss_of(params, batch)
  plain, _ = next_token_loss(params, batch, jax.random.key(0), MODEL, compute_config(), 0.0)
  np.testing.assert_allclose(total, plain, rtol=1e-6)
  assert float(sums["weight"]) == batch["loss_weights"].sum()
  # Another target where no answer is makes no difference; one in an answer does.
  other = {name: array.copy() for name, array in batch.items()}
  asked = np.flatnonzero((batch["loss_weights"][0] == 0) & (batch["segment_ids"][0] > 0))
  other["targets"][0, asked] = 1
  np.testing.assert_array_equal(loss_of(params, other)[0], total)
  other["targets"][0, np.flatnonzero(batch["loss_weights"][0])[0]] = 1
  assert loss_of(params, other)[0] != total


def test_neftune_adds_noise_of_its_bound_and_none_at_zero():
  params = jax.tree.map(jax.numpy.asarray, numpy_params(param_specs(MODEL), 0))
  _, batch = batch_of(make_chat.turns("one", "two"), make_chat.turns("five", "six"))
  quiet = float(loss_of(params, batch)[0])
  noisy = [float(loss_of(params, batch, alpha=5.0, key=key)[0]) for key in (0, 0, 1)]
  assert noisy[0] == noisy[1] != noisy[2] and quiet not in noisy
  assert abs(float(loss_of(params, batch, alpha=1e-4)[0]) - quiet) < 1e-2


@pytest.fixture(scope="module")
def embedded_rows(tmp_path_factory):
  return instructions.write(tmp_path_factory.mktemp("embedded") / "instructions.jsonl")


@pytest.mark.slow
def test_embedded_conversations_are_many_and_well_formed(embedded_rows):
  talks = [conversations.to_messages(row.value) for row in conversations.read(str(embedded_rows))]
  assert len(talks) > 3_000
  assert {len(talk) for talk in talks} == {2, 4, 6}


@pytest.mark.slow
def test_embedded_conversations_are_always_the_same(embedded_rows, tmp_path):
  again = instructions.write(tmp_path / "instructions.jsonl")
  assert again.read_bytes() == embedded_rows.read_bytes()

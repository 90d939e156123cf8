"""Plans of the stages after pretraining: SFT, reward model, DPO, and PPO with all its programs."""

import dataclasses
import math
import re

import jax
import pytest

from configs import ppo_37b, reward_37b, sft_37b
from model.params import count, flops_per_token
from model.sharding import MeshConfig, make_mesh
from tests.tiny import get_config as tiny
from train import dpo, hlo, plan, plan_page, plan_ppo, ppo, reward, sft
from train.cluster import load_cluster
from train.deviceless import missing_packages
from train.program import compile_program
from train.schedule import estimate

needs_plan = pytest.mark.skipif(
  bool(missing_packages()), reason=f"needs {missing_packages()}: the plan extra"
)
MODEL = {
  "vocab_size": 512, "d_model": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
  "head_dim": 8, "d_ff": 64,
}  # fmt: skip


@pytest.fixture
def on_cpu(monkeypatch):
  monkeypatch.setattr("train.deviceless.missing_packages", lambda: ["jax_cuda12_plugin"])


def shrunk(module, **mesh):
  """A recipe of the 37B model with everything but its size."""
  config = module.get_config()
  config.model.update(MODEL)
  config.compute.update(attention="xla", scan_layers=True, remat="full", remat_save=())
  config.mesh.update(data=1, fsdp=8, tensor=1)
  config.mesh.update(mesh)
  config.data.update(seq_len=64, batch_size=16)
  return config


def small_ppo():
  config = shrunk(ppo_37b, fsdp=4, tensor=2)
  config.data.update(seq_len=24, response_tokens=8)
  return config


def sent(found):
  return {(c["op"], c["dtype"], c["axis"]) for c in found["collectives"]}


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_the_step_of_a_supervised_stage_is_planned(stage, on_cpu):
  module, recipe = {"sft": (sft, sft_37b), "reward": (reward, reward_37b)}[stage]
  config = module.parse_config(shrunk(recipe).to_dict())
  cluster = load_cluster("h100")
  program = compile_program(config, 1, cluster)
  found = plan.make_plan(config, program, cluster)
  specs, _ = module.objective(config)
  small = sum(s.size for s in jax.tree.leaves(specs["layers"]) if "embed" not in s.axes)
  assert program.state["params"] == pytest.approx(4 * count(specs) / 8, abs=8 * 4 * small + 64)
  assert program.state["opt_state"] == pytest.approx(2 * program.state["params"], rel=0.01)
  assert any(op == "all-gather" and axis == "fsdp" for op, _, axis in sent(found))
  assert found["steps"] == config.train.steps and found["memory"]["peak_bytes"] is None
  whole = 6 * config.model.vocab_size * config.model.d_model
  assert flops_per_token(config.model, 64)[0] - found["flops_per_token"] == (
    whole if stage == "reward" else 0
  )
  # A reward model has its three heads, and no output projection to the vocabulary.
  assert ("heads" in specs) == (stage == "reward") == ("unembedding_DV" not in specs)
  assert specs["heads"]["bias_S"].shape == (3,) if stage == "reward" else True


def test_a_stage_that_counts_its_steps_by_data_asks_for_them(on_cpu, capsys):
  config = shrunk(sft_37b)
  config.train.steps = None
  assert plan.run(config.to_dict(), "h100", 1) == plan.BAD_INPUT
  assert "train.steps is None" in capsys.readouterr().err
  assert plan.run({"stage": "sample"}, "h100", 1) == plan.BAD_INPUT
  assert "has no step to plan" in capsys.readouterr().err
  assert plan.run(small_ppo().to_dict(), "h100", 1, outputs={"hlo": "x"}) == plan.BAD_INPUT
  assert "--json and --html alone" in capsys.readouterr().err


@pytest.fixture(scope="module")
def planned():
  config = ppo.parse_config(small_ppo().to_dict())
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("train.deviceless.missing_packages", lambda: ["jax_cuda12_plugin"])
    return config, plan_ppo.make_plan(config, 1, load_cluster("h100"), None)


def test_an_iteration_of_ppo_is_all_its_programs(planned):
  config, found = planned
  programs = {one["name"]: one for one in found["programs"]}
  assert list(programs) == ["gather", "rollout", "score", "measure", "prepare", "update"]
  assert programs["update"]["runs"] == config.reuse.epochs * config.reuse.minibatches == 4
  assert found["responses"] == 16 and found["iteration_seconds"] is None
  # Keys and values of 24 tokens of 16 rows, in fp16, on 4 x 2 devices.
  assert found["cache_bytes"] == 16 * 24 * 2 * 2 * 2 * 8 * 2 // 8
  held = found["held"]
  # fp32 weights and two moments; the reference is the weights alone.
  assert held["model"] == pytest.approx(3 * held["reference"], rel=0.01)
  assert set(held) == {"model", "critic", "reference", "reward models"}
  text = plan_ppo.render(found)
  assert all(f"\n{name}" in text for name in programs)


def test_a_plan_of_ppo_is_a_page_with_plots_where_there_are_times(planned):
  _, found = planned
  without = plan_page.ppo_page(found, plan_ppo.render(found))
  assert "<img" not in without and "update" in without
  programs = [
    one | {"seconds": 0.5, "waterfall": {"products": 0.3, "network": 0.2}, "peak_bytes": 2**33}
    for one in found["programs"]
  ]
  times = {"iteration_seconds": 4.5, "days": 1.0, "gpu_hours": 192.0}
  timed = found | times | {"programs": programs}
  page = plan_page.ppo_page(timed, "<text>")
  assert page.count("<img") == 2 and "4.5 s an iteration of 16 responses" in page
  assert "<pre>&lt;text&gt;</pre>" in page
  axes = plan_page.iteration_plot(timed).axes[0]
  ends = {round(bar.get_x() + bar.get_width(), 6) for bar in axes.patches}
  assert ends == {0.3, 0.5, 4 * 0.3, 4 * 0.5}  # the update runs four times


def test_the_weights_are_gathered_once_and_the_rollout_waits_for_no_network(planned):
  _, found = planned
  programs = {one["name"]: one for one in found["programs"]}
  weights = {(op, axis) for op, _, axis in sent(programs["gather"])}
  assert ("all-gather", "fsdp") in weights
  assert {axis for _, _, axis in sent(programs["rollout"])} == {"tensor"}
  # Over tensor: the embedding and two parts of each of two layers, for the prompts (of which the
  # last layer goes on with one token) and for each of seven tokens after the first.
  sums = [c for c in programs["rollout"]["collectives"] if c["op"] == "all-reduce"]
  layers = [c for c in sums if "decode.py" in c["source"]]
  assert sum(c["count"] for c in layers) == (1 + 2 * 2) * (1 + 7)


def test_updates_and_measures_say_which_model_each_instruction_is_of():
  config = ppo.parse_config(small_ppo().to_dict())
  mesh = make_mesh(config.mesh)
  for part in plan_ppo.parts(config, plan_ppo.Models(config, mesh), mesh):
    if part.name in ("measure", "update"):
      with jax.set_mesh(mesh):
        text = part.trace().lower().as_text(debug_info=True)
      wanted = ("policy", "critic") if part.name == "update" else plan_ppo.SCOPES
      assert all(re.search(rf"[\"/]{scope}/", text) for scope in wanted)


def test_without_a_critic_there_is_one_update():
  config = small_ppo()
  config.advantage.update(method="grpo", whiten=False)
  config.rollout.samples = 2
  config.data.batch_size = 8
  parsed = ppo.parse_config(config.to_dict())
  mesh = make_mesh(parsed.mesh)
  parts = {p.name: p for p in plan_ppo.parts(parsed, plan_ppo.Models(parsed, mesh), mesh)}
  assert parts["update"].held == ("model",)
  with jax.set_mesh(mesh):
    parts["measure"].trace()
    states, _ = parts["update"].trace().out_info
  assert set(states) == {"model"}


def test_with_adapters_no_reference_is_held(on_cpu):
  config = small_ppo()
  config.lora.rank = 2
  parsed = ppo.parse_config(config.to_dict())
  mesh = make_mesh(parsed.mesh)
  held = plan_ppo.held_bytes(parsed, plan_ppo.Models(parsed, mesh), mesh)
  assert "reference" not in held
  config.reward.models, config.reward.function = (), len
  config.lora.rank = 0
  parsed = ppo.parse_config(config.to_dict())
  parts = plan_ppo.parts(parsed, plan_ppo.Models(parsed, mesh), mesh)
  assert "score" not in [part.name for part in parts]
  training = dataclasses.replace(parsed.rollout, layout="training")
  parsed = dataclasses.replace(parsed, rollout=training)
  parts = plan_ppo.parts(parsed, plan_ppo.Models(parsed, mesh), mesh)
  assert [part.name for part in parts] == ["rollout", "measure", "prepare", "update"]
  assert parts[0].held == ("model",)


LOOP = """HloModule m

%body (p: (f32[1024,1024])) -> (f32[1024,1024]) {
  %p = (f32[1024,1024]) parameter(0)
  %x = f32[1024,1024] get-tuple-element(%p), index=0
  %y = f32[1024,1024] copy(%x)
  ROOT %t = (f32[1024,1024]) tuple(%y)
}

%condition (p: (f32[1024,1024])) -> pred[] {
  %p = (f32[1024,1024]) parameter(0)
  ROOT %c = pred[] constant(false)
}

ENTRY %main (a: f32[1024,1024]) -> (f32[1024,1024]) {
  %a = f32[1024,1024] parameter(0)
  %s = (f32[1024,1024]) tuple(%a)
  ROOT %w = (f32[1024,1024]) while(%s), condition=%condition, body=%body
}
"""


def test_a_loop_that_does_not_say_how_often_runs_as_often_as_one_says():
  module, cluster = hlo.parse(LOOP), load_cluster("h100")
  shape = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}
  once = estimate(module, shape, cluster)
  assert once.unknown_loops == 1 and once.seconds > 0
  assert estimate(module, shape, cluster, trips=7).seconds == pytest.approx(7 * once.seconds)
  named = LOOP.replace("copy(%x)", 'copy(%x), metadata={op_name="jit(f)/critic/copy"}')
  found = estimate(hlo.parse(named), shape, cluster, 2, ("policy", "critic"))
  assert found.by_scope == {"policy": 0.0, "critic": pytest.approx(2 * once.seconds)}


def test_seconds_of_programs_add_up_and_peaks_hold_what_lies_beside_them():
  cluster = load_cluster("h100")
  part = plan_ppo.Part("x", lambda: None, runs=3, held=("model",))
  mesh = make_mesh(MeshConfig(1, 1, 1, 1), jax.devices()[:1])
  memory = {"peak": 50, "argument": 10, "temp": 40, "output": 0, "alias": 0}
  held = {"model": 10, "critic": 7}
  one = plan_ppo.cost(part, LOOP, memory, mesh, cluster, held, True)
  assert (one["own_bytes"], one["peak_bytes"]) == (50, 57)
  whole = {"programs": [one, one | {"runs": 1}], "iterations": 10, "responses": 8, "devices": 2}
  times = plan_ppo.timing(whole, cluster)
  assert times["iteration_seconds"] == pytest.approx(4 * one["seconds"])
  assert times["gpu_hours"] == pytest.approx(80 * one["seconds"] / 3600)
  assert times["range"]["optimistic"] < times["iteration_seconds"] < times["range"]["pessimistic"]


def test_dpo_has_a_step_to_plan_too(on_cpu):
  config = tiny()
  base = shrunk(reward_37b)
  base.stage = "dpo"
  del base.score
  base.preference = {"helpfulness": 1.0}
  base.reference = None
  base.loss = {"beta": 0.1, "label_smoothing": 0.0, "smoothing": "conservative"}
  base.sample = {"every": 1, "prompts": 0, "max_tokens": 1, "temperature": 1.0, "top_p": 1.0}
  assert config.model.d_model == base.model.d_model
  parsed = dpo.parse_config(base.to_dict())
  assert dpo.empty_row(parsed)["reference"].shape == (1, 16, 2)


@pytest.mark.peers
@needs_plan
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_supervised_stages_of_the_reference_model_fit_on_128_gpus(stage):
  module, recipe = {"sft": (sft, sft_37b), "reward": (reward, reward_37b)}[stage]
  recipe = recipe.get_config()
  recipe.compute.scan_layers = True  # compiles in a tenth of the time
  config, cluster = module.parse_config(recipe.to_dict()), load_cluster("h100")
  found = plan.make_plan(config, compile_program(config, 16, cluster), cluster)
  assert found["memory"]["peak_bytes"] <= cluster.usable_memory_bytes
  assert 2 < found["step_seconds"] < 8  # an eighth of the tokens of a step of pretraining
  assert found["days"] < 0.1
  reductions = [c for c in found["collectives"] if "reduce" in c["op"] and c["bytes"] > 2**28]
  assert reductions and all(c["dtype"] == "f32" for c in reductions)


@pytest.mark.peers
@needs_plan
def test_ppo_of_the_reference_model_fits_on_128_gpus():
  config, cluster = ppo.parse_config(ppo_37b.get_config().to_dict()), load_cluster("h100")
  found = plan_ppo.make_plan(config, 16, cluster, None)
  programs = {one["name"]: one for one in found["programs"]}
  assert max(one["peak_bytes"] for one in found["programs"]) <= cluster.usable_memory_bytes
  assert found["cache_bytes"] < programs["rollout"]["own_bytes"]
  axes = {c["axis"] for c in programs["rollout"]["collectives"]}
  assert axes == {"tensor"}
  assert 5 < programs["rollout"]["seconds"] < 60
  assert 40 < found["iteration_seconds"] < 160
  assert math.isclose(found["gpu_hours"], found["days"] * 24 * 128)
  gathers = [c for c in programs["gather"]["collectives"] if c["bytes"] > 2**20]
  assert gathers and all(c["dtype"] == "f16" and c["axis"] == "fsdp" for c in gathers)

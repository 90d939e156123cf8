"""The cost model and its walk over a schedule, and plans of whole recipes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from train import hlo, plan
from train.cluster import load_cluster, read_cluster
from train.cost import Gemm, Traffic, collective_seconds, gemm_seconds, traffic
from train.schedule import estimate, sensitivity

FIXTURE = Path(__file__).parent / "fixtures" / "hlo_16xh100.txt"
SLOWED = "slowed by collectives"
MESH = {"data": 2, "fsdp": 8, "context": 1, "tensor": 1}
KEYS = {
  "params",
  "flops_per_token",
  "devices",
  "memory",
  "collectives",
  "step_seconds",
  "waterfall",
  "mfu_causal",
  "mfu_full",
  "hfu",
  "tokens_per_sec_per_gpu",
  "steps",
  "days",
  "gpu_hours",
  "energy_mwh",
  "co2_tonnes",
  "compile_seconds",
}


@pytest.fixture(scope="module")
def module():
  return hlo.parse(FIXTURE.read_text())


@pytest.fixture(scope="module")
def cluster():
  return load_cluster("h100")


def program(*lines):
  """A program of two all-gathers of 1 GiB and matrix products of 8192^3, in the order given."""
  shape = "f16[8192,8192]{1,0}"
  texts = {
    "start": "(f16[65536,8192]{1,0}, f16[65536,8192]{1,0}) all-gather-start(%a), "
    "replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}",
    "done": "f16[65536,8192]{1,0} all-gather-done(%start)",
    "dot": f"{shape} dot(%a, %a), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}",
  }
  body = [f"  %a = {shape} parameter(0)"]
  for line in lines:
    kind, _, number = line.partition(" ")
    text = texts[kind].replace("%start", f"%start{number}")
    body.append(f"  %{kind}{number} = {text}")
  body[-1] = body[-1].replace("  %", "  ROOT %", 1)
  head = f"ENTRY %main (a: {shape}) -> {shape} {{"
  return hlo.parse("\n".join(["HloModule m", "", head, *body, "}"]))


def test_a_collective_behind_enough_work_is_hidden_and_one_alone_is_exposed(cluster):
  mesh = {"data": 1, "fsdp": 8}
  alone = estimate(program("start 1", "done 1", "dot 1"), mesh, cluster)
  hidden = estimate(program("start 1", "dot 1", "done 1"), mesh, cluster)
  gather = alone.collectives[0]
  assert gather.exposed_seconds == gather.seconds > 0
  assert hidden.collectives[0].exposed_seconds == pytest.approx(
    max(0.0, gather.seconds - hidden.waterfall["gemm"] - hidden.waterfall[SLOWED])
  )
  assert alone.seconds == pytest.approx(alone.waterfall["gemm"] + gather.seconds)


def test_a_collective_takes_processors_from_the_compute_beside_it(cluster):
  mesh = {"data": 1, "fsdp": 8}
  held = cluster.constants["collective_processors"] / cluster.facts["streaming_multiprocessors"]
  # Longer than the product: all of it is slowed. Shorter: the seconds that the collective runs.
  step = estimate(program("start 1", "start 2", "dot 1", "done 1", "done 2"), mesh, cluster)
  assert step.waterfall[SLOWED] == pytest.approx(step.waterfall["gemm"] * held / (1 - held))
  step = estimate(program("start 1", "dot 1", "dot 2", "dot 3", "done 1"), mesh, cluster)
  assert step.waterfall[SLOWED] == pytest.approx(step.collectives[0].seconds * held)
  assert step.seconds == pytest.approx(step.waterfall["gemm"] + step.waterfall[SLOWED])


def test_collectives_wait_for_each_other(cluster):
  mesh = {"data": 1, "fsdp": 8}
  step = estimate(program("start 1", "start 2", "done 2", "done 1"), mesh, cluster)
  first, second = step.collectives
  assert second.exposed_seconds == pytest.approx(first.seconds + second.seconds)
  assert first.exposed_seconds == 0


def test_the_waterfall_adds_up_and_loops_count(module, cluster):
  step = estimate(module, MESH, cluster)
  assert step.seconds == pytest.approx(sum(step.waterfall.values()))
  assert {c.count for c in step.collectives} == {3}
  assert step.flops["gemm"] == 3 * 3 * 2 * 1024 * 256 * 256
  exposed = sum(seconds for name, seconds in step.waterfall.items() if name.startswith("exposed"))
  assert exposed == pytest.approx(sum(c.exposed_seconds for c in step.collectives))


def test_gemm_efficiency_by_shape(cluster):
  def efficiency(*mnk):
    gemm = Gemm(1, *mnk)
    return gemm.flops / gemm_seconds(gemm, cluster) / cluster.peak_flops

  assert efficiency(8192, 8192, 8192) == pytest.approx(cluster.constants["gemm_efficiency"])
  assert efficiency(8192, 8192, 512) < efficiency(8192, 8192, 8192)  # shallow
  assert efficiency(128, 256, 8192) < 0.02  # one tile, one processor of 132
  assert efficiency(128 * 13, 256 * 11, 8192) < efficiency(128 * 12, 256 * 11, 8192)  # a 2nd wave
  assert max(efficiency(2**i, 2**14, 2**15) for i in range(8, 16)) <= 0.76
  # Of few rows the products' bytes decide, and they take longer than its FLOPs at the full rate.
  for rows in (1, 32, 64):
    gemm = Gemm(1, rows, 8192, 8192)
    bandwidth = cluster.facts["hbm_bytes_per_second"] * cluster.constants["hbm_efficiency"]
    assert gemm_seconds(gemm, cluster) < 2 * 8192 * 8192 / bandwidth
    assert gemm_seconds(gemm, cluster) < gemm_seconds(Gemm(1, 65, 8192, 8192), cluster)


def test_collectives_by_link_size_and_latency(cluster):
  def seconds(op, nbytes, members, nodes):
    return collective_seconds(Traffic(op, "f16", nbytes, "fsdp", "", members, nodes), cluster)

  gib, efficiency = 2**30, cluster.constants["link_efficiency"]
  # 8 rings through 8 network cards: NVLink is no slower than they are together.
  assert seconds("all-gather", gib, 128, 16) == pytest.approx(
    gib * 127 / 128 / (400e9 * efficiency) + 112 * 1.9e-6 + 15 * 4e-6 + 2e-6
  )
  # One ring a card where a node has one of a group's members.
  assert seconds("all-gather", gib, 16, 16) > 7 * seconds("all-gather", gib, 8, 1)
  assert seconds("all-reduce", gib, 8, 1) == pytest.approx(
    2 * seconds("reduce-scatter", gib, 8, 1), rel=1e-2
  )
  assert seconds("all-gather", 1, 128, 16) > 250e-6  # latency alone
  # Of an all-reduce it is that of a tree, nine nodes deep: up and down.
  assert seconds("all-reduce", 1, 4096, 512) == pytest.approx(
    2 * (7 * 1.9e-6 + 9 * 4e-6) + 2e-6, rel=1e-3
  )
  assert seconds("all-gather", gib, 1, 1) == 0


def test_a_started_all_reduce_counts_once_with_or_without_its_operands_in_its_type():
  """jax 0.10's XLA leaves them out, 0.12's has them, as of the other collectives."""
  sizes = []
  for kind in ("f32[512]{0}", "((f32[512]{0}), f32[512]{0})"):
    text = f"""HloModule m

ENTRY %main (a: f32[512]) -> f32[512] {{
  %a = f32[512]{{0}} parameter(0)
  ROOT %start = {kind} all-reduce-start(%a), replica_groups={{{{0,1,2,3,4,5,6,7}}}}
}}"""
    start = hlo.parse(text).entry.root
    sizes.append(traffic(start, {"data": 1, "fsdp": 8}, 8).nbytes)
  assert sizes == [2048, 2048]


def test_more_of_an_efficiency_is_never_slower(module, cluster):
  for name, (less, more) in sensitivity(module, MESH, cluster).items():
    faster = name.endswith("efficiency")
    assert (less >= more) if faster else (less <= more), name


def test_constants_stand_within_their_bounds_with_a_source():
  for path in Path(plan.__file__).with_name("clusters").glob("*.json"):
    load_cluster(path.stem)
    for name, entry in read_cluster(path.stem)["constants"].items():
      assert len(entry["source"]) > 8, (path.stem, name)
  with pytest.raises(ValueError, match="h100"):
    load_cluster("h1000")


def test_bounds_are_the_most_that_hardware_has_shown(cluster):
  constants, peak = cluster.constants, cluster.peak_flops
  assert constants["gemm_efficiency"] <= 0.76
  assert constants["flash_forward_efficiency"] * peak <= 600e12
  assert constants["flash_backward_efficiency"] * peak <= 500e12
  assert constants["hbm_efficiency"] <= 0.92
  assert constants["link_efficiency"] <= 0.90


def test_a_plan_without_the_extra_says_what_is_missing(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr("train.deviceless.missing_packages", lambda: ["jax_cuda12_plugin"])
  config = tiny.get_config()
  config.mesh.update(data=1, fsdp=8)
  out, text = tmp_path / "plan.json", tmp_path / "step.txt"
  assert plan.run(config.to_dict(), "h100", 1, outputs={"json": out, "hlo": text}) == 0
  printed, found = capsys.readouterr().out, json.loads(out.read_text())
  assert set(found) >= KEYS
  assert found["compiled_for"] == "virtual cpu" and found["step_seconds"] is None
  assert "missing" in printed and "plan extra" in printed
  assert found["devices"] == 8 and "ENTRY" in text.read_text()
  # Every device holds an eighth of all that is sharded; norms and scalars are whole.
  weights = found["memory"]["by_category"]["weights"]
  assert found["params"] * 4 / 8 <= weights < found["params"] * 4 / 8 + 4096
  assert found["memory"]["by_category"]["optimizer"] == pytest.approx(2 * weights, rel=1e-3)
  assert {c["axis"] for c in found["collectives"]} == {"fsdp"}
  assert {c["link"] for c in found["collectives"]} == {"NVLink"}
  assert any(c["op"] == "all-gather" for c in found["collectives"])


def test_a_mesh_that_does_not_fit_is_one_message(monkeypatch, capsys):
  monkeypatch.setattr("train.deviceless.missing_packages", lambda: ["jax_cuda12_plugin"])
  config = tiny.get_config()
  config.mesh.update(data=1, fsdp=3)
  assert plan.run(config.to_dict(), "h100", 1) == plan.BAD_INPUT
  assert re.match(r"error: mesh .* does not fit 8 devices", capsys.readouterr().err)


def test_an_option_that_xla_lacks_is_one_message(monkeypatch, capsys):
  monkeypatch.setattr("train.deviceless.missing_packages", lambda: ["jax_cuda12_plugin"])
  config = tiny.get_config()
  config.mesh.update(data=1, fsdp=8)
  config.train.xla_options = {"xla_gpu_no_such_thing": True}
  assert plan.run(config.to_dict(), "h100", 1) == plan.BAD_INPUT
  assert "xla_gpu_no_such_thing" in capsys.readouterr().err


def test_what_could_not_be_written_is_said_before_anything_is_compiled(
  monkeypatch, capsys, tmp_path
):
  monkeypatch.setattr(plan, "compile_program", None)
  monkeypatch.setattr(plan.search, "search", None)
  recipe = tiny.get_config().to_dict()

  def error(minutes=None, **outputs):
    assert plan.run(recipe, "h100", 1, outputs=outputs, minutes=minutes) == plan.BAD_INPUT
    return capsys.readouterr().err

  for name in ("json", "html", "hlo"):
    assert f"--{name}={tmp_path}/no/file can't be written" in error(**{name: f"{tmp_path}/no/file"})
    assert "can't be written" in error(**{name: str(tmp_path)})
  assert "several plots" in error(html=f"{tmp_path}/plan.png")
  assert "--hlo is of a plan" in error(minutes=1, hlo=f"{tmp_path}/step.txt")


def test_a_recipe_without_a_step_is_one_message(capsys):
  for recipe in ({}, {"stage": "evaluate"}):
    assert plan.run(recipe, "h100", 1) == plan.BAD_INPUT
    assert "has no step to plan" in capsys.readouterr().err


def test_flags_of_which_one_would_be_ignored_are_refused():
  nothing = dict.fromkeys(("search", "growth", "compare", "validate", "fit", "json", "html", "hlo"))
  plan.check_modes(nothing | {"compare": "runs/a", "json": "a.json"})
  for given, message in (
    ({"search": True, "growth": True}, "--search and --growth"),
    ({"compare": "runs/a", "validate": True}, "--compare and --validate"),
    ({"fit": True}, "--validate"),
    ({"validate": True, "html": "a.html"}, "leave out --html"),
  ):
    with pytest.raises(ValueError, match=message):
      plan.check_modes(nothing | given)


def test_a_wrong_flag_is_one_message_and_exit_code_2():
  command = [sys.executable, "-m", "train.plan", "--serch"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == plan.BAD_INPUT
  assert "serch" in done.stderr.strip().splitlines()[-1] and "Traceback" not in done.stderr

"""What a compiled training step keeps and sends, held still: a collective or a gigabyte more fails.

Where a change is wanted: UPDATE_GOLDENS=1 python -m pytest tests/test_plan_goldens.py [-m peers],
and say in the commit why the step now keeps or sends something else. Releases of jax come with
compilers of their own, which arrange the same step differently: there is a golden for each.
"""

import json
import math
import os
from pathlib import Path

import jax
import pytest

from configs import pretrain_37b
from tests import tiny
from train import plan, pretrain
from train.cluster import load_cluster
from train.deviceless import missing_packages
from train.program import compile_program

GOLDENS = Path(__file__).parent / "goldens"
UPDATE = "UPDATE_GOLDENS=1 python -m pytest tests/test_plan_goldens.py -m 'peers or not peers'"
CLOSE = 0.005  # of bytes: what releases of XLA may differ by


def digest(found):
  """Bytes a device by category, and collectives by kind, with their count and bytes a step."""
  sums = {}
  for c in found["collectives"]:
    total = sums.setdefault(f"{c['op']} {c['dtype']} over {c['axis']}", {"count": 0, "bytes": 0})
    total["count"] += c["count"]
    total["bytes"] += c["bytes"]
  memory = found["memory"]
  return {
    "memory": dict(memory["by_category"]) | {"peak": memory["peak_bytes"]},
    "collectives": dict(sorted(sums.items())),
  }


def check(name, found):
  release = ".".join(jax.__version__.split(".")[:2])
  path = GOLDENS / f"plan_{name}_jax{release}.json"
  if os.environ.get("UPDATE_GOLDENS"):
    path.write_text(json.dumps(found, indent=2) + "\n")
  if not path.exists():
    pytest.skip(f"there is no golden for jax {release} yet: {UPDATE}")
  golden = json.loads(path.read_text())
  hint = f"{path.name} is what the step kept and sent before. If this is meant: {UPDATE}"
  assert set(found["collectives"]) == set(golden["collectives"]), hint
  for kind, now in found["collectives"].items():
    before = golden["collectives"][kind]
    assert now["count"] == before["count"], f"{kind}: {hint}"
    assert now["bytes"] == pytest.approx(before["bytes"], rel=CLOSE), f"{kind}: {hint}"
  # A GPU program's temporary memory is XLA's to arrange; a gigabyte more is not.
  room = 2**28 if "peak" in golden["memory"] else 0
  assert found["memory"] == pytest.approx(golden["memory"], rel=CLOSE, abs=room), hint


def test_a_step_on_virtual_cpu_devices_keeps_and_sends_what_it_did(monkeypatch):
  monkeypatch.setattr("train.deviceless.missing_packages", lambda: ["jax_cuda12_plugin"])
  recipe = tiny.get_config()
  recipe.mesh.update(data=2, fsdp=4)
  recipe.compute.update(dtype="float16", scan_layers=True)
  recipe.loss_scale.update(dynamic=True, initial=65536.0)
  config = pretrain.parse_config(recipe.to_dict())
  cluster = load_cluster("h100")
  found = digest(plan.make_plan(config, compile_program(config, 1, cluster), cluster))
  del found["memory"]["peak"]  # a CPU program's says nothing of a GPU's
  check("cpu", found)


@pytest.mark.peers
@pytest.mark.skipif(bool(missing_packages()), reason=f"needs {missing_packages()}: the plan extra")
def test_the_reference_run_keeps_and_sends_what_it_did():
  config = pretrain.parse_config(pretrain_37b.get_config().to_dict())
  cluster = load_cluster("h100")
  compiled = compile_program(config, 16, cluster)
  found = plan.make_plan(config, compiled, cluster)
  check("37b", digest(found))
  assert found["memory"]["peak_bytes"] <= cluster.usable_memory_bytes == 71 * 2**30
  assert sum(found["waterfall"].values()) == pytest.approx(found["step_seconds"])
  assert sum(found["memory"]["by_category"].values()) == found["memory"]["peak_bytes"]
  reductions = [c for c in found["collectives"] if "reduce" in c["op"]]
  assert all(c["dtype"] == "f32" for c in reductions)
  # What is summed whole is small: norms and scalars. Weights' gradients are scattered.
  assert all(c["bytes"] < 2**28 for c in reductions if c["op"] == "all-reduce")
  gathers = [c for c in found["collectives"] if c["op"] == "all-gather" and c["bytes"] > 2**30]
  assert gathers and all(c["dtype"] == "f16" for c in gathers)
  assert not any("half precision" in w or "before the cast" in w for w in found["warnings"])
  assert 0.3 < found["mfu_causal"] < found["mfu_full"] < found["hfu"] * 1.2 < 1
  assert math.isclose(found["gpu_hours"], found["days"] * 24 * 128)

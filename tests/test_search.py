"""What a search ranks and compiles, a plan's page, and a run beside its plan."""

import json
import re

import pytest

from configs import pretrain_37b
from train import compare, hlo, plan_page, pretrain, search
from train.cluster import load_cluster
from train.program import saved_bytes
from train.schedule import estimate


@pytest.fixture(scope="module")
def cluster():
  return load_cluster("h100")


@pytest.fixture(scope="module")
def config():
  return pretrain.parse_config(pretrain_37b.get_config().to_dict())


def varied(config, cluster, **changes):
  mesh = changes.pop("mesh", {"data": 1, "fsdp": 128, "tensor": 1})
  changes = {f"{'train' if k == 'microbatches' else 'compute'}.{k}": v for k, v in changes.items()}
  return search.bounded({"mesh": mesh, **changes}, config, 128, cluster)


def test_the_formula_orders_variants_as_their_compilation_did(config, cluster):
  everything = ("inverse_rms", "qkv", "attention_out", "attention_lse", "attention_proj")
  pallas, cudnn = (varied(config, cluster, attention=a) for a in ("pallas", "cudnn"))
  assert cudnn.seconds < pallas.seconds and cudnn.nbytes == pallas.nbytes
  more = varied(config, cluster, remat_save=(*everything, "mlp_gate", "mlp_up"))
  less = varied(config, cluster, remat_save=everything)
  assert more.seconds < less.seconds and more.nbytes > less.nbytes
  # Twice the rows at a time: twice the activations.
  rows = varied(config, cluster, microbatches=4)
  assert rows.nbytes > 1.5 * cudnn.nbytes


def test_the_formula_is_a_lower_bound_close_to_the_reference_step(config, cluster):
  own = varied(config, cluster)
  assert 0.8 * 30.52 < own.seconds < 30.52  # docs/plan.md
  assert own.nbytes == pytest.approx(70.7 * 2**30, rel=0.08)
  assert saved_bytes(own.config) == pytest.approx(63.78 * 2**30, rel=0.001)


def test_candidates_divide_their_sizes_and_parse(config, cluster):
  found = list(search.candidates(config, 128, cluster))
  assert len(found) > 1000
  for candidate in found[::97]:
    mesh = candidate.config.mesh
    assert mesh.data * mesh.fsdp * mesh.tensor == 128
    rows = config.data.batch_size // (mesh.data * mesh.fsdp)
    assert rows % candidate.config.train.microbatches == 0
    assert candidate.config.compute.remat == "selective"


def test_a_search_compiles_by_bounds_then_the_best_in_line_then_with_options(
  config, cluster, monkeypatch, capsys
):
  compiled = []

  def fake(candidate, nodes, cluster, cache):
    compiled.append(candidate)
    in_line = not candidate.config.compute.scan_layers
    more = 1.05 if in_line and "train.xla_options" not in candidate.changes else 1.1
    more = 1.0 if candidate.nbytes > cluster.usable_memory_bytes else more
    seconds, nbytes = candidate.seconds * more, int(candidate.nbytes)
    return search.Found(candidate.changes, candidate.seconds, seconds, nbytes)

  monkeypatch.setattr(search, "_compiled", fake)
  found = search.search(config, 16, cluster, minutes=1, cache=None)
  options = [c for c in compiled if "train.xla_options" in c.changes]
  scanned = [c for c in compiled if c.config.compute.scan_layers]
  in_line = [c for c in compiled[1:] if not c.config.compute.scan_layers and c not in options]
  assert compiled == [compiled[0], *scanned, *in_line, *options]
  seconds = [c.seconds for c in scanned]
  assert seconds == sorted(seconds) and 3 < len(seconds) < 40
  # In line, those whose bound is under the best: the first of them ends it.
  assert 1 <= len(in_line) < len(scanned)
  # Options are those of the best of all, and more.
  assert len(options) == len(search.FLAGS)
  limit = cluster.usable_memory_bytes
  best = min(in_line, key=lambda c: (c.nbytes > limit, c.seconds))
  for more, candidate in zip(search.FLAGS, options, strict=True):
    assert more.items() <= candidate.config.train.xla_options.items()
    assert candidate.changes["compute.remat_save"] == best.changes["compute.remat_save"]
  assert found[0].peak_bytes <= limit
  assert any(f.seconds < found[0].seconds for f in found)  # which do not fit
  fitting = [f.seconds for f in found if f.peak_bytes <= limit]
  assert fitting == sorted(fitting)
  assert "the recipe itself" in capsys.readouterr().out
  page = plan_page.one_plot_page(
    "Search", plan_page.pareto_plot(found, limit), search.table(found, limit)
  )
  assert "data:image/png;base64," in page and "the recipe itself" in page


PLAN = {
  "params": 10**9,
  "devices": 8,
  "cluster": "a <cluster>",
  "country": "Nowhere",
  "step_seconds": 2.0,
  "waterfall": {"gemm": 1.5, "exposed all-gather": 0.5},
  "mfu_causal": 0.5,
  "days": 1.0,
  "gpu_hours": 192.0,
  "energy_mwh": 1.0,
  "co2_tonnes": 0.4,
  "memory": {
    "by_category": {"weights": 2**30, "activations": 2**31},
    "peak_bytes": 3 * 2**30,
    "usable_bytes": 71 * 2**30,
    "device_bytes": 80 * 2**30,
  },
  "collectives": [
    {
      "op": "all-gather", "dtype": "f16", "axis": "fsdp", "link": "NVLink", "count": 2,
      "bytes": 10**9, "seconds": 0.7, "exposed_seconds": 0.5, "source": "model/layers.py:1",
    }
  ],
  "sensitivity": {"gemm_efficiency": [{"mfu_causal": 0.45}, {"mfu_causal": 0.55}]},
  "warnings": ["a < b"],
}  # fmt: skip


def test_a_page_holds_its_plots_and_escapes_what_it_shows():
  page = plan_page.page(PLAN, "text & more")
  assert page.count("data:image/png;base64,") == 4
  assert "a &lt;cluster&gt;" in page and "a &lt; b" in page and "text &amp; more" in page
  assert not re.search(r'(src|href)="(?!data:)', page)  # nothing outside of it


def test_a_run_beside_its_plan(tmp_path):
  lines = [
    {"kind": "train", "step_time": t, "data_wait": 0.1, "mfu": 0.4} for t in (90, 3, 3, 3, 3)
  ]
  (tmp_path / compare.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
  (tmp_path / compare.CONFIG).write_text("{}")
  was = compare.measured(tmp_path)
  assert was["step"] == 3 and was["compute"] == pytest.approx(2.9)  # the first step is left out
  assert was["collectives exposed"] is None
  shown = compare.table(tmp_path, PLAN)
  assert re.search(r"step +3 +2 +-33%", shown) and re.search(
    r"collectives exposed +- +0.5 +-", shown
  )
  with pytest.raises(ValueError, match="name a run's folder"):
    compare.recipe_of(tmp_path / "nowhere")


def test_copies_to_host_memory_are_hidden_behind_compute_or_exposed(cluster):
  shape, host = "f16[8192,8192]{1,0}", "f16[8192,8192]{1,0:S(5)}"
  text = f"""HloModule m

ENTRY %main (a: {shape}) -> {shape} {{
  %a = {shape} parameter(0)
  %out = ({host}, {shape}, u32[]) copy-start(%a)
  %done = {host} copy-done(%out)
  ROOT %dot = {shape} dot(%a, %a), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}"""
  step = estimate(hlo.parse(text), {"data": 1, "fsdp": 8}, cluster)
  seconds = 2 * 8192**2 / cluster.facts["pcie_bytes_per_second"]
  assert step.host_bytes == 2 * 8192**2
  assert step.waterfall["exposed host copy"] == pytest.approx(seconds)

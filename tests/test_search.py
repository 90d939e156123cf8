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


def searched(config, cluster, monkeypatch, over, minutes=1, spared=0):
  """A search whose programs take `over(candidate)` times their bounds, and `spared` bytes less.

  Returns what it found, what it left untried and what it compiled.
  """
  compiled = []

  def fake(candidate, nodes, cluster, cache):
    compiled.append(candidate)
    seconds = candidate.seconds * over(candidate)
    nbytes = int(candidate.nbytes) - spared
    return search.Found(candidate.changes, candidate.seconds, seconds, nbytes)

  monkeypatch.setattr(search, "_compiled", fake)
  return *search.search(config, 16, cluster, minutes=minutes, cache=None), compiled


def test_a_search_compiles_by_bounds_then_the_best_in_line_then_with_options(
  config, cluster, monkeypatch, capsys
):
  def over(candidate):
    in_line = not candidate.config.compute.scan_layers
    more = 1.05 if in_line and "train.xla_options" not in candidate.changes else 1.1
    return 1.0 if candidate.nbytes > cluster.usable_memory_bytes else more

  found, untried, compiled = searched(config, cluster, monkeypatch, over)
  options = [c for c in compiled if "train.xla_options" in c.changes]
  scanned = [c for c in compiled if c.config.compute.scan_layers]
  in_line = [c for c in compiled[1:] if not c.config.compute.scan_layers and c not in options]
  assert compiled == [compiled[0], *scanned, *in_line, *options]
  seconds = [c.seconds for c in scanned]
  assert seconds == sorted(seconds) and 3 < len(seconds) < 40
  # In line, those that may be under the best by what their scanned layers took, and the recipe no
  # second time.
  assert 1 <= len(in_line) < len(scanned)
  assert config in [apply_in_line(c, config) for c in scanned]
  assert config not in [c.config for c in in_line]
  # Options are those of the best of all, and more; those of loops are not for layers in line.
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
  assert "the recipe itself" in capsys.readouterr().out and untried == []
  text = search.table(found, untried, limit)
  assert "the search came to its end" in text
  page = plan_page.one_plot_page("Search", plan_page.pareto_plot(found, limit), text)
  assert "data:image/png;base64," in page and "the recipe itself" in page


def apply_in_line(candidate, config):
  return search.apply(config, candidate.changes | {"compute.scan_layers": False})


def test_what_cannot_win_by_what_others_took_is_not_compiled(config, cluster, monkeypatch):
  """As the reference run's variants took, in docs/plan.md."""

  def over(candidate):
    mesh, compute = candidate.config.mesh, candidate.config.compute
    if mesh.fsdp < 128:
      return 1.31
    slow = 0.1 * ("mlp_gate" in compute.remat_offload)
    return 1.09 + slow if compute.scan_layers else 1.056 + slow

  room = {"spared": 3 * 2**29}  # as the recipe's, 70.7 GiB of 72.1 by the formula
  found, untried, compiled = searched(config, cluster, monkeypatch, over, **room)
  meshes = [tuple(c.changes["mesh"].values()) for c in compiled]
  assert all(meshes.count(mesh) == 1 for mesh in meshes if mesh != (1, 128, 1))
  in_line = [c.config.compute for c in compiled if not c.config.compute.scan_layers]
  assert not any("mlp_gate" in c.remat_offload for c in in_line)  # 0.95 of its scanned is too much
  assert not untried and len(compiled) == 15
  # The same variants, with no time but for the recipe.
  found, untried, compiled = searched(config, cluster, monkeypatch, over, minutes=0, **room)
  assert [f.changes.keys() for f in found] == [{"mesh"}]
  text = search.table(found, untried, cluster.usable_memory_bytes)
  assert f"Time was up before {len(untried)}" in text and len(untried) > len(search.FLAGS)
  assert text.count("scanned, saves") >= 10 and "all_gather_combine" in text


def test_the_recipe_beside_the_fastest_in_a_sentence():
  limit = 71 * 2**30
  own = search.Found({"mesh": {"fsdp": 128}}, 28.0, 30.52, limit)
  other = search.Found({"mesh": {"fsdp": 128}, "compute.remat_save": ()}, 28.0, 30.48, limit)
  too_large = search.Found({**other.changes, "more": 1}, 28.0, 20.0, limit + 1)
  assert search.verdict([own, too_large], limit) == "The recipe is the fastest that fits."
  alike = search.verdict([other, own], limit)
  assert "0.1% slower" in alike and "alike" in alike
  slower = search.Found(other.changes, 28.0, 29.0, limit)
  assert search.verdict([slower, own], limit) == "The recipe is 5.2% slower than the fastest."
  assert "does not fit" in search.verdict([search.Found(own.changes, 28.0, 30.0, limit + 1)], limit)


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


def copies(*lines):
  """A program of copies of 128 MiB to the host, products, and gathers within or between nodes."""
  shape, host, all_ = "f16[8192,8192]{1,0}", "f16[8192,8192]{1,0:S(5)}", "f16[65536,8192]{1,0}"
  gather = f"({all_}, {all_}) all-gather-start(%a), dimensions={{0}}, replica_groups="
  texts = {
    "copy": f"({host}, {shape}, u32[]) copy-start(%a)",
    "copied": f"{host} copy-done(%copy)",
    "inside": gather + "[2,8]<=[16]",
    "between": gather + "[1,16]<=[16]",
    "dot": f"{shape} dot(%a, %a), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}",
  }
  body = [f"  %{name} = {texts[name]}" for name in lines]
  head = f"HloModule m\n\nENTRY %main (a: {shape}) -> {shape} {{\n  %a = {shape} parameter(0)\n"
  return hlo.parse(head + "\n".join(body) + f"\n  ROOT %end = {shape} bitcast(%a)\n}}")


def test_copies_to_host_memory_are_hidden_behind_compute_or_exposed(cluster):
  def exposed(*lines):
    return estimate(copies(*lines), {"data": 1, "fsdp": 16}, cluster)

  nbytes, link = 2 * 8192**2, cluster.facts["pcie_bytes_per_second"]
  seconds = nbytes / (link * cluster.constants["pcie_efficiency"])
  alone = exposed("copy", "copied")
  assert alone.host_bytes == nbytes
  assert alone.seconds == alone.waterfall["exposed host copy"] == pytest.approx(seconds)
  beside = exposed("copy", "dot", "copied")
  assert beside.seconds == pytest.approx(max(seconds, beside.waterfall["gemm"]))
  # NVLink is not in its way.
  inside = exposed("inside", "copy", "copied")
  assert inside.waterfall["exposed host copy"] == pytest.approx(seconds)


@pytest.mark.parametrize("order", [("between", "copy"), ("copy", "between")])
def test_a_copy_beside_traffic_between_nodes_has_what_that_leaves_of_the_link(cluster, order):
  step = estimate(copies(*order, "copied"), {"data": 1, "fsdp": 16}, cluster)
  facts, c = cluster.facts, cluster.constants
  link = facts["pcie_bytes_per_second"] * c["pcie_efficiency"]
  left = link - facts["nic_bytes_per_second"] * c["link_efficiency"]
  nbytes, busy = 2 * 8192**2, step.collectives[0].seconds
  assert busy * left < nbytes  # the copy is longer
  assert step.waterfall["exposed host copy"] == pytest.approx(busy + (nbytes - busy * left) / link)
  # Of a link that is no faster than the card, a copy has nothing until the collective ends.
  slow = cluster.replaced({"pcie_efficiency": 0.39})
  step = estimate(copies(*order, "copied"), {"data": 1, "fsdp": 16}, slow)
  assert step.seconds == pytest.approx(busy + nbytes / (0.39 * facts["pcie_bytes_per_second"]))


def test_the_bound_of_a_variant_counts_its_copies(config, cluster):
  slow = cluster.replaced({"pcie_efficiency": 0.01})
  gate = {"remat_save": ("mlp_up",), "remat_offload": ("mlp_gate",)}
  assert varied(config, cluster, **gate).seconds < varied(config, slow, **gate).seconds
  assert varied(config, cluster).seconds == varied(config, slow).seconds

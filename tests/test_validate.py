"""Published runs against the model, and the fit of its constants."""

import dataclasses
import json
from pathlib import Path

import pytest

from configs import published
from model.params import flops_per_token
from train import hlo, pretrain, validate
from train.cluster import load_cluster
from train.deviceless import missing_packages

FIXTURE = Path(__file__).parent / "fixtures" / "hlo_16xh100.txt"
MESH = {"data": 2, "fsdp": 8, "context": 1, "tensor": 1}


def made_up(truth):
  """Runs whose published seconds are what the model says with the constants `truth`."""
  cluster = load_cluster("h100")
  run = validate.Run(
    name="made up",
    role="fit",
    source="",
    cluster=cluster,
    config=pretrain.parse_config(published.get_config("llama2_7b_8").to_dict()),
    module=hlo.parse(FIXTURE.read_text()),
    mesh=MESH,
    seconds=(1.0, 1.0),
    extra=(),
  )
  shapes = [(8192, 8192, 8192), (16384, 4096, 1024), (8192, 22016, 512)]
  runs = [dataclasses.replace(run, extra=(validate.Gemm(1, *s),) * 200) for s in shapes]
  return [dataclasses.replace(r, seconds=(r.predicted(truth),) * 2) for r in runs]


def test_a_fit_finds_the_constants_that_the_runs_were_made_with():
  truth = {"gemm_efficiency": 0.66, "gemm_depth": 300.0}
  runs = made_up(truth)
  found = validate.fit(runs)
  assert all(abs(run.error(run.predicted(found))) < 0.01 for run in runs)
  assert found["gemm_efficiency"] == pytest.approx(truth["gemm_efficiency"], rel=0.03)
  for name in validate.FITTED:
    low, high = runs[0].cluster.ranges[name]
    assert low <= found[name] <= high


def test_an_error_is_zero_within_a_published_range():
  run = dataclasses.replace(made_up({})[0], seconds=(2.0, 3.0))
  errors = [run.error(seconds) for seconds in (1.8, 2.0, 2.5, 3.0, 3.3)]
  assert errors == pytest.approx([-0.1, 0, 0, 0, 0.1])


def test_published_rates_count_attention_in_full():
  config = pretrain.parse_config(published.get_config("llama2_7b_8").to_dict())
  slow, fast = validate.published_seconds({"tflops_full": [400, 500]}, config, {"fsdp": 8})
  tokens = 4 * 4096
  assert slow * 500e12 == pytest.approx(tokens * flops_per_token(config.model, 4096)[1])
  assert fast == pytest.approx(slow * 500 / 400)


def test_every_published_run_is_a_recipe_with_a_cluster_and_a_source():
  runs = json.loads(validate.RUNS.read_text())
  assert {entry["role"] for entry in runs.values()} == {"fit", "test"}
  for name, entry in runs.items():
    config = pretrain.parse_config(published.get_config(name).to_dict())
    cluster = load_cluster(entry["cluster"])
    devices = entry["nodes"] * cluster.gpus_a_node
    assert config.mesh.data * config.mesh.fsdp == devices, name
    assert len(entry["source"]) > 10, name


@pytest.mark.peers
@pytest.mark.skipif(bool(missing_packages()), reason=f"needs {missing_packages()}: the plan extra")
def test_the_committed_constants_are_fitted_and_within_ten_percent(tmp_path):
  runs = validate.load_runs(tmp_path)
  found = validate.fit([run for run in runs if run.role == "fit"])
  for name, value in found.items():
    assert load_cluster("h100").constants[name] == pytest.approx(value, rel=0.02), name
  for run in runs:
    assert abs(run.error(run.predicted({}))) < 0.1, run.name

"""A recipe on fewer and more nodes: the mesh and the batch that it gets, and the plot."""

import re

import pytest

from configs import pretrain_37b, pretrain_405b
from tests import tiny
from train import growth, plan_page, pretrain
from train.cluster import load_cluster
from train.deviceless import missing_packages

SMALL = growth.Size(8, {"data": 1, "fsdp": 8}, 90 * 2**30, 71 * 2**30, 30.0, 0.55, ("qkv",),
                    {"fsdp": 1.0})  # fmt: skip
LARGE = growth.Size(64, {"data": 2, "fsdp": 32}, 60 * 2**30, 71 * 2**30, 33.0, 0.5, (),
                    {"fsdp": 0.0})  # fmt: skip


@pytest.mark.parametrize(
  ("devices", "data", "fsdp"), [(8, 1, 8), (64, 1, 64), (128, 1, 128), (512, 4, 128)]
)
def test_more_gpus_are_more_rows_and_the_weights_lie_over_as_many_as_the_recipe_says(
  devices, data, fsdp
):
  config = pretrain.parse_config(pretrain_37b.get_config().to_dict())
  found = growth.resized(config, devices)
  assert (found.mesh.data, found.mesh.fsdp) == (data, fsdp)
  assert found.data.batch_size == 8 * devices
  assert found.data.batch_size % found.data.streams == 0
  assert found.train.microbatches == config.train.microbatches
  assert found.compute.scan_layers


def test_a_tensor_axis_stays_and_devices_that_it_does_not_divide_are_left_out():
  config = pretrain.parse_config(pretrain_405b.get_config().to_dict())
  found = growth.resized(config, 64)
  assert (found.mesh.data, found.mesh.fsdp, found.mesh.tensor) == (1, 32, 2)
  assert found.data.batch_size == 32
  assert growth.resized(config, 13) is None


def test_a_smaller_cluster_saves_what_it_has_room_for():
  config = pretrain.parse_config(pretrain_37b.get_config().to_dict())
  limit = load_cluster("h100").usable_memory_bytes
  saved = [
    growth.fitted(growth.resized(config, devices), limit).compute.remat_save
    for devices in (4096, 128, 64, 8)
  ]
  assert saved[0] == saved[1] and set(saved[1]) > set(saved[2]) > set(saved[3])
  assert not set(saved[3]) & set(growth.GIVEN_UP) and "attention_out" in saved[3]


def test_efficiency_is_of_the_fastest_that_fits():
  assert growth.best_of([SMALL, LARGE]) is LARGE and growth.best_of([SMALL]) is SMALL
  heads, _, small, large = growth.table([SMALL, LARGE], LARGE).splitlines()
  assert "efficiency" in heads
  assert (
    small == "| 8 | fsdp 8 | qkv | 90.0, does not fit | 30.0 | 55.0% | 1.10 | 1.0 s over fsdp |"
  )
  assert large == "| 64 | data 2, fsdp 32 |  | 60.0 | 33.0 | 50.0% | 1.00 |  |"
  png = plan_page.png(plan_page.growth_plot([SMALL, LARGE], LARGE))
  assert png.startswith(b"\x89PNG")


@pytest.mark.peers
@pytest.mark.skipif(bool(missing_packages()), reason=f"needs {missing_packages()}: the plan extra")
def test_sizes_are_compiled(monkeypatch, capsys):
  monkeypatch.setattr(growth, "NODES", (1, 2))
  recipe = tiny.get_config()
  recipe.mesh.update(data=1, fsdp=8)
  recipe.data.update(batch_size=8, streams=8)
  recipe.eval.batch_size = 8
  config = pretrain.parse_config(recipe.to_dict())
  one, two = growth.grow(config, load_cluster("h100"), cache=None)
  assert (one.devices, two.devices) == (8, 16) and two.mesh["data"] == 2
  # The same work a GPU; the gradients cross the nodes as well.
  assert one.peak_bytes == pytest.approx(two.peak_bytes, rel=0.2)
  assert two.seconds > one.seconds and two.mfu < one.mfu
  assert set(one.exposed) == {"fsdp"} and "data" in ",".join(two.exposed)
  assert re.findall(r"^(\d+) GPUs: ", capsys.readouterr().out, re.MULTILINE) == ["8", "16"]

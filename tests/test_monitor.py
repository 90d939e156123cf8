"""The ledger adds up, MFU is what the formulas say, and communication is told from a profile."""

import itertools
import types

import jax.numpy as jnp
import numpy as np
import pytest
from jax.profiler import ProfileData

from train import monitor, profiler
from train.monitor import Ledger
from train.profiler import Event, communication, device_events


def test_the_ledger_adds_up_with_nested_contexts_and_exceptions():
  clock = itertools.count(0, 10**9)  # a second a look
  ledger = Ledger(lambda: next(clock))
  with ledger("step"), ledger("data_wait"):
    pass
  with pytest.raises(KeyError), ledger("evaluation"):
    raise KeyError
  assert ledger.seconds() == {
    "compile": 0.0, "data_wait": 1.0, "rollout": 0.0, "step": 2.0, "checkpoint": 0.0,
    "evaluation": 1.0, "other": 3.0, "total": 7.0,
  }  # fmt: skip


def test_the_ledger_adds_up_to_the_wall_clock_whatever_the_rounding():
  times = iter([0, 400_000, 1_900_000, 2_300_000, 3_800_000, 4_400_000])
  ledger = Ledger(lambda: next(times))
  with ledger("step"):
    pass
  with ledger("compile"):
    pass
  seconds = {name: round(value * 1000) for name, value in ledger.seconds().items()}
  assert seconds.pop("total") == sum(seconds.values()) == 4


def test_the_ledger_knows_its_categories_and_prints_each():
  ledger = Ledger()
  with pytest.raises(AssertionError), ledger("lunch"):
    pass
  names = [row.split("  ")[0] for row in ledger.table().splitlines()]
  assert names == [*(name.replace("_", " ") for name in monitor.CATEGORIES), "total"]


def test_device_memory_of_a_cpu_is_the_process():
  before, _, source = monitor.device_memory()
  ballast = np.ones(16 << 20, np.uint8)
  after, peak, _ = monitor.device_memory()
  assert source == "process" and 0 < before <= peak and peak >= after
  assert after - before > ballast.nbytes // 2


def test_device_memory_is_that_of_the_fullest_device(monkeypatch):
  def device(used, peak):
    stats = {"bytes_in_use": used, "peak_bytes_in_use": peak}
    return types.SimpleNamespace(memory_stats=lambda: stats)

  monkeypatch.setattr("jax.local_devices", lambda: [device(5, 7), device(3, 9)])
  assert monitor.device_memory() == (5, 9, "device")


@pytest.mark.parametrize(
  ("kind", "dtype", "flops"),
  [
    ("NVIDIA H100 80GB HBM3", "float16", 989.4e12),
    ("NVIDIA H100 PCIe", "bfloat16", 756e12),
    ("NVIDIA H200", "bfloat16", 989.4e12),
    ("NVIDIA A100-SXM4-40GB", "float16", 312e12),
    ("Tesla T4", "float16", 65e12),
    ("Tesla T4", "bfloat16", None),
    ("NVIDIA H100 80GB HBM3", "float32", None),
    ("NVIDIA L40S", "float16", None),
    ("cpu", "float16", None),
  ],
)
def test_known_peaks(kind, dtype, flops):
  assert monitor.known_peak_flops(kind, dtype) == flops


def test_the_reference_run_reaches_its_utilization():
  # 1.8T tokens at 2.40e11 FLOPs in 10.9 weeks on 128 H100s.
  tokens_per_sec = 1.8e12 / (10.9 * 7 * 86_400)
  assert monitor.mfu(tokens_per_sec, 2.40e11, 128 * 989.4e12) == pytest.approx(0.52, abs=0.003)


def test_virtual_cpu_devices_share_one_measured_peak(monkeypatch):
  monkeypatch.setattr(monitor, "measure_matmul_flops", lambda dtype: 1e11)
  assert monitor.peak_flops("float32") == (1e11, "measured: 0.1 TFLOP/s in float32 x 1")


def test_the_measured_peak_is_that_of_a_product():
  measured = monitor.measure_matmul_flops("float32", seconds=0.02)
  assert 1e8 < measured < 1e14


def test_attention_flops_of_packed_rows():
  config = types.SimpleNamespace(num_layers=3, num_heads=4, head_dim=8, sliding_window=None)
  packed = np.array([[1, 1, 1, 2, 2, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]], np.int32)
  expected = 6 * 3 * 4 * 8 * (3**2 + 2**2 + 8**2)
  assert monitor.segment_attention_flops(packed, config) == expected
  config.sliding_window = 2
  pairs = 2 * 3 - 2 + 2 + 2 * 8 - 2
  assert monitor.segment_attention_flops(packed, config) == 12 * 3 * 4 * 8 * pairs
  assert monitor.segment_attention_flops(np.zeros((2, 8), np.int32), config) == 0


def test_attention_flops_of_whole_rows_are_those_of_the_model():
  from model.config import ModelConfig
  from model.params import flops_per_token

  config = ModelConfig(
    vocab_size=32, d_model=8, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6, d_ff=16,
    tie_embeddings=True, qk_norm=False, qkv_bias=False, rope_theta=1e4, rope_scaling=None,
    sliding_window=None, attention_softcap=None, logit_softcap=None, norm_eps=1e-5,
    embed_init_std=1.0,
  )  # fmt: skip
  causal, full = flops_per_token(config, 64)
  rows = np.ones((5, 64), np.int32)
  assert monitor.segment_attention_flops(rows, config) == (full - causal) * 5 * 64


GPU = "/device:GPU:0"


def test_communication_is_the_union_of_collectives_and_exposed_where_nothing_computes():
  second = 1e9
  events = [
    Event(GPU, "gemm", "dot.1", 0, 4 * second),
    Event(GPU, "ncclDevKernel_AllGather_RING_LL", "all-gather-start", 3 * second, 6 * second),
    Event(GPU, "ncclDevKernel_AllReduce_Sum_f32", "all-reduce.2", 5 * second, 8 * second),
    Event(GPU, "loop_fusion", "fusion.3", 7 * second, 9 * second),
    Event(GPU, "MemcpyH2D", "", 4 * second, 7 * second),  # hides nothing
    Event(GPU, "MemcpyP2P", "collective-permute.4", 10 * second, 11 * second),
    Event(GPU, "all_gather_fusion", "all_gather_fusion", 11 * second, 12 * second),  # it computes
  ]
  assert communication(events) == pytest.approx((5 + 1, 3 + 1))
  other = Event("/device:GPU:1", "gemm", "dot.1", 0, 20 * second)
  assert communication([*events, other]) == pytest.approx((3, 2))  # the mean of two devices
  assert communication([other]) == (0, 0)
  assert communication([]) is None


XSPACE = """
planes {
  name: "/host:CPU"
  lines { name: "Stream #1" events { metadata_id: 1 duration_ps: 9000000 } }
  event_metadata { key: 1 value { id: 1 name: "ncclLaunch" } }
}
planes {
  name: "/device:GPU:0"
  lines {
    name: "Stream #7(Compute)" timestamp_ns: 1000
    events { metadata_id: 1 offset_ps: 0 duration_ps: 3000000
             stats { metadata_id: 1 str_value: "dot.1" } }
  }
  lines {
    name: "Stream #9(Compute)" timestamp_ns: 1000
    events { metadata_id: 2 offset_ps: 2000000 duration_ps: 3000000
             stats { metadata_id: 1 str_value: "all-reduce.1" } }
  }
  lines { name: "XLA Modules" events { metadata_id: 1 duration_ps: 9000000 } }
  event_metadata { key: 1 value { id: 1 name: "gemm" } }
  event_metadata { key: 2 value { id: 2 name: "ncclDevKernel_AllReduce" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
}
"""


def gpu_profile(_path=None):
  return ProfileData.from_serialized_xspace(ProfileData.text_proto_to_serialized_xspace(XSPACE))


def test_only_the_streams_of_devices_are_read_from_a_profile():
  events = list(device_events(gpu_profile()))
  assert events == [
    Event(GPU, "gemm", "dot.1", 1000, 4000),
    Event(GPU, "ncclDevKernel_AllReduce", "all-reduce.1", 3000, 6000),
  ]
  assert communication(events) == pytest.approx((3e-6, 2e-6))


def test_on_cpu_communication_is_null_with_a_reason():
  watched = profiler.Profiler(every=1)
  with watched.around(1):
    pass
  assert watched.fields["comm_seconds"] is watched.fields["comm_exposed"] is None
  assert "cpu" in watched.fields["comm_reason"]


def test_a_profile_is_taken_at_the_cadence(monkeypatch):
  monkeypatch.setattr("jax.default_backend", lambda: "gpu")
  watched = profiler.Profiler(every=2)
  with watched.around(1):
    pass
  assert watched.fields["comm_reason"] == "no step was profiled yet"
  with watched.around(2):  # profiles this CPU for real, and finds no GPU in it
    jnp.ones(3) + 1
  assert "profile of step 2 failed: it shows nothing" in watched.fields["comm_reason"]
  monkeypatch.setattr(profiler, "ProfileData", types.SimpleNamespace(from_file=gpu_profile))
  with watched.around(4):
    pass
  assert watched.fields == {
    "comm_seconds": pytest.approx(3e-6),
    "comm_exposed": pytest.approx(2e-6),
    "comm_reason": None,
    "comm_step": 4,
  }


def test_a_profile_that_fails_ends_no_run(monkeypatch):
  monkeypatch.setattr("jax.default_backend", lambda: "gpu")
  watched = profiler.Profiler(every=1)

  def busy(*_, **__):
    raise RuntimeError("Only one profile may be run at a time.")

  monkeypatch.setattr("jax.profiler.start_trace", busy)
  with watched.around(3):
    pass
  assert "step 3 failed: Only one profile" in watched.fields["comm_reason"]
  assert watched.fields["comm_seconds"] is None

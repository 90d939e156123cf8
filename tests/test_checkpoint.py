"""Contract 7: what has a name is whole, what is damaged is noticed, and nothing good is lost."""

import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from train import loss_scale, manifest
from train.catalog import SAVING, Catalog
from train.checkpoint import Checkpointer, CheckpointError
from train.loss_scale import LossScaleConfig
from train.state import TrainState


def make_state(step: int, average: bool = True) -> TrainState:
  """A training state whose every bit follows from `step`."""
  rng = np.random.default_rng(step)

  def params():
    return {
      "embed_VD": jnp.asarray(rng.normal(size=(16, 8)), jnp.float32),
      "layers": {"norm_D": jnp.asarray(rng.normal(size=(2, 8)), jnp.bfloat16)},
    }

  return TrainState(
    step=jnp.asarray(step, jnp.int32),
    params=params(),
    opt_state=(
      optax.ScaleByAdamState(jnp.asarray(step, jnp.int32), params(), params()),
      optax.EmptyState(),
    ),
    loss_scale=loss_scale.init(LossScaleConfig(True, 2.0**16, 2000, 2)),
    average=params() if average else None,
    average_count=jnp.asarray(step // 2, jnp.int32),
    key=jax.random.key_data(jax.random.key(step)),
  )


def abstract_of(tree, sharding=None):
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


ABSTRACT = abstract_of(make_state(0))


def save(checkpointer, *steps):
  for step in steps:
    checkpointer.save(step, {"model": make_state(step)}, {"cursor": step * 10}, wait=True)


@pytest.fixture(scope="module")
def masters(tmp_path_factory):
  folder = tmp_path_factory.mktemp("masters")
  save(Checkpointer(folder), 1, 2)
  return folder


@pytest.fixture
def saved(masters, tmp_path):
  """A folder with the checkpoints 1 and 2, copied since a save costs more."""
  return shutil.copytree(masters, tmp_path / "checkpoints")


@pytest.fixture
def saved_one(saved):
  shutil.rmtree(saved / "2")
  return saved


def assert_restores(checkpointer, step, asked=None):
  found, trees, extra = checkpointer.restore({"model": ABSTRACT}, asked)
  assert (found, extra) == (step, {"cursor": step * 10})
  assert_same_bits(trees["model"], make_state(step))


def assert_same_bits(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert a.dtype == e.dtype and np.asarray(a).tobytes() == np.asarray(e).tobytes()


def flip_bit(path: Path, bit: int):
  data = bytearray(path.read_bytes())
  data[bit // 8] ^= 1 << bit % 8
  path.write_bytes(data)


def mesh(shape):
  names = ("data", "fsdp")[: len(shape)]
  devices = jax.devices()[: int(np.prod(shape))]
  return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape), devices=devices)


# Round trips.


def test_round_trip_is_bit_exact(tmp_path):
  checkpointer = Checkpointer(tmp_path / "new" / "checkpoints")
  assert checkpointer.latest() is None and not (tmp_path / "new").exists()
  save(checkpointer, 1, 2)
  assert checkpointer.steps() == [1, 2] and checkpointer.latest() == 2
  assert_restores(checkpointer, 2)
  assert_restores(checkpointer, 1, asked=1)
  assert_restores(Checkpointer(checkpointer.directory), 2)


def test_special_values_keep_their_bits(tmp_path):
  values = np.array([np.nan, -0.0, np.inf, 1e-45], np.float32)
  tree = {"params": {"w": jnp.asarray(values)}, "step": jnp.asarray(2**31 - 1, jnp.int32)}
  checkpointer = Checkpointer(tmp_path)
  checkpointer.save(1, {"model": tree}, {}, wait=True)
  assert_same_bits(checkpointer.restore({"model": abstract_of(tree)})[1]["model"], tree)


def test_several_trees_in_one_checkpoint(tmp_path):
  trees = {"policy": make_state(1), "value": make_state(2, average=False)}
  checkpointer = Checkpointer(tmp_path)
  checkpointer.save(7, trees, {}, wait=True)
  restored = checkpointer.restore(abstract_of(trees))[1]
  assert_same_bits(restored, trees)
  weights = checkpointer.restore_weights({"value": abstract_of(trees["value"].params)})
  assert_same_bits(weights, {"value": trees["value"].params})


@pytest.mark.parametrize(
  "saved, restored", [((8,), (1,)), ((1,), (8,)), ((2, 4), (4, 2))], ids=["8-1", "1-8", "2x4-4x2"]
)
def test_restores_onto_another_mesh(tmp_path, saved, restored):
  tree = {"params": {"w_DF": jnp.arange(16 * 8, dtype=jnp.float32).reshape(16, 8)}}
  tree |= {"opt_state": {"nu": jnp.arange(32, dtype=jnp.float32)}, "step": jnp.asarray(5)}

  def shardings(shape):
    m = mesh(shape)
    return jax.tree.map(lambda x: NamedSharding(m, PartitionSpec(*m.axis_names[: x.ndim])), tree)

  checkpointer = Checkpointer(tmp_path)
  checkpointer.save(1, {"model": jax.device_put(tree, shardings(saved))}, {}, wait=True)
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings(restored)
  )
  found = checkpointer.restore({"model": abstract})[1]["model"]
  assert_same_bits(found, tree)
  assert jax.tree.map(lambda x: x.sharding, found) == shardings(restored)


def test_arrays_may_be_donated_once_save_returns(tmp_path):
  tree = {
    "params": jax.device_put(
      jnp.ones((8, 65536)), NamedSharding(mesh((8,)), PartitionSpec("data"))
    ),
    "opt_state": jnp.ones((1 << 20,)),
    "step": jnp.asarray(1),
  }
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
  update = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)
  checkpointer = Checkpointer(tmp_path)
  for step in (1, 2, 3):
    checkpointer.save(step, {"model": tree}, {})
    tree = update(tree)
    for leaf in jax.tree.leaves(jax.block_until_ready(tree)):
      assert (np.asarray(leaf) == step + 1).all()
  checkpointer.close()
  for step in (1, 2, 3):
    for leaf in jax.tree.leaves(checkpointer.restore({"model": abstract}, step)[1]):
      assert isinstance(leaf, np.ndarray) and (leaf == step).all()


# Damage.


def test_a_flipped_bit_in_any_file_is_noticed(saved):
  seed = random.randrange(2**32)
  print(f"seed {seed}")
  rng = random.Random(seed)
  checkpointer = Checkpointer(saved)
  newest = saved / "2"
  whole = manifest.read(newest)
  files = [p for p in sorted(newest.rglob("*")) if p.is_file()]
  assert {str(p.relative_to(newest)) for p in files} == set(whole.files) | {manifest.NAME}
  for path in files:
    for _ in range(40 if path.name == manifest.NAME else 4):
      bit = rng.randrange(path.stat().st_size * 8)
      flip_bit(path, bit)
      try:
        assert manifest.find_fault(newest, manifest.read(newest)), f"{path} bit {bit}"
      except ValueError as error:
        assert path.name == manifest.NAME, error
      flip_bit(path, bit)
  assert manifest.find_fault(newest, whole) is None
  flip_bit(rng.choice(files), 0)
  assert_restores(checkpointer, 1)


def corrupt(folder: Path, how: str):
  data = max((folder / "model.params").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
  if how == "flipped":
    flip_bit(data, 99)
  elif how == "truncated":
    os.truncate(data, data.stat().st_size - 1)
  elif how == "missing file":
    data.unlink()
  elif how == "missing manifest":
    (folder / manifest.NAME).unlink()
  elif how == "flipped manifest":
    flip_bit(folder / manifest.NAME, 8 * 300)
  else:
    assert how == "truncated manifest"
    os.truncate(folder / manifest.NAME, 100)


@pytest.mark.parametrize(
  "how",
  [
    "flipped",
    "truncated",
    "missing file",
    "missing manifest",
    "flipped manifest",
    "truncated manifest",
  ],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(saved, how, caplog):
  checkpointer = Checkpointer(saved)
  (saved / "2.corrupt-1").mkdir()
  corrupt(saved / "2", how)
  assert_restores(Checkpointer(saved), 1)
  assert (saved / "2.corrupt-2" / "model.state").is_dir() and not (saved / "2").exists()
  assert "2.corrupt-2" in caplog.text
  save(checkpointer, 2)
  assert_restores(checkpointer, 2)


def test_nothing_is_set_aside_where_nothing_is_whole(saved):
  for step in ("1", "2"):
    corrupt(saved / step, "flipped")
  for _ in range(2):
    with pytest.raises(CheckpointError, match=r"2: model\.params/.* 1: model\.params/"):
      Checkpointer(saved).restore({"model": ABSTRACT})
  assert sorted(os.listdir(saved)) == ["1", "2"]
  with pytest.raises(CheckpointError, match="no checkpoint"):
    Checkpointer(saved / "empty").restore({"model": ABSTRACT})


def test_a_run_does_not_begin_anew_where_its_manifests_are_gone(saved):
  for step in ("1", "2"):
    corrupt(saved / step, "missing manifest")
  with pytest.raises(CheckpointError, match=r"holds the steps \[2, 1\], and a run can restart"):
    Checkpointer(saved).latest()
  assert Checkpointer(saved).steps() == []


def test_an_asked_for_step_that_is_damaged_is_an_error_and_stays(saved):
  corrupt(saved / "2", "flipped")
  with pytest.raises(CheckpointError, match="SHA-256"):
    Checkpointer(saved).restore({"model": ABSTRACT}, 2)
  with pytest.raises(CheckpointError, match=r"3: MANIFEST\.json is missing"):
    Checkpointer(saved).restore({"model": ABSTRACT}, 3)
  assert sorted(os.listdir(saved)) == ["1", "2"]


def test_a_reader_beside_the_run_changes_nothing(saved):
  corrupt(saved / "2", "flipped")
  (saved / SAVING / "3").mkdir(parents=True)
  reader = Checkpointer(saved)
  weights = reader.restore_weights({"model": ABSTRACT.params})
  assert_same_bits(weights["model"], make_state(1).params)
  assert sorted(os.listdir(saved)) == [SAVING, "1", "2"]


@pytest.mark.parametrize("call", ["restore", "restore_weights"])
def test_another_shape_names_the_leaf_and_changes_nothing(saved_one, call):
  checkpointer = Checkpointer(saved_one)
  wrong = ABSTRACT.replace(
    params=ABSTRACT.params | {"embed_VD": jax.ShapeDtypeStruct((16, 9), "f4")}
  )
  given = {"model": wrong if call == "restore" else wrong.params}
  with pytest.raises(ValueError, match=r"embed_VD is float32\[16, 8\] there and float32\[16, 9\]"):
    getattr(checkpointer, call)(given)
  wrong = ABSTRACT.replace(params=ABSTRACT.params | {"layers": {}})
  given = {"model": wrong if call == "restore" else wrong.params}
  with pytest.raises(ValueError, match=r"layers/norm_D is bfloat16\[2, 8\] there and absent here"):
    getattr(checkpointer, call)(given)
  assert os.listdir(saved_one) == ["1"]


def test_another_optimizer_or_dtype_is_refused(saved_one):
  checkpointer = Checkpointer(saved_one)
  with pytest.raises(ValueError, match=r"model\.state/opt_state/0/count is int32\[\] there"):
    checkpointer.restore({"model": ABSTRACT.replace(opt_state=())})
  half = ABSTRACT.replace(step=jax.ShapeDtypeStruct((), "int16"))
  with pytest.raises(ValueError, match=r"step is int32\[\] there and int16\[\] here"):
    checkpointer.restore({"model": half})


# Saves that fail or are killed.


def test_a_newer_step_refuses_another_trajectory(tmp_path):
  checkpointer = Checkpointer(tmp_path)
  save(checkpointer, 5)
  assert checkpointer.save(5, {"model": make_state(6)}, {}) is False
  with pytest.raises(ValueError, match="later step 5"):
    checkpointer.save(4, {"model": make_state(4)}, {})
  assert_restores(checkpointer, 5)


def test_leftovers_of_a_killed_save_go_and_strangers_stay(saved_one):
  checkpointer = Checkpointer(saved_one, keep_last=1)
  for name in (f"{SAVING}/2/model.params", "notes", "2.corrupt-1"):
    (saved_one / name).mkdir(parents=True)
  assert_restores(Checkpointer(saved_one), 1)
  assert sorted(os.listdir(saved_one)) == ["1", "2.corrupt-1", "notes"]
  (saved_one / SAVING / "2").mkdir(parents=True)
  save(checkpointer, 2)
  assert sorted(os.listdir(saved_one)) == ["2", "2.corrupt-1", "notes"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_one_message_and_loses_nothing(saved_one):
  checkpointer = Checkpointer(saved_one, keep_last=1)
  big = {"params": jnp.arange(1 << 20), "step": jnp.asarray(2)}
  _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, hard))
    assert checkpointer.save(2, {"model": big}, {})
    with pytest.raises(CheckpointError, match=r"checkpoint 2 .* steps \[1\] are whole") as caught:
      checkpointer.save(3, {"model": big}, {})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
  assert isinstance(caught.value, OSError) and "\n" not in str(caught.value)
  checkpointer.close()  # the error was raised once
  assert checkpointer.steps() == [1]
  assert_restores(Checkpointer(saved_one), 1)
  checkpointer = Checkpointer(saved_one)
  save(checkpointer, 2)
  assert_restores(checkpointer, 2)


def test_no_space_left_says_so(tmp_path, monkeypatch):
  checkpointer = Checkpointer(tmp_path)

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(manifest, "write", full)
  with pytest.raises(CheckpointError, match="the disk is full; make room"):
    save(checkpointer, 1)
  assert checkpointer.steps() == [] and os.listdir(tmp_path) == []


def test_a_peer_that_died_during_a_save_is_said_to_be_gone(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  reset = jax.errors.JaxRuntimeError("Gloo AllGather failed: Connection reset by peer")
  failure = str(Checkpointer(tmp_path)._failure(3, reset))
  assert "another process is gone, or a link: Gloo AllGather failed" in failure


def test_a_failure_in_the_background_is_raised_by_the_next_call(tmp_path, monkeypatch):
  checkpointer = Checkpointer(tmp_path)
  monkeypatch.setattr(manifest, "hash_files", lambda folder: 1 / 0)
  checkpointer.save(1, {"model": make_state(1)}, {})
  with pytest.raises(CheckpointError, match="division"):
    checkpointer.wait()
  monkeypatch.undo()
  save(checkpointer, 1)
  assert_restores(checkpointer, 1)


CHILD = """
import sys
from tests.test_checkpoint import ABSTRACT, Checkpointer, make_state
checkpointer = Checkpointer(sys.argv[1], keep_last=2)
step = 0
if checkpointer.latest():
  step = checkpointer.restore({"model": ABSTRACT})[0]
while True:
  step += 1
  checkpointer.save(step, {"model": make_state(step)}, {"cursor": step * 10})
  print(step, flush=True)
"""


def kill_and_restore(folder: Path, rounds: int):
  seed = random.randrange(2**32)
  print(f"seed {seed}")
  rng = random.Random(seed)
  saved = 0
  for _ in range(rounds):
    environment = dict(os.environ, XLA_FLAGS="", PYTHONPATH=os.getcwd())
    child = subprocess.Popen(
      [sys.executable, "-c", CHILD, folder], env=environment, stdout=subprocess.PIPE, text=True
    )
    with child:
      for _ in range(3):
        begun = int(child.stdout.readline())  # the save of this step has begun, that before ended
      time.sleep(rng.uniform(0, 0.3))
      child.send_signal(signal.SIGKILL)
      begun = int((child.stdout.read().split() or [begun])[-1])
    checkpointer = Checkpointer(folder)
    newest = checkpointer.latest()
    assert max(saved, begun - 1) <= newest <= begun + 1
    assert_restores(checkpointer, newest)
    assert not list(folder.glob("*corrupt*"))
    saved = newest


def test_killed_at_random_moments_it_restores_the_last_or_the_new_step(tmp_path):
  kill_and_restore(tmp_path, rounds=2)


@pytest.mark.slow
def test_killed_at_many_random_moments(tmp_path):
  kill_and_restore(tmp_path, rounds=25)


@pytest.mark.parametrize("at", ["hash_files", "write", "rename", "prune"])
def test_killed_at_each_stage_of_the_bookkeeping(saved_one, monkeypatch, at):
  """The folder as a kill at that stage leaves it, without the clean-up that an error gets."""
  checkpointer = Checkpointer(saved_one, keep_last=1)

  class Killed(BaseException):
    pass

  def kill(*_):
    raise Killed

  with monkeypatch.context() as patch:
    patch.setattr(Catalog, "clean", lambda self: 0)
    if at == "rename":
      rename = os.rename
      patch.setattr(os, "rename", lambda a, b: kill() if b == saved_one / "2" else rename(a, b))
    elif at == "prune":
      patch.setattr(Catalog, "_prune", kill)
    else:
      patch.setattr(manifest, at, kill)
    with pytest.raises(Killed):
      save(checkpointer, 2)
  assert_restores(Checkpointer(saved_one, keep_last=1), 2 if at == "prune" else 1)
  save(checkpointer, 3)
  assert os.listdir(saved_one) == ["3"]


PROCESS = """
import sys
import jax, numpy as np
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tests.test_checkpoint import Checkpointer, CheckpointError, corrupt, manifest
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec("data"))

def tree(step):
  values = np.arange(64, dtype="f4") * step
  w = jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])
  return {"params": {"w": w}, "step": w}

checkpointer = Checkpointer(sys.argv[1], keep_last=2)
for step in (1, 2, 3):
  checkpointer.save(step, {"model": tree(step)}, {"cursor": step})
checkpointer.wait()
assert checkpointer.steps() == [2, 3]
if jax.process_index() == 0:
  corrupt(checkpointer.directory / "3", "flipped")
def abstract_of(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
abstract = jax.tree.map(abstract_of, tree(0))
step, trees, extra = checkpointer.restore({"model": abstract})
assert step == 2 and extra == {"cursor": 2}
for shard in trees["model"]["params"]["w"].addressable_shards:
  assert (np.asarray(shard.data) == 2 * np.arange(64)[shard.index]).all()
hash_files = manifest.hash_files
if jax.process_index() == 0:
  manifest.hash_files = lambda folder: 1 / 0
checkpointer.save(4, {"model": tree(4)}, {})
try:
  checkpointer.save(5, {"model": tree(5)}, {})
  raise SystemExit("the failed save of process 0 was not raised")
except CheckpointError:
  pass
manifest.hash_files = hash_files
checkpointer.save(6, {"model": tree(6)}, {})
checkpointer.close()
assert checkpointer.steps() == [2, 6]
"""


@pytest.mark.slow
def test_two_processes_save_restore_and_fail_together(tmp_path):
  with socket.socket() as s:
    s.bind(("localhost", 0))
    address = f"localhost:{s.getsockname()[1]}"
  flags = "--xla_force_host_platform_device_count=2"
  environment = dict(os.environ, XLA_FLAGS=flags, PYTHONPATH=os.getcwd())
  children = [
    subprocess.Popen(
      [sys.executable, "-c", PROCESS, tmp_path, address, str(i)], env=environment, stderr=-1
    )
    for i in range(2)
  ]
  for child in children:
    error = child.communicate(timeout=120)[1]
    assert child.returncode == 0, error.decode()


# Retention.


def test_retention_keeps_the_newest_every_nth_and_the_windows_weights(tmp_path):
  checkpointer = Checkpointer(tmp_path, keep_last=2, keep_every=3, average_steps=[4, 5, 8])
  save(checkpointer, *range(1, 9))
  assert checkpointer.steps() == [3, 4, 5, 6, 7, 8]
  assert_restores(checkpointer, 3, asked=3)
  for step in (4, 5):
    assert sorted(os.listdir(tmp_path / str(step))) == [manifest.NAME, "model.params"]
    weights = checkpointer.restore_weights({"model": ABSTRACT.params}, step)
    assert_same_bits(weights["model"], make_state(step).params)
    with pytest.raises(CheckpointError, match="weights alone"):
      checkpointer.restore({"model": ABSTRACT}, step)
  assert_restores(checkpointer, 8)


def test_without_retention_everything_stays_and_one_must(tmp_path):
  checkpointer = Checkpointer(tmp_path, keep_every=2)
  save(checkpointer, 1, 2, 3)
  assert checkpointer.steps() == [1, 2, 3]
  with pytest.raises(ValueError, match="keep_last=0"):
    Checkpointer(tmp_path, keep_last=0)


def test_nothing_is_pruned_before_the_new_step_has_its_manifest(saved_one, monkeypatch):
  checkpointer = Checkpointer(saved_one, keep_last=1)
  write, seen = manifest.write, []

  def watch(folder, body):
    seen.append(sorted(os.listdir(saved_one)))
    write(folder, body)

  monkeypatch.setattr(manifest, "write", watch)
  save(checkpointer, 2)
  assert seen == [[SAVING, "1"]] and checkpointer.steps() == [2]


def test_killed_while_dropping_the_state_the_weights_stay(saved_one, monkeypatch):
  checkpointer = Checkpointer(saved_one, keep_last=1, average_steps=[1])
  with monkeypatch.context() as patch:
    patch.setattr(Path, "iterdir", lambda self: 1 / 0 if self.name == "1" else os_iterdir(self))
    with pytest.raises(CheckpointError):
      save(checkpointer, 2)
  assert checkpointer.steps() == [1, 2] and (saved_one / "1" / "model.state").exists()
  weights = checkpointer.restore_weights({"model": ABSTRACT.params}, 1)
  assert_same_bits(weights["model"], make_state(1).params)
  save(checkpointer, 3)
  assert sorted(os.listdir(saved_one / "1")) == [manifest.NAME, "model.params"]


def os_iterdir(path):
  return iter([path / name for name in os.listdir(path)])


def test_weights_alone_do_not_stop_a_run_that_fell_back_behind_them(tmp_path):
  checkpointer = Checkpointer(tmp_path, keep_last=1, keep_every=2, average_steps=[3])
  save(checkpointer, 2, 3, 5)
  corrupt(tmp_path / "5", "flipped")
  assert_restores(checkpointer, 2)
  save(checkpointer, 3)
  assert_restores(checkpointer, 3)
  assert sorted(os.listdir(tmp_path)) == ["2", "3", "5.corrupt-1"]


# Weights alone.


def test_the_average_is_restored_from_full_checkpoints_once_there_is_one(tmp_path):
  checkpointer = Checkpointer(tmp_path)
  save(checkpointer, 1)
  with pytest.raises(ValueError, match="no average yet"):
    checkpointer.restore_weights({"model": ABSTRACT.params}, which="average")
  save(checkpointer, 2)
  weights = checkpointer.restore_weights({"model": ABSTRACT.params}, which="average")
  assert_same_bits(weights["model"], make_state(2).average)
  with pytest.raises(ValueError, match="which='mean'"):
    checkpointer.restore_weights({"model": ABSTRACT.params}, which="mean")


def test_weights_are_saved_anew_in_place_of_the_old(tmp_path):
  checkpointer = Checkpointer(tmp_path)
  for seed in (1, 2):
    checkpointer.save_weights(9, {"model": make_state(seed).params}, {"seed": seed})
  weights = checkpointer.restore_weights({"model": ABSTRACT.params})
  assert_same_bits(weights["model"], make_state(2).params)
  assert os.listdir(tmp_path) == ["9"]
  with pytest.raises(CheckpointError, match="weights alone"):
    checkpointer.restore({"model": ABSTRACT})

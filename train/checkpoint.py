"""Checkpoints of a run: written by Orbax behind the training thread, believed only when hashed.

    checkpoints/
      1000/                a step that may be restored
        model.params/      Orbax's files: the weights of the tree "model"
        model.average/     their running mean
        model.state/       moments, loss scale, counters, key
        MANIFEST.json      every file's SHA-256, every leaf's shape and dtype, the data cursors
      2000.corrupt-1/      a step that failed its hashes, set aside
      .saving/             the save in progress, or what a killed one left; nothing here is needed

Orbax restores flipped bits in silence, so the hashes are ours. Orbax writes into `.saving/`; the
manifest is written last of all, by fsync and rename, and only then does the step get its name. So
whatever has a name was complete, and whatever a kill leaves is in `.saving/` and is known as ours.
This uses the parts that Orbax's CheckpointManager is made of (AsyncCheckpointer, Composite), and
not the manager: which steps exist and which may go is here decided by the manifests alone.
"""

import errno
import json
import os
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from train.catalog import Catalog, CheckpointError
from train.manifest import Leaves, Manifest
from train.spill import read_leaf

# Of weights alone: what is encoded, and decoded, at once; and what waits to be written, as a file.
# Larger for larger leaves, so that there are not too many files. A file smaller than a chunk is
# written with it; where it was larger than one, all of a leaf's chunks were in memory.
CHUNK_BYTES, FILE_BYTES = 16 * 2**20, 4 * 2**20


class Checkpointer:
  """The checkpoints in one folder.

  Making one touches nothing on the disk, and neither does `restore_weights`: evaluation may read
  beside a run that trains. `restore` and `save` are for the run that owns the folder. All
  processes make the same calls in the same order; the folder is one that all of them see.

  Args:
    directory: `<run>/checkpoints`, on a file system with atomic rename.
    keep_last: how many of the newest full checkpoints stay; None keeps all.
    keep_every: full checkpoints at multiples of this stay as well.
    average_steps: steps that stay as weights alone once their full checkpoint goes.
    verify: whether restoring checks every file's hash first.
  """

  def __init__(
    self,
    directory: os.PathLike,
    *,
    keep_last: int | None = None,
    keep_every: int | None = None,
    average_steps: Collection[int] = (),
    verify: bool = True,
  ):
    self._catalog = Catalog(
      directory,
      keep_last=keep_last,
      keep_every=keep_every,
      average_steps=average_steps,
      verify=verify,
    )
    self.directory = self._catalog.directory
    self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
    self._saving: Future | None = None
    self._attempts = 0

  def steps(self) -> list[int]:
    """The steps with a valid manifest, in order; some may hold weights alone."""
    return sorted(self._catalog.manifests())

  def latest(self) -> int | None:
    """The newest step that a run can restart from, or None in a folder without steps.

    Raises:
      CheckpointError: there are steps, and none to restart from; a run must not begin anew there.
    """
    return self._catalog.latest()

  def save(
    self, step: int, trees: dict[str, Any], extra: dict[str, Any], *, wait: bool = False
  ) -> bool:
    """Saves `trees` as `step`, blocking only while the arrays are copied to the host.

    The arrays may be donated or overwritten as soon as this returns. Hashing, the manifest and
    retention follow on a thread; an error there is logged at once and raised by the next call. A
    save still in flight is waited for first.

    Args:
      step: batches trained on.
      trees: {name: TrainState}; any pytree with the fields params, average and average_count.
      extra: JSON to restore along with them.
      wait: whether to return only once the step exists.

    Returns:
      whether anything was saved: False where the step exists already.

    Raises:
      ValueError: a newer step exists, so that this is another trajectory.
      CheckpointError: this save, or the one before, failed. What was saved earlier is whole.
    """
    return self._save(step, _items(trees), extra, wait=wait, replace=False)

  def save_weights(self, step: int, weights: dict[str, Any], extra: dict[str, Any]) -> None:
    """Saves {name: weights} as `step`, in place of what that step held, and waits for it.

    Beside the arrays, it holds no more than about the largest of them in memory.
    """
    items = {f"{name}.params": _leaves(tree) for name, tree in weights.items()}
    self._save(step, items, extra, wait=True, replace=True)

  def restore(
    self, abstract: dict[str, Any], step: int | None = None
  ) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Restores the newest full checkpoint, or that of `step`.

    A corrupt one newer than that is set aside as `<step>.corrupt-<n>`, with a warning.

    Args:
      abstract: {name: tree of ShapeDtypeStruct}; every leaf is restored to its sharding, whatever
        the mesh it was saved from, and to a numpy array where it has none.
      step: only this step.

    Returns:
      (step, trees, extra).

    Raises:
      ValueError: the checkpoint has another leaf, shape or dtype; nothing is set aside.
      CheckpointError: there is no checkpoint, or none is whole; nothing is set aside.
    """
    self.wait()
    wanted = _items(abstract)
    step = _on_first_process(
      lambda: self._catalog.choose(_described(wanted), step, full=True, owner=True)
    )
    trees = self._read(step, wanted)
    restored = {
      name: jax.tree.unflatten(
        jax.tree.structure(tree), [trees[item][path] for item, path, _ in _located(name, tree)]
      )
      for name, tree in abstract.items()
    }
    return step, restored, self._catalog.manifest(step).extra

  def restore_weights(
    self,
    abstract: dict[str, Any],
    step: int | None = None,
    which: str = "raw",
    empty: Callable[[tuple[int, ...]], np.ndarray] | None = None,
  ) -> dict[str, Any]:
    """Restores {name: weights} alone, for evaluation, sampling or export; see `restore`.

    Args:
      abstract: {name: tree of ShapeDtypeStruct} of the weights; not every name of the checkpoint.
      step: None for the newest that is whole.
      which: "raw", or "average" for their running mean, which only full checkpoints hold.
      empty: makes the fp32 array of a shape that a leaf is read into, such as one on a disk; then
        no more than a stored chunk is in memory at a time.

    Raises:
      ValueError: another shape (see `restore`), or no snapshot is in the mean yet.
      CheckpointError: no such checkpoint, or it is corrupt.
    """
    if which not in ("raw", "average"):
      raise ValueError(f'which={which!r}; it must be "raw" or "average".')
    self.wait()
    raw = which == "raw"
    count = jax.ShapeDtypeStruct((), np.dtype("int32"))
    wanted = {
      f"{name}.params" if raw else f"{name}.average": _leaves(
        tree if raw else {"average": tree, "average_count": count}
      )
      for name, tree in abstract.items()
    }
    step = _on_first_process(
      lambda: self._catalog.choose(_described(wanted), step, full=not raw, owner=False)
    )
    trees = self._read(step, wanted, empty)
    weights = {}
    for name, tree in abstract.items():
      found = trees[f"{name}.params" if raw else f"{name}.average"]
      if not raw and not int(found["average_count"]):
        raise ValueError(
          f"checkpoint {step} in {self.directory} has no average yet: it is from before the "
          'averaging window. Use a later step, or the weights "raw".'
        )
      prefix = "" if raw else "average/"
      weights[name] = jax.tree.unflatten(
        jax.tree.structure(tree), [found[prefix + path] for path in _leaves(tree)]
      )
    return weights

  def abstract_weights(self, step: int) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """{name: {leaf path: shape and dtype}} of the weights of `step`, as numpy arrays to restore."""
    return {
      item.removesuffix(".params"): {
        path: jax.ShapeDtypeStruct(shape, np.dtype(dtype))
        for path, (shape, dtype) in leaves.items()
      }
      for item, leaves in self._catalog.manifest(step).items.items()
      if item.endswith(".params")
    }

  def wait(self) -> None:
    """Waits for the save in flight, and raises its error on every process."""
    saving, self._saving = self._saving, None
    error = saving.exception() if saving else None
    if saving and jax.process_count() > 1:
      failed = multihost_utils.process_allgather(np.int32(error is not None))
      if error is None and failed.any():
        error = CheckpointError(f"process {int(failed.argmax())} could not save; see its log.")
    if error:
      raise error

  def close(self) -> None:
    """Waits for the save in flight, and ends the thread; raises as `wait` does."""
    try:
      self.wait()
    finally:
      self._pool.shutdown()

  # Writing. `_finish` and what it calls run on the thread.

  def _save(self, step, items, extra, *, wait, replace) -> bool:
    self.wait()
    body = Manifest(
      step=step,
      items=_described(items),
      files={},
      extra=json.loads(json.dumps(extra)),  # a copy: the caller's may change meanwhile
    )
    if not replace and not _on_first_process(lambda: self._catalog.is_new(step)):
      return False
    _on_first_process(self._catalog.clean)
    self._attempts += 1  # in the name, since what a failed save still writes must not meet this one
    folder = self._catalog.staging(f"{step}-{self._attempts}")
    try:
      ocp = _orbax()
      handlers, how, options = {}, None, {}
      if replace:
        largest = max(leaf.nbytes for leaves in items.values() for leaf in leaves.values())
        limit = 1.01 * largest / 1e9
        handlers = {item: ocp.PyTreeCheckpointHandler(save_concurrent_gb=limit) for item in items}
        how = ocp.SaveArgs(chunk_byte_size=max(CHUNK_BYTES, largest // 32))
        options["ocdbt_target_data_file_size"] = max(FILE_BYTES, largest // 128)
      orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**handlers))
      args = {
        item: ocp.args.PyTreeSave(leaves, save_args=how and dict.fromkeys(leaves, how), **options)
        for item, leaves in items.items()
      }
      orbax.save(folder, args=ocp.args.Composite(**args))
    except Exception as error:
      raise self._failure(step, error) from error
    self._saving = self._pool.submit(self._finish, orbax, folder, body)
    if wait:
      self.wait()
    return True

  def _finish(self, orbax, folder: Path, body: Manifest) -> None:
    try:
      orbax.close()  # waits for the files, and raises what went wrong with them
      if jax.process_index():
        return
      self._catalog.add(folder, body)
    except Exception as error:
      failure = self._failure(body.step, error)
      logging.error("%s", failure)
      raise failure from error
    finally:
      if jax.process_index() == 0:
        self._catalog.clean()  # what a failure leaves would fill the disk

  def _failure(self, step: int, error: Exception) -> CheckpointError:
    cause = " ".join(str(error).split()) or type(error).__name__
    if "No space left" in cause or getattr(error, "errno", None) == errno.ENOSPC:
      cause = "the disk is full; make room, or lower checkpoint.keep_last"
    elif jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError):
      cause = f"another process is gone, or a link: {cause}"
    return CheckpointError(
      f"checkpoint {step} could not be written to {self.directory}: {cause[:500]}. Start again "
      f"once this is mended; the steps {self.steps()} are whole."
    )

  # Reading.

  def _read(self, step: int, wanted: dict, empty: Callable | None = None) -> dict[str, dict]:
    """{item: {leaf path: array}} from Orbax, to the shardings of `wanted` or into `empty`."""
    ocp = _orbax()

    def how(leaf):
      if leaf.sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
      return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)

    trees = {}
    for item, leaves in wanted.items():
      folder = self.directory / str(step) / item
      try:
        if empty is not None:
          trees[item] = {p: read_leaf(folder, p, empty(x.shape)) for p, x in leaves.items()}
          continue
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
          args = ocp.args.PyTreeRestore(item=leaves, restore_args=jax.tree.map(how, leaves))
          trees[item] = orbax.restore(folder, args=args)
      except Exception as error:
        raise CheckpointError(
          f"checkpoint {step} in {self.directory} could not be read: {error}"
        ) from error
    return trees


def _orbax():
  """Orbax, imported on first use, without its running commentary: errors are raised, not logged."""
  import orbax.checkpoint

  logger = logging.get_absl_logger()
  if _not_orbax not in logger.filters:
    logger.addFilter(_not_orbax)
  return orbax.checkpoint


def _not_orbax(record) -> bool:
  return f"{os.sep}orbax{os.sep}" not in record.pathname


def _on_first_process(call: Callable[[], int]) -> int:
  """What `call` returns on process 0, on every process; its error is raised on every one too."""
  if jax.process_count() == 1:
    return call()
  result, error = -1, None
  if jax.process_index() == 0:
    try:
      result = int(call())
    except Exception as raised:
      error = raised
  result = int(multihost_utils.broadcast_one_to_all(np.int32(result)))
  if error:
    raise error
  if result < 0:
    raise CheckpointError("process 0 found no way to go on with the checkpoints; see its log.")
  return result


def _located(name: str, tree: Any) -> list[tuple[str, str, Any]]:
  """(item, path in the item, leaf) of every leaf, in the order of the tree.

  The weights and their mean are items of their own, so that they can be read, or stay, alone.
  """
  located = []
  for path, leaf in jax.tree.flatten_with_path(tree)[0]:
    field = _path(path[:1])
    if field == "params":
      located.append((f"{name}.params", _path(path[1:]), leaf))
    elif field in ("average", "average_count"):
      located.append((f"{name}.average", _path(path), leaf))
    else:
      located.append((f"{name}.state", _path(path), leaf))
  return located


def _items(trees: dict[str, Any]) -> dict[str, dict[str, Any]]:
  """{item: {path: leaf}}: flat, so that neither a class nor a version of optax is in the files."""
  items: dict[str, dict[str, Any]] = {}
  for name, tree in trees.items():
    for item, path, leaf in _located(name, tree):
      items.setdefault(item, {})[path] = leaf
  return items


def _leaves(tree: Any) -> dict[str, Any]:
  return {_path(path): leaf for path, leaf in jax.tree.flatten_with_path(tree)[0]}


def _path(keys) -> str:
  return jax.tree_util.keystr(keys, simple=True, separator="/")


def _described(items: dict[str, dict[str, Any]]) -> dict[str, Leaves]:
  return {
    item: {path: (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves.items()}
    for item, leaves in items.items()
  }

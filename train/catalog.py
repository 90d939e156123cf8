"""Which checkpoints of a folder exist, which is restored, and which may go; files and JSON only."""

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from absl import logging

from train import manifest as manifests
from train.manifest import Leaves, Manifest

SAVING = ".saving"
WEIGHTS_ALONE = "it holds weights alone"


class CheckpointError(OSError):
  """A checkpoint could not be written, or none could be read; what was saved is untouched."""


class Catalog:
  """The step folders of one directory. Only `add`, `clean` and `choose` by its owner change it.

  A full step can be restarted from. One in `average_steps` stays as weights alone, the items
  `*.params`, once retention lets go of the rest.
  """

  def __init__(
    self,
    directory: os.PathLike,
    *,
    keep_last: int | None,
    keep_every: int | None,
    average_steps: Collection[int],
    verify: bool,
  ):
    if keep_last is not None and keep_last < 1:
      raise ValueError(f"keep_last={keep_last}; at least 1 checkpoint must stay to restart from.")
    self.directory = Path(os.path.abspath(directory))
    self._keep_last = keep_last
    self._keep_every = keep_every
    self._average_steps = frozenset(average_steps)
    self._verify = verify

  def manifest(self, step: int) -> Manifest:
    """The manifest of `step`; raises CheckpointError where there is no valid one."""
    try:
      return manifests.read(self.directory / str(step))
    except ValueError as fault:
      raise CheckpointError(f"no checkpoint {step} in {self.directory}: {fault}.") from None

  def manifests(self) -> dict[int, Manifest]:
    """{step: manifest} of all valid steps, newest first."""
    found = {}
    for step in self._named():
      try:
        found[step] = manifests.read(self.directory / str(step))
      except ValueError:
        continue
    return found

  def latest(self) -> int | None:
    """The newest full step, or None in a folder without steps; see `Checkpointer.latest`."""
    full = [step for step, manifest in self.manifests().items() if manifest.is_full]
    if not full and self._named():
      raise CheckpointError(
        f"{self.directory} holds the steps {self._named()}, and a run can restart from none of "
        "them: a manifest is damaged, or only weights are left. Restore the folder from a copy, "
        "or start in another workdir."
      )
    return max(full, default=None)

  def is_new(self, step: int) -> bool:
    """Whether `step` is not saved yet; raises ValueError where a later one is."""
    newest = max((s for s, m in self.manifests().items() if m.is_full), default=-1)
    if step < newest:
      raise ValueError(
        f"step {step} is to be saved in {self.directory}, which holds the later step {newest}; "
        "use another workdir, or move the later steps away."
      )
    return step > newest

  def staging(self, name: str) -> Path:
    """Where a step is written before it exists."""
    return self.directory / SAVING / name

  def clean(self) -> int:
    """Deletes what a killed save left, which by its place was never a checkpoint."""
    shutil.rmtree(self.directory / SAVING, ignore_errors=True)
    return 0

  def add(self, folder: Path, body: Manifest) -> None:
    """Makes the complete files in a staging `folder` the step of `body`, then applies retention."""
    files = manifests.hash_files(folder)
    manifests.write(folder, Manifest(body.step, body.items, files, body.extra))
    final = self.directory / str(body.step)
    if final.exists():
      self._replace(final)
    os.rename(folder, final)
    manifests.sync_folder(self.directory)
    self._prune()

  def choose(self, wanted: dict[str, Leaves], step: int | None, *, full: bool, owner: bool) -> int:
    """The newest step that is whole, or `step` if it is; the owner sets aside newer, corrupt ones.

    Args:
      wanted: {item: leaves} that the step must have, and no other leaf in these items.
      step: None for any.
      full: whether the step must be one to restart from.
      owner: whether this is the run that writes here; a reader changes nothing.

    Raises:
      ValueError: the step has other leaves, shapes or dtypes.
      CheckpointError: no step is whole. Nothing is set aside in either case.
    """
    faults = {}
    for candidate in self._named() if step is None else [step]:
      folder = self.directory / str(candidate)
      try:
        manifest = manifests.read(folder)
      except ValueError as error:
        faults[candidate] = str(error)
        continue
      if full and not manifest.is_full:
        faults[candidate] = WEIGHTS_ALONE
        continue
      self._check_fits(candidate, manifest, wanted)
      fault = manifests.find_fault(folder, manifest) if self._verify else None
      if fault is None:
        break
      faults[candidate] = fault
    else:
      raise CheckpointError(
        f"no checkpoint in {self.directory} can be restored"
        + "".join(f"; {candidate}: {fault}" for candidate, fault in faults.items())
        + ". Restore the folder from a copy, or start in another workdir."
      )
    for corrupt, fault in faults.items():
      if owner and fault != WEIGHTS_ALONE:
        _set_aside(self.directory / str(corrupt), fault)
      else:
        logging.warning("Checkpoint %d in %s is passed over: %s.", corrupt, self.directory, fault)
    if owner:
      self.clean()
    return candidate

  def _check_fits(self, step: int, manifest: Manifest, wanted: dict[str, Leaves]) -> None:
    for item, leaves in wanted.items():
      saved = manifest.items.get(item, {})
      for path in saved | leaves:
        there = _format(saved[path]) if path in saved else "absent"
        here = _format(leaves[path]) if path in leaves else "absent"
        if there != here:
          raise ValueError(
            f"checkpoint {step} in {self.directory} does not fit: leaf {item}/{path} is {there} "
            f"there and {here} here. Use the config that it was saved with, or another workdir."
          )

  def _replace(self, final: Path) -> None:
    """Moves what has the name of the new step out of its way: into `.saving` if it was a step."""
    try:
      manifests.read(final)
    except ValueError as fault:
      _set_aside(final, str(fault))
    else:
      self._delete(final)

  def _delete(self, folder: Path) -> None:
    """Deletes a step so that a kill leaves it whole or nameless."""
    trash = self.directory / SAVING / f"{folder.name}.deleted"
    trash.parent.mkdir(exist_ok=True)
    os.rename(folder, trash)
    shutil.rmtree(trash)

  def _prune(self) -> None:
    """Applies retention; only called once a new step has its manifest."""
    steps = self.manifests()
    full = sorted(s for s, m in steps.items() if m.is_full)
    if self._keep_last is None or not full:
      return
    keep = set(full[-self._keep_last :])
    keep |= {s for s in full if self._keep_every and s % self._keep_every == 0}
    for step in steps.keys() - keep:
      folder = self.directory / str(step)
      if step in self._average_steps:
        self._keep_weights(folder, steps[step])
      else:
        self._delete(folder)

  def _keep_weights(self, folder: Path, manifest: Manifest) -> None:
    """Leaves the weights alone: first a manifest without the rest, then the rest goes."""
    weights = manifest.weights_alone()
    if manifest.is_full:
      manifests.write(folder, weights)
    for entry in folder.iterdir():
      if entry.name not in {*weights.items, manifests.NAME}:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

  def _named(self) -> list[int]:
    """The steps that have a folder, valid or not, newest first."""
    if not self.directory.is_dir():
      return []
    return sorted(
      (int(p.name) for p in self.directory.iterdir() if p.name.isdecimal()), reverse=True
    )


def _set_aside(folder: Path, fault: str) -> None:
  n = 1
  while (aside := folder.with_name(f"{folder.name}.corrupt-{n}")).exists():
    n += 1
  os.rename(folder, aside)
  logging.warning("Checkpoint %s is corrupt (%s) and set aside as %s.", folder, fault, aside.name)


def _format(leaf: tuple[tuple[int, ...], str]) -> str:
  shape, dtype = leaf
  return f"{dtype}{list(shape)}"

"""Breaks the code on purpose, a line at a time, and shows which test notices.

    python -m tests.mutants              # every breakage below; exit 1 if one survives
    python -m tests.mutants --only mask  # those with "mask" in their name
    python -m tests.mutants --list

Each breakage is applied to a copy of the tree, in which its tests are then run. It is killed when
one of them fails; that an import breaks, or that the run hangs, does not count. First of all the
same tests must pass on a copy that is whole.
"""

import argparse
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("configs", "data", "model", "train", "tests", ".pytest.ini", "setup.py")
TIMEOUT_SECONDS = 300


@dataclasses.dataclass(frozen=True)
class Breakage:
  """One line made wrong.

  Attributes:
    name: short and unique.
    file: relative to the repository.
    old: a part of a line that occurs in the file exactly once.
    new: what stands there instead.
    why: what that breaks.
    tests: the tests (pytest node ids without parameters) of which one must fail.
  """

  name: str
  file: str
  old: str
  new: str
  why: str
  tests: tuple[str, ...]


def breakage(name: str, file: str, old: str, new: str, why: str, *tests: str) -> Breakage:
  return Breakage(name, file, old, new, why, tests)


BREAKAGES = (
  # Attention.
  breakage(
    "causal-mask", "model/attention_reference.py",
    "seen_LM = age_LM >= 0", "seen_LM = age_LM >= -1",
    "a token sees the next one",
    "tests/test_attention.py::test_nothing_comes_from_the_future",
  ),
  breakage(
    "segment-mask", "model/attention_reference.py",
    "(q_ids_BL[:, :, None] == kv_ids_BM[:, None, :])",
    "(q_ids_BL[:, :, None] >= kv_ids_BM[:, None, :])",
    "a document sees those before it in its row",
    "tests/test_attention.py::test_nothing_crosses_documents",
  ),
  breakage(
    "window-mask", "model/attention_reference.py",
    "age_LM < sliding_window", "age_LM <= sliding_window",
    "the window is one key too long",
    "tests/test_attention.py::test_window_and_softcap_match_float64",
  ),
  breakage(
    "context-offset", "model/attention.py",
    'jax.lax.axis_index("context") * q_BLNK.shape[1]', 'jax.lax.axis_index("context") * 0',
    "queries sharded over context take themselves for the row's first",
    "tests/test_attention.py::test_sharded_equals_unsharded",
  ),
  breakage(
    "online-softmax", "model/attention_chunked.py",
    "shrink_BGRl = jnp.exp(max_BGRl - new_max_BGRl)", "shrink_BGRl = jnp.ones_like(max_BGRl)",
    "what was summed under an older maximum is not scaled down",
    "tests/test_attention.py::test_matches_float64",
  ),
  breakage(
    "softmax-gradient", "model/attention_chunked.py",
    "(dp_BGRlm - delta_BGRl[..., None])", "dp_BGRlm",
    "the gradient of the softmax lacks its second term",
    "tests/test_attention.py::test_matches_float64",
  ),
  # The batch and its order.
  breakage(
    "target-shift", "data/batch.py",
    'batch["targets"][at] = segment.ids[1:]', 'batch["targets"][at] = segment.ids[:-1]',
    "each token is to predict itself",
    "tests/test_packing.py::test_layout_of_a_row",
  ),
  breakage(
    "positions-restart", "data/batch.py",
    'batch["positions"][at] = np.arange(segment.length)',
    'batch["positions"][at] = np.arange(start, start + segment.length)',
    "positions count through the row and not through the document",
    "tests/test_packing.py::test_layout_of_a_row",
  ),
  breakage(
    "context-weight", "data/batch.py",
    "np.arange(segment.length) >= segment.context", "np.arange(segment.length) >= 0",
    "context that was read again is scored again",
    "tests/test_packing.py::test_layout_of_a_row",
  ),
  breakage(
    "split-overlap", "data/packing.py",
    "ids[offset : offset + seq_len + 1]", "ids[offset : offset + seq_len]",
    "a document that is cut loses a target at each cut",
    "tests/test_packing.py::test_rows_hold_every_token_once_and_keep_their_bounds",
  ),
  breakage(
    "max-segments", "data/packing.py",
    "len(row) == self.max_segments", "len(row) > self.max_segments",
    "a row holds more documents than the kernels were promised",
    "tests/test_packing.py::test_rows_hold_every_token_once_and_keep_their_bounds",
  ),
  breakage(
    "stream-stride", "data/streams.py",
    "divmod(position * self.streams + stream, size)", "divmod(position * self.streams, size)",
    "all streams read the same documents",
    "tests/test_loader.py::test_streams_together_take_each_document_once_an_epoch",
  ),
  breakage(
    "cursor-offset", "data/streams.py",
    '"offset": self._offset,', '"offset": 0,',
    "a restart inside a long document packs its first part twice",
    "tests/test_loader.py::test_a_restart_at_any_step_on_other_hosts_goes_on_with_the_same_batches",
  ),
  breakage(
    "cursor-bins", "data/streams.py",
    "for row in self._packer.bins],", "for row in self._packer.bins[1:]],",
    "a restart forgets the documents of an open bin",
    "tests/test_loader.py::test_a_restart_at_any_step_on_other_hosts_goes_on_with_the_same_batches",
  ),
  breakage(
    "row-order", "data/loader.py",
    'np.argsort(np.concatenate([part["streams"] for part in parts]), kind="stable")',
    'np.arange(sum(len(part["streams"]) for part in parts))',
    "the order of rows depends on the number of workers",
    "tests/test_loader.py::"
    "test_a_restart_in_worker_processes_that_share_the_streams_unevenly",
  ),
  # Evaluation and deduplication.
  breakage(
    "heldout-once", "data/heldout.py",
    "context=scored - start)", "context=0)",
    "tokens in the overlap of two windows are scored twice",
    "tests/test_heldout.py::test_windows_score_each_target_once_with_enough_context",
  ),
  breakage(
    "heldout-count", "data/heldout.py",
    "num_tokens += len(tokens) + 1", "num_tokens += len(tokens)",
    "the end of a document is scored and not counted",
    "tests/test_heldout.py::test_evaluation_rows_hold_every_token_and_byte",
  ),
  breakage(
    "dedup-verified", "data/dedup.py",
    "]) >= threshold", "]) >= 0",
    "a candidate counts as a duplicate without a look",
    "tests/test_documents.py::test_planted_near_duplicates",
  ),
  # Averages and checkpoints.
  breakage(
    "window-start", "train/average.py",
    "(step > window_start(total_steps, fraction))", "(step >= window_start(total_steps, fraction))",
    "the mean takes a snapshot from before its window",
    "tests/test_average.py::test_snapshots_are_multiples_in_the_window_and_the_end",
  ),
  breakage(
    "average-division", "train/average.py",
    "/ np.float32(count)", "/ np.float32(len(steps))",
    "the mean of the files is no mean",
    "tests/test_average.py::test_equals_the_running_mean_and_the_exact_one",
  ),
  breakage(
    "flipped-bit", "train/manifest.py",
    "if _hash_file(folder / name, sync=False)[1] != digest:", "if not digest:",
    "a checkpoint of the right size and wrong bits is restored",
    "tests/test_checkpoint.py::test_a_flipped_bit_in_any_file_is_noticed",
  ),
  breakage(
    "retention", "train/catalog.py",
    "keep = set(full[-self._keep_last :])", "keep = set(full[: self._keep_last])",
    "the oldest checkpoints stay and the newest goes",
    "tests/test_checkpoint.py::test_retention_keeps_the_newest_every_nth_and_the_windows_weights",
  ),
  # What a run says about itself.
  breakage(
    "metrics-truncation", "train/metrics.py",
    "if current <= step:", "if current < step:",
    "a restart loses the line of the checkpoint's own step",
    "tests/test_metrics.py::test_a_restart_cuts_back_to_the_checkpoint",
  ),
  breakage(
    "metrics-torn-line", "train/metrics.py",
    'if not text.endswith("\\n"):', "if not text:",
    "half a line at the end makes the rest unreadable",
    "tests/test_metrics.py::test_a_torn_last_line_is_left_out_and_garbage_elsewhere_named",
  ),
  breakage(
    "fetch-stalls", "train/metrics.py",
    "return self._pop(self._depth)", "return self._pop(0)",
    "every step waits for its own metrics",
    "tests/test_metrics.py::test_pending_returns_steps_in_order_and_late",
  ),
  breakage(
    "ledger-nesting", "train/monitor.py",
    "self._switch(outer)", 'self._switch("other")',
    "after an inner context the outer one's time goes to nobody",
    "tests/test_monitor.py::test_the_ledger_adds_up_with_nested_contexts_and_exceptions",
  ),
  breakage(
    "flops-padding", "train/monitor.py",
    "[:, 1:].astype(np.float64)", "[:, 0:].astype(np.float64)",
    "padding counts as attention, and MFU is too high",
    "tests/test_monitor.py::test_attention_flops_of_packed_rows",
  ),
  breakage(
    "virtual-devices", "train/monitor.py",
    "count = jax.process_count()", "count = jax.device_count()",
    "virtual devices multiply a peak that they share",
    "tests/test_monitor.py::test_virtual_cpu_devices_share_one_measured_peak",
  ),
  breakage(
    "exposed-communication", "train/profiler.py",
    "covered(collectives + compute) - covered(compute)", "covered(collectives)",
    "communication behind computation counts as exposed",
    "tests/test_monitor.py::"
    "test_communication_is_the_union_of_collectives_and_exposed_where_nothing_computes",
  ),
)  # fmt: skip


def copy_tree(folder: Path) -> None:
  """Copies what the tests need of the repository into `folder`."""
  for name in COPIED:
    source = ROOT / name
    if source.is_dir():
      shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    else:
      shutil.copy2(source, folder / name)


def apply(breakage: Breakage, folder: Path) -> None:
  """Breaks the copy in `folder`. Raises ValueError unless `old` occurs exactly once."""
  path = folder / breakage.file
  text = path.read_text(encoding="utf-8")
  count = text.count(breakage.old)
  if count != 1:
    raise ValueError(
      f"breakage {breakage.name!r}: {breakage.old!r} occurs {count} times in {breakage.file}; "
      "bring it in line with the code, so that it occurs once."
    )
  path.write_text(text.replace(breakage.old, breakage.new), encoding="utf-8")


def run_tests(tests: Iterable[str], folder: Path) -> tuple[str | None, str]:
  """Runs tests in a copy until one fails: its node id, or None, and the output."""
  try:
    done = subprocess.run(
      [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider", *tests],
      cwd=folder,
      env=os.environ | {"PYTHONPATH": str(folder)},
      capture_output=True,
      text=True,
      timeout=TIMEOUT_SECONDS,
    )
  except subprocess.TimeoutExpired:
    return None, f"no end after {TIMEOUT_SECONDS} seconds"
  failed = re.search(r"^(?:FAILED|ERROR) (\S+::\S+)", done.stdout, re.MULTILINE)
  if failed:
    return failed[1], done.stdout
  return None, "" if done.returncode == 0 else done.stdout + done.stderr


def killer(breakage: Breakage) -> tuple[str | None, str]:
  """The test that fails on a broken copy, or None; and what was printed where that is odd."""
  with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
    copy_tree(Path(folder))
    try:
      apply(breakage, Path(folder))
    except ValueError as error:
      return None, str(error)
    return run_tests(breakage.tests, Path(folder))


def check_whole(breakages: Sequence[Breakage]) -> None:
  """Raises RuntimeError unless all the tests pass on a whole copy."""
  tests = list(dict.fromkeys(test for breakage in breakages for test in breakage.tests))
  with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
    copy_tree(Path(folder))
    failed, output = run_tests(tests, Path(folder))
  if failed or output:
    raise RuntimeError(f"the tests don't pass on code that is whole:\n{output}")


def main(argv: Sequence[str] | None = None) -> int:
  """Returns 0 if every breakage is killed, 1 otherwise."""
  parser = argparse.ArgumentParser(
    prog="python -m tests.mutants",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--only", metavar="PART", default="", help="of the breakages' names")
  parser.add_argument("--list", action="store_true", help="name the breakages, and end")
  parser.add_argument("--jobs", type=int, default=1, help="how many to try at a time")
  args = parser.parse_args(argv)
  chosen = [b for b in BREAKAGES if args.only in b.name]
  if args.list or not chosen:
    print("\n".join(f"{b.name:24}{b.file}: {b.why}" for b in chosen) or "No such breakage.")
    return 0 if chosen else 1
  start, survivors = time.monotonic(), []
  try:
    check_whole(chosen)
    with ThreadPoolExecutor(args.jobs) as pool:
      for each, (test, output) in zip(chosen, pool.map(killer, chosen), strict=True):
        if test is None:
          survivors.append(each.name)
        verdict = f"killed by {test}" if test else f"SURVIVES {', '.join(each.tests)}"
        print(f"{each.name} ({each.why}): {verdict}", flush=True)
        if output and not test:
          print(output)
  except RuntimeError as error:
    print(error, file=sys.stderr)
    return 1
  seconds = time.monotonic() - start
  print(f"{len(chosen)} breakages, {len(chosen) - len(survivors)} killed, in {seconds:.0f} s.")
  if survivors:
    print(f"Survived: {', '.join(survivors)}.")
  return 1 if survivors else 0


if __name__ == "__main__":
  sys.exit(main())

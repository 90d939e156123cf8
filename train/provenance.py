"""Which documents a row was made of, and which steps saw a document.

  python -m train.provenance runs/quickstart --step 300 --row 2
  python -m train.provenance runs/quickstart --document docs:17
  python -m train.provenance runs/quickstart --containing 'some words of it'

Both ways replay the one stream that is asked about, from the nearest checkpoint that holds its
cursor. A document is named as SOURCE:INDEX, as the first of these prints it.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data import data_log, sources
from data.batch import Segment
from data.config import DataConfig, parse
from data.mixture import Mixture, make_mixture
from data.streams import Cursor, Stream
from data.tokenizer import Tokenizer
from train.catalog import Catalog
from train.workdir import CONFIG

BAD_INPUT = 2


@dataclasses.dataclass(frozen=True)
class History:
  """What is needed to replay a run's data.

  Attributes:
    cursors: {step: the streams' cursors after that many batches}, of the checkpoints.
  """

  config: DataConfig
  mixture: Mixture
  tokenizer: Tokenizer
  cursors: Mapping[int, Mapping[str, Cursor]]

  @property
  def rows_a_step(self) -> int:
    """Rows of each stream in a batch."""
    return self.config.batch_size // self.config.streams


@dataclasses.dataclass(frozen=True)
class Part:
  """A document, or a part of one, in a row.

  Attributes:
    source, index: the document among those to train on.
    file, start, stop: where it lies: bytes, or the number of a record and the next one's.
    offset, tokens: which of its ids the row has: the first, and how many.
  """

  source: str
  index: int
  file: str
  start: int
  stop: int
  offset: int
  tokens: int


@dataclasses.dataclass(frozen=True)
class Sighting:
  """That a step saw a document, in part or whole; `outcome` says what became of it otherwise."""

  epoch: int
  step: int | None
  row: int | None
  outcome: str


def open_history(workdir: Path) -> History:
  """The history of the run in `workdir`.

  Raises:
    ValueError: it is no run of a recipe with packed documents, or its documents have changed.
  """
  path = workdir / CONFIG
  if not path.exists():
    raise ValueError(f"{workdir} holds no run: there is no {CONFIG}.")
  recipe = json.loads(path.read_text())
  if "sources" not in recipe.get("data", {}):
    raise ValueError(f"the run in {workdir} has no data.sources to go back to.")
  config = parse(DataConfig, recipe["data"], "data")
  corpus = sources.open_saved_corpus(config, workdir)
  tokenizer = sources.open_tokenizer(config, corpus, workdir)
  mixture = make_mixture(config, corpus, tokenizer, recipe["seed"], data_log.read(workdir))
  kept = {"keep_last": None, "keep_every": None, "average_steps": (), "verify": False}
  manifests = Catalog(workdir / "checkpoints", **kept).manifests()  # which are only looked at
  cursors = {s: m.extra["cursors"] for s, m in manifests.items() if m.extra.get("cursors")}
  for saved in cursors.values():
    if any(cursor["fingerprint"] != mixture.fingerprint for cursor in saved.values()):
      raise ValueError(
        f"the documents or the tokenizer of {workdir} are no longer those that it was trained on; "
        "restore the files."
      )
  return History(config, mixture, tokenizer, cursors)


def row_parts(history: History, step: int, row: int) -> list[Part]:
  """The documents in row `row`, from 0, of the batch of step `step`, from 1.

  Raises:
    ValueError: there is no such row.
  """
  if step < 1 or not 0 <= row < history.config.batch_size:
    raise ValueError(
      f"step {step}, row {row}: steps count from 1 and rows from 0 to "
      f"{history.config.batch_size - 1}."
    )
  each = history.rows_a_step
  stream, within = divmod(row, each)
  wanted = (step - 1) * each + within
  for number, segments, _ in _replay(history, stream, lambda cursor: cursor["rows"] <= wanted):
    if number == wanted:
      return [_part(history.mixture, stream, segment) for segment in segments]
  raise AssertionError("a stream is endless")


def sightings(history: History, source: str, index: int) -> Iterator[Sighting]:
  """Where each epoch so far had a document, in order; the last entries may be still to come.

  Raises:
    ValueError: there is no such document, or the run has no checkpoint yet.
  """
  mixture = history.mixture
  if source not in mixture.names:
    raise ValueError(f"no source is named {source!r}; there are {', '.join(mixture.names)}.")
  number = mixture.names.index(source)
  size = len(mixture.documents[number])
  if not 0 <= index < size:
    raise ValueError(f"{source} has the documents 0 to {size - 1}, not {index}.")
  if not history.cursors:
    raise ValueError("the run has no checkpoint yet, so no step of it is known to be kept.")
  last = max(history.cursors)
  taken = {}  # positions of each stream; one whose document is packed in part was seen as well
  for stream, cursor in history.cursors[last].items():
    taken[int(stream)] = cursor["positions"][number] + (number in cursor["partial"][:1])
  for epoch in range(max(taken.values()) * mixture.streams // size + 1):
    stream, position = mixture.places(number, index, epoch)
    if position < taken[stream]:
      yield from _seen(history, number, stream, position, epoch, last * history.rows_a_step)


def _seen(history, source, stream, position, epoch, trained_rows) -> Iterator[Sighting]:
  found = False

  def before(cursor):  # nothing of the document was taken yet
    taken = cursor["positions"][source]
    return taken < position or (taken == position and not cursor["partial"])

  for number, segments, after in _replay(history, stream, before):
    here = [s.reference[2] for s in segments if s.reference[:2] == (source, position)]
    waiting = any((source, position) == (r[0], r[1]) for bin in after["bins"] for r in bin)
    if number >= trained_rows:
      if not found:
        yield Sighting(epoch, None, None, "waits in an open row")
      return
    if here:
      found = True
      step, within = divmod(number, history.rows_a_step)
      row = stream * history.rows_a_step + within
      yield Sighting(epoch, step + 1, row, f"from its token {here[0]}")
    if after["positions"][source] > position and not waiting:
      if not found:
        yield Sighting(epoch, None, None, "left out by data.min_tokens or data.max_tokens")
      return


def _replay(history, stream, may_start) -> Iterator[tuple[int, list[Segment], Cursor]]:
  """Yields (number of the row in the stream, its segments, the cursor after it)."""
  starts = [saved[str(stream)] for _, saved in sorted(history.cursors.items())]
  start = next((cursor for cursor in reversed(starts) if may_start(cursor)), None)
  rows = Stream(history.mixture, history.tokenizer, history.config, stream, start)
  number = start["rows"] if start else 0
  for segments in rows:
    yield number, segments, rows.cursor()
    number += 1


def _part(mixture: Mixture, stream: int, segment: Segment) -> Part:
  source, position, offset = segment.reference
  index = mixture.document(source, stream, position)
  documents = mixture.documents[source]
  file, start, stop = documents.places([index])[0].tolist()
  name = documents.files.paths[file]
  return Part(mixture.names[source], index, name, start, stop, offset, segment.length)


def find(mixture: Mixture, text: str) -> Iterator[tuple[str, int]]:
  """The (source, index) of the documents that contain `text`."""
  for name, documents in zip(mixture.names, mixture.documents, strict=True):
    for index in range(len(documents)):
      if text in documents.read([index])[0]:
        yield name, index


def _print_row(history: History, step: int, row: int, as_json: bool) -> None:
  for part in row_parts(history, step, row):
    if as_json:
      print(json.dumps(dataclasses.asdict(part)))
    else:
      end = part.offset + part.tokens - 1
      print(
        f"{part.source}:{part.index}  tokens {part.offset}-{end}  "
        f"{part.file} [{part.start}:{part.stop}]"
      )


def _print_sightings(history: History, source: str, index: int, as_json: bool) -> None:
  found = list(sightings(history, source, index))
  if not found and not as_json:
    print(f"{source}:{index}  no step up to {max(history.cursors)} saw it")
  for seen in found:
    if as_json:
      record: dict[str, Any] = {"source": source, "index": index} | dataclasses.asdict(seen)
      print(json.dumps(record))
    else:
      where = (
        seen.outcome
        if seen.step is None
        else f"step {seen.step}, row {seen.row}, " + (seen.outcome)
      )
      print(f"{source}:{index}  epoch {seen.epoch}: {where}")


def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m train.provenance",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("run", type=Path, help="the folder of a run")
  parser.add_argument("--step", type=int, help="a training step, from 1")
  parser.add_argument("--row", type=int, default=0, help="a row of its batch, from 0")
  parser.add_argument("--document", help="SOURCE:INDEX: which steps saw it")
  parser.add_argument("--containing", help="which steps saw the documents with this text")
  parser.add_argument("--json", action="store_true", help="a JSON object a line")
  arguments = parser.parse_args(argv)
  asked = [arguments.step, arguments.document, arguments.containing]
  try:
    if sum(a is not None for a in asked) != 1:
      raise ValueError("name one of --step, --document and --containing.")
    history = open_history(arguments.run)
    if arguments.step is not None:
      _print_row(history, arguments.step, arguments.row, arguments.json)
    elif arguments.document is not None:
      source, _, index = arguments.document.rpartition(":")
      if not index.isdigit():
        raise ValueError(f"--document={arguments.document} must be SOURCE:INDEX.")
      _print_sightings(history, source, int(index), arguments.json)
    else:
      for source, index in find(history.mixture, arguments.containing):
        _print_sightings(history, source, index, arguments.json)
  except (OSError, ValueError) as error:
    print(f"error: {error}", file=sys.stderr)
    return BAD_INPUT
  return 0


if __name__ == "__main__":
  sys.exit(main())

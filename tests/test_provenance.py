"""From a row back to its documents, and from a document to the steps that saw it."""

import collections
import dataclasses
import json

import pytest

from data import sources
from tests.test_batches import SEED, read, run  # noqa: F401  (the fixture of three sources)
from train import manifest, provenance

STEPS = 10


@pytest.fixture(scope="module")
def history(run):  # noqa: F811
  config, mixture, tokenizer = run
  _, after = read(run, steps=STEPS)
  return provenance.History(config, mixture, tokenizer, {4: after[3], STEPS: after[-1]})


def test_a_row_is_made_of_the_documents_that_are_named(run, history):  # noqa: F811
  _, mixture, tokenizer = run
  batches, _ = read(run, steps=STEPS)
  for step in (1, 4, 5, STEPS):
    for row in (0, 7, 31):
      tokens = []
      for part in provenance.row_parts(history, step, row):
        source = mixture.names.index(part.source)
        (text,) = mixture.documents[source].read([part.index])
        assert part.file.endswith(f"{part.source}.jsonl")
        ids = [tokenizer.eot, *tokenizer.encode_batch([text])[0], tokenizer.eot]
        tokens += ids[part.offset : part.offset + part.tokens]
      found = batches[step - 1]["tokens"][row][batches[step - 1]["segment_ids"][row] > 0]
      assert found.tolist() == tokens


def test_every_step_that_saw_a_document_is_found(history):
  wanted = [("tiny", 2), ("tiny", 4), ("late", 3), *(("big", i) for i in range(6))]
  rows = collections.defaultdict(set)
  for step in range(1, STEPS + 1):
    for row in range(history.config.batch_size):
      for part in provenance.row_parts(history, step, row):
        rows[part.source, part.index].add((step, row))
  outcomes = set()
  begun = [  # documents longer than a row, of which the last checkpoint has seen a part
    (history.mixture.names[cursor["partial"][0]], int(stream), cursor["positions"])
    for stream, cursor in history.cursors[STEPS].items()
    if cursor["partial"]
  ]
  assert begun
  for source, stream, positions in begun:
    number = history.mixture.names.index(source)
    index = history.mixture.document(number, stream, positions[number])
    assert rows[source, index]
    wanted.append((source, index))
  for source, index in wanted:
    seen = list(provenance.sightings(history, source, index))
    assert {(s.step, s.row) for s in seen if s.step} == rows[source, index]
    outcomes |= {s.outcome for s in seen if not s.step}
    assert [s.epoch for s in seen] == sorted(s.epoch for s in seen)
  assert any("left out" in outcome for outcome in outcomes)


def make_run(run, folder, after):  # noqa: F811
  """The files of a run that the command reads: recipe, tokenizer, manifests of checkpoints."""
  config, _, _ = run
  folder.mkdir()
  recipe = {"seed": SEED, "data": dataclasses.asdict(config)}
  (folder / "config.json").write_text(json.dumps(recipe))
  sources.open_tokenizer(config, sources.open_corpus(config, folder), folder)
  for step, cursors in after.items():
    checkpoint = folder / "checkpoints" / str(step)
    checkpoint.mkdir(parents=True)
    manifest.write(checkpoint, manifest.Manifest(step, {}, {}, {"cursors": cursors}))


def test_the_command_reads_a_run(run, history, tmp_path, capsys):  # noqa: F811
  _, mixture, _ = run
  assert provenance.main([str(tmp_path), "--step", "1"]) == 2
  assert "holds no run" in capsys.readouterr().err
  whole, begun = tmp_path / "whole", tmp_path / "begun"
  make_run(run, whole, history.cursors)
  make_run(run, begun, {})
  (begun / "checkpoints").mkdir()
  for folder in (whole, begun):
    assert provenance.main([str(folder), "--step", "6", "--row", "3", "--json"]) == 0
    parts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert parts == [dataclasses.asdict(part) for part in provenance.row_parts(history, 6, 3)]
  (text,) = mixture.documents[0].read([5])
  for question in (["--document", "big:5"], ["--containing", text]):
    assert provenance.main([str(whole), *question, "--json"]) == 0
    seen = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(s["step"], s["row"]) for s in seen] == [
      (s.step, s.row) for s in provenance.sightings(history, "big", 5)
    ]
  early = tmp_path / "early"  # before the first document of that source
  make_run(run, early, {1: read(run, steps=1)[1][-1]})
  assert provenance.main([str(early), "--document", "late:3"]) == 0
  assert "late:3  no step up to 1 saw it" in capsys.readouterr().out
  for arguments, message in (
    (["--step", "0"], "steps count from 1"),
    (["--document", "big"], "must be SOURCE:INDEX"),
    (["--document", "none:1"], "no source is named 'none'"),
    (["--document", "big:99"], "has the documents 0 to"),
    (["--document", "big:1"], "no checkpoint yet"),
    ([], "name one of"),
  ):
    assert provenance.main([str(begun), *arguments]) == 2
    assert message in capsys.readouterr().err

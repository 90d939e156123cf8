"""From a row back to its documents, and from a document to the steps that saw it."""

import collections
import json

import pytest

from tests.test_loader import read, run  # noqa: F401  (the fixture of three sources)
from train import provenance

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
  rows = collections.defaultdict(set)
  for step in range(1, STEPS + 1):
    for row in range(history.config.batch_size):
      for part in provenance.row_parts(history, step, row):
        rows[part.source, part.index].add((step, row))
  outcomes = set()
  for source, index in [("tiny", 2), ("tiny", 4), ("late", 3), *(("big", i) for i in range(6))]:
    seen = list(provenance.sightings(history, source, index))
    assert {(s.step, s.row) for s in seen if s.step} == rows[source, index]
    outcomes |= {s.outcome for s in seen if not s.step}
    assert [s.epoch for s in seen] == sorted(s.epoch for s in seen)
  assert any("left out" in outcome for outcome in outcomes)


def test_the_command_reads_a_run(run, tmp_path, capsys, monkeypatch):  # noqa: F811
  config, mixture, tokenizer = run
  assert provenance.main([str(tmp_path), "--step", "1"]) == 2
  assert "holds no run" in capsys.readouterr().err
  monkeypatch.setattr(
    provenance, "open_history", lambda path: provenance.History(config, mixture, tokenizer, {})
  )
  assert provenance.main([str(tmp_path), "--step", "2", "--row", "3", "--json"]) == 0
  parts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert sum(part["tokens"] for part in parts) <= config.seq_len and parts
  for arguments, message in (
    (["--step", "0"], "steps count from 1"),
    (["--document", "big"], "must be SOURCE:INDEX"),
    (["--document", "none:1"], "no source is named 'none'"),
    (["--document", "big:99"], "has the documents 0 to"),
    (["--document", "big:1"], "no checkpoint yet"),
    ([], "name one of"),
  ):
    assert provenance.main([str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err

"""The corpus pipeline from end to end: the same bytes whatever happens, and nothing lost."""

import gzip
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs import corpus as recipe
from configs import quickstart_corpus
from data import array_records, corpus, dedup, files, plant, sources
from data.config import DataConfig, parse
from data.heldout import is_held_out

ROOT = Path(__file__).resolve().parent.parent
_WORDS = [
  "the",
  "be",
  "to",
  "of",
  "and",
  "that",
  "have",
  "with",
  "river",
  "stone",
  "winter",
  "market",
  "garden",
  "teacher",
  "letter",
  "window",
  "bridge",
  "morning",
  "village",
  "harbour",
  "captain",
  "library",
  "engine",
  "mountain",
  "forest",
  "kitchen",
  "doctor",
  "station",
  "paper",
  "carried",
  "opened",
  "followed",
  "remembered",
  "built",
  "painted",
  "measured",
  "answered",
  "crossed",
  "gathered",
]


def prose(seed, sentences=12):
  """Sentences that no quality rule objects to, other ones for each seed."""
  rng = random.Random(seed)
  lines = []
  for number in range(sentences):
    words = rng.choices(_WORDS, k=10)
    lines.append(f"The {' '.join(words)} in the year {seed * 100 + number}.".replace("  ", " "))
  return "\n".join(lines)


def write_jsonl(path, texts, **fields):
  path.parent.mkdir(parents=True, exist_ok=True)
  rows = (json.dumps({"text": t, **fields}, ensure_ascii=False) + "\n" for t in texts)
  path.write_text("".join(rows), encoding="utf-8")


def config_of(raw, **changes):
  """The recipe on `raw`/a and `raw`/b, without evaluation sets."""
  config = recipe.get_config(str(raw)).to_dict()
  stages = ("language", "gopher_quality", "privacy")
  source = {"format": None, "key": "text", "weight": 1.0, "stages": stages}
  config["sources"] = {n: {**source, "path": str(raw / n / "*")} for n in ("a", "b")}
  config["decontamination"]["sets"] = {}
  config["near_duplicates"]["parts"] = 1
  config.update(shard_bytes=1, workers=0)
  return config | changes


def make_raw(folder):
  """Two sources of several files with duplicates across them, and what is broken."""
  write_jsonl(folder / "a" / "1.jsonl", [prose(i) for i in range(6)], url="http://a/<b>&")
  write_jsonl(folder / "a" / "2.jsonl", [prose(3), prose(7), "short", prose(8) + "\nx@yahoo.com"])
  write_jsonl(folder / "b" / "1.jsonl", [prose(5), prose(9) + " More.", prose(9), "Zu kurz."])
  (folder / "b" / "2.txt").write_text(prose(10), encoding="utf-8")
  (folder / "b" / "empty.txt").write_bytes(b"")
  (folder / "b" / "latin.txt").write_bytes("très déjà vu".encode("latin-1"))
  (folder / "b" / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 9)[:-12])
  return folder


def outputs(workdir):
  """{name: hash} of all that a run publishes and that is to be reproducible."""
  found = [workdir / "manifest.json"]
  for folder in ("documents", "training", "heldout", "provenance"):
    found += sorted((workdir / folder).glob("*"))
  return {str(p.relative_to(workdir)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def provenance(workdir):
  return [
    row for path in sorted((workdir / "provenance").glob("*")) for row in files.read_jsonl(path)
  ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """(raw, workdir) of a run that was not disturbed."""
  folder = tmp_path_factory.mktemp("corpus")
  raw = make_raw(folder / "raw")
  assert corpus.run(config_of(raw), folder / "out") == corpus.DONE
  return raw, folder / "out"


def test_what_is_published_is_what_the_stages_kept(made):
  raw, out = made
  rows = provenance(out)
  kept = [row for row in rows if "record" in row]
  manifest = files.read_json(out / "manifest.json")
  documents = {}
  for path in sorted((out / "documents").glob("*")):
    documents |= {row["id"]: row for row in files.read_jsonl(path)}
  assert len(documents) == len(kept) == sum(s["documents"] for s in manifest["sources"].values())
  for row in kept:  # by record number, as training reads them
    (payload,) = array_records.read(str(out / row["shard"]), [row["record"]])
    assert dedup.content_hash(payload.decode()).hex() == row["hash"]
    assert documents[row["hash"]]["text"] == payload.decode()
    assert documents[row["hash"]]["path"] == row["path"]
  listed = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
  assert listed == {n: h for n, h in outputs(out).items() if n != "manifest.json"}
  # Every document that is in the files is accounted for, with its place.
  first = [row for row in rows if row["path"] == str(raw / "a" / "1.jsonl")]
  payload = (raw / "a" / "1.jsonl").read_bytes()
  assert len(first) == 6
  assert all(payload[row["offset"] :].startswith(b'{"text"') for row in first)
  assert first[0]["meta"]["url"] == "http://a/<b>&"


def test_the_quickstart_trains_on_it_by_its_manifest(made, tmp_path):
  _, out = made
  data = quickstart_corpus.get_config(str(out)).data.to_dict()
  opened = sources.open_corpus(parse(DataConfig, {**data, "heldout_fraction": 0.0}), tmp_path)
  manifest = files.read_json(out / "manifest.json")["sources"]
  assert {name: len(documents) for name, documents in opened.train.items()} == {
    name: source["training"]["documents"] for name, source in manifest.items()
  }
  assert {name: source["weight"] for name, source in data["sources"].items()} == {"a": 1, "b": 1}


def test_a_corpus_holds_out_what_training_would(made, tmp_path):
  raw, whole = made
  out = tmp_path / "out"
  assert corpus.run(config_of(raw, heldout_fraction=0.4), out) == corpus.DONE
  rows = [row for row in provenance(out) if "record" in row]
  by_part = {"training": [], "heldout": []}
  for row in rows:
    (payload,) = array_records.read(str(out / row["shard"]), [row["record"]])
    by_part[Path(row["shard"]).parent.name].append(payload.decode())
  assert all(is_held_out(text, 0.4) for text in by_part["heldout"])
  assert not any(is_held_out(text, 0.4) for text in by_part["training"])
  assert min(map(len, by_part.values())) > 0
  assert {r["hash"] for r in rows} == {r["hash"] for r in provenance(whole) if "record" in r}
  config = quickstart_corpus.get_config(str(out))
  opened = sources.open_corpus(parse(DataConfig, config.data.to_dict()), tmp_path)
  assert not opened.heldout
  trained = [text for d in opened.train.values() for text in d.read(range(len(d)))]
  assert sorted(trained) == sorted(by_part["training"])
  held = [sources.open_files(path, 0) for path in config.eval.sets.values()]
  assert sorted(t for d in held for t in d.read(range(len(d)))) == sorted(by_part["heldout"])


def test_of_duplicates_across_sources_the_smallest_hash_stays(made):
  _, out = made
  rows = [row for row in provenance(out) if "hash" in row]
  ends = {}
  for row in rows:
    reason = [d for d in row["decisions"] if "reason" in d]
    ends.setdefault(row["hash"], []).append(reason[0]["stage"] if reason else "kept")
  for copied in (prose(3), prose(5)):
    assert sorted(ends[dedup.content_hash(copied).hex()]) == ["exact_duplicate", "kept"]
  similar = sorted(dedup.content_hash(t).hex() for t in (prose(9), prose(9) + " More."))
  assert [ends[h] for h in similar] == [["kept"], ["near_duplicate"]]
  (removed,) = [row for row in rows if row["hash"] == similar[1]]
  assert removed["decisions"][-1]["detail"] == f"of {similar[0]}"


def test_what_is_broken_is_survived_and_counted(made):
  _, out = made
  report = files.read_json(out / "report.json")
  faults = report["sources"]["b"]["faults"]
  assert faults["invalid_utf8"] == 1
  assert faults["no_documents"] == 1  # the empty file
  assert sum(faults.values()) == 3
  reasons = {(r["stage"], r["reason"]): r["documents"] for r in report["reasons"]}
  assert reasons["gopher_quality", "gopher_short_doc"] >= 1
  assert report["changes"] == {"privacy": {"email": 1}}
  assert report["clusters"] == {"exact": {"2": 2}, "near": {"2": 1}}
  stages = ("read", "language", "gopher_quality", "privacy", "signature", "clusters")
  assert list(report["throughput"]) == [*stages, "decontamination", "write"]
  assert all(speed["documents_per_second"] > 0 for speed in report["throughput"].values())
  for source in report["sources"].values():  # what goes in comes out, or has a reason
    counts = [stage["documents"] for stage in source["passed"].values()]
    assert counts == sorted(counts, reverse=True)
  read, kept = (
    sum(list(s["passed"].values())[i]["documents"] for s in report["sources"].values())
    for i in (0, -1)
  )
  assert read - kept == sum(r["documents"] for r in report["reasons"] if r["stage"] != "read")


@pytest.mark.parametrize("how", ["workers", "order", "parts"])
def test_the_output_does_not_depend_on(how, made, tmp_path):
  raw, out = made
  config = config_of(raw)
  if how == "workers":
    config["workers"] = 2
  elif how == "order":
    config["sources"] = dict(reversed(config["sources"].items()))
    for path in sorted(raw.rglob("*.*"), reverse=True):  # made anew, the last one first
      payload, times = path.read_bytes(), path.stat()
      path.unlink()
      path.write_bytes(payload)
      os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
  else:
    config["near_duplicates"]["parts"] = 7
  assert corpus.run(config, tmp_path / "out") == corpus.DONE
  expected, found = outputs(out), outputs(tmp_path / "out")
  if how == "parts":  # the recipe is in the manifest
    del expected["manifest.json"], found["manifest.json"]
  assert found == expected


_COMMAND = """
import sys
from pathlib import Path
from data import corpus
from tests.test_corpus import config_of
if __name__ == "__main__":
  sys.exit(corpus.run(config_of(Path(sys.argv[1]), workers=int(sys.argv[3])), Path(sys.argv[2])))
"""


def start(raw, out, script, workers=1, before=()):
  script.write_text(_COMMAND)
  return subprocess.Popen(
    [*before, sys.executable, str(script), str(raw), str(out), str(workers)],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stderr=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    text=True,
  )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on_at_its_shard(number, tmp_path):
  for i in range(30):  # so that it is still at work when it is stopped
    write_jsonl(tmp_path / "raw" / "a" / f"{i:02d}.jsonl", [prose(i), prose(i + 1000)])
  write_jsonl(tmp_path / "raw" / "b" / "1.jsonl", [prose(2000)])
  out = tmp_path / "out"
  process = start(tmp_path / "raw", out, tmp_path / "run.py")
  deadline = time.monotonic() + 60
  finished = lambda: sorted((out / "work" / "documents").glob("*.json"))  # noqa: E731
  while len(finished()) < 3:
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.005)
  process.send_signal(number)
  _, message = process.communicate(timeout=30)
  assert process.returncode == (corpus.STOPPED if number == signal.SIGTERM else -number)
  if number == signal.SIGTERM:
    assert "goes on" in message
  before = {path: path.stat().st_mtime_ns for path in finished()}
  assert 3 <= len(before) < 31
  assert not (out / "manifest.json").exists()
  assert corpus.run(config_of(tmp_path / "raw"), out) == corpus.DONE
  assert {path: path.stat().st_mtime_ns for path in before} == before
  assert not list(out.rglob("*.partial"))
  assert corpus.run(config_of(tmp_path / "raw"), tmp_path / "straight") == corpus.DONE
  assert outputs(out) == outputs(tmp_path / "straight")


@pytest.mark.parametrize(("kilobytes", "file"), [(3, "plan.json"), (16, "training/")])
def test_a_full_disk_is_a_message_and_nothing_is_lost(kilobytes, file, made, tmp_path):
  raw, undisturbed = made
  limit = ("bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "-")  # a file
  process = start(raw, tmp_path / "out", tmp_path / "run.py", workers=0, before=limit)
  _, message = process.communicate(timeout=60)
  assert process.returncode == corpus.BAD_INPUT
  assert "Traceback" not in message
  assert f"error: {tmp_path / 'out'}/{file}" in message and "File too large" in message
  assert message.count("Is the disk full?") == 1 and "kept" in message
  assert corpus.run(config_of(raw), tmp_path / "out") == corpus.DONE
  assert outputs(tmp_path / "out") == outputs(undisturbed)


def test_a_finished_run_says_so_and_refuses_another_recipe(made, capsys, tmp_path):
  raw, out = made
  before = outputs(out)
  assert corpus.run(config_of(raw), out) == corpus.DONE
  assert outputs(out) == before
  other = config_of(raw)
  other["language"]["threshold"] = 0.5
  assert corpus.run(other, out) == corpus.BAD_INPUT
  assert "other values of language" in capsys.readouterr().err


def changed(config, path, value):
  *sections, key = path.split(".")
  for section in sections:
    config = config[section]
  config[key] = value


@pytest.mark.parametrize(
  ("path", "value", "says"),
  [
    ("sources.a.stages", ("languag",), "stage 'languag'"),
    ("sources.a.path", "/nowhere/*.jsonl", "sources.a.*matches no file"),
    ("sources.a.format", "docx", "docx"),
    ("sources.a.weight", 0.0, "weight=0.0"),
    ("sources.a.colour", "red", "unknown key `config.sources.a.colour`"),
    ("language.model", "/nowhere/lid.bin", "lid.bin"),
    ("near_duplicates.threshold", 1.5, "threshold=1.5"),
    ("decontamination.sets", {"x": {"reader": "hellaswagg", "path": "y"}}, "hellaswagg"),
    ("decontamination.sets", {"x": {"reader": "lines", "path": "/nowhere"}}, "/nowhere"),
    ("format", "csv", "format='csv'"),
    ("tokenizer", "/nowhere/tokenizer.json", "tokenizer.json"),
  ],
)
def test_mistakes_in_a_recipe_are_one_message(path, value, says, made, tmp_path, capsys):
  config = config_of(made[0])
  changed(config, path, value)
  assert corpus.run(config, tmp_path / "out") == corpus.BAD_INPUT
  message = capsys.readouterr().err
  assert re.search(says, message), message
  assert message.count("error:") == 1
  assert not (tmp_path / "out" / "work" / "documents").exists()


def test_two_runs_in_one_workdir_are_refused(made, tmp_path, capsys):
  with corpus._only_run(tmp_path):
    assert corpus.run(config_of(made[0]), tmp_path) == corpus.BAD_INPUT
  assert "another run" in capsys.readouterr().err


def test_no_text_of_a_document_is_markup_of_the_page(tmp_path):
  evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
  write_jsonl(tmp_path / "a" / "<b>.jsonl", [evil, evil + "2"], title=evil)
  write_jsonl(tmp_path / "b" / "x.jsonl", [prose(1)])
  assert corpus.run(config_of(tmp_path), tmp_path / "out") == corpus.DONE
  page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
  assert "&lt;script&gt;alert(1)" in page and "&lt;b&gt;.jsonl" in page
  assert "<script" not in page and "<img" not in page and "<b>." not in page


def test_parquet_for_people_has_the_same_documents(made, tmp_path):
  import pyarrow.parquet

  raw, out = made
  assert corpus.run(config_of(raw, format="parquet"), tmp_path) == corpus.DONE
  for path in sorted((out / "documents").glob("*")):
    rows = list(files.read_jsonl(path))
    parquet = tmp_path / "documents" / path.name.replace("jsonl.zst", "parquet")
    found = pyarrow.parquet.read_table(parquet).to_pylist()
    assert [{**row, "meta": json.loads(row["meta"])} for row in found] == rows
  assert {n: h for n, h in outputs(tmp_path).items() if n.startswith("training")} == {
    n: h for n, h in outputs(out).items() if n.startswith("training")
  }


def test_sources_without_documents_make_an_empty_corpus(tmp_path):
  for name in ("a", "b"):
    write_jsonl(tmp_path / name / "x.jsonl", ["short"])
  assert corpus.run(config_of(tmp_path), tmp_path / "out") == corpus.DONE
  assert files.read_json(tmp_path / "out" / "manifest.json")["sources"]["a"]["documents"] == 0
  assert not list((tmp_path / "out" / "training").glob("*"))


def test_planted_truth_comes_back(tmp_path):
  """Near-duplicates of 0.9: 98% or more, of 0.5: 2% or less; equal texts and leaks: all."""
  rng = random.Random(0)
  words = [f"{rng.choice(_WORDS)}{rng.choice('abcdefghij')}" for _ in range(200)] + _WORDS * 8
  texts = (" ".join(rng.choices(words, k=plant.PIECE_WORDS)) for _ in range(1500))
  config = config_of(tmp_path)
  config["sources"]["a"]["stages"] = ("privacy",)
  from data.minhash import MinHash

  size = MinHash(**config["minhash"])
  plants, items = plant.plant(list(plant.pieces(texts)), 50, 0, size)
  plant.write(plants, items, tmp_path)
  changed = plant.recipe(config, "a", tmp_path)
  assert corpus.run(changed, tmp_path / "out") == corpus.DONE
  scores = plant.score(tmp_path / "out", 13, 0.7, size)
  recall = {s.kind: s.found / s.planted for s in scores if s.planted}
  assert recall["equal texts"] == 1
  assert recall["similarity 0.95"] == 1
  assert recall["similarity 0.9"] >= 0.98
  assert recall["similarity 0.6"] <= 0.06  # 0.21 of them share a band
  assert recall["similarity 0.5"] <= 0.02
  assert recall["similarity 0.3"] == 0
  assert [recall[f"{n} words"] for n in (13, 14, 20, 40)] == [1] * 4
  assert [recall[f"{n} words (no leak)"] for n in (8, 12)] == [0, 0]
  assert [recall[kind] for kind in ("email", "phone", "ip")] == [1] * 3
  precision = {s.stage: s.precision for s in scores if s.precision is not None}
  assert precision["exact_duplicate"] == precision["decontamination"] == 1
  assert precision["near_duplicate"] > 0.8

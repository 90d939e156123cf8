"""Batch n is a pure function of (config, n): no host, worker, restart or prefetch changes it."""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data import data_log, sources, streams
from data.batch import document_ids
from data.batches import Loader
from data.config import DataConfig, SourceConfig
from data.mixture import Mixture, Weights, make_mixture, weights_of

SEED = 3
STEPS = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A config, its mixture and tokenizer: changing weights, a filter, several epochs."""
  folder = tmp_path_factory.mktemp("corpus")
  rng = np.random.default_rng(0)
  words = ["strait", "channel", "narrow", "water", "between", "two", "seas", "a", "of", "the"]
  for name, count in (("big", 61), ("late", 23), ("tiny", 7)):
    with (folder / f"{name}.jsonl").open("w") as file:
      for i in range(count):
        length = int(np.exp(rng.normal(2.5, 1)))
        text = " ".join([f"{name}{i}", *rng.choice(words, length)])
        file.write(json.dumps({"text": text}) + "\n")
  config = DataConfig(
    sources={
      "tiny": SourceConfig(str(folder / "tiny.jsonl"), 1.0),
      "big": SourceConfig(str(folder / "big.jsonl"), 3.0),
      # Not before step 2, and as much as the others together from step 7 on.
      "late": SourceConfig(str(folder / "late.jsonl"), 1.0, ((2, 0.0), (7, 4.0))),
    },
    tokenizer="train",
    vocab_size=300,
    eot="<|endoftext|>",
    seq_len=48,
    batch_size=32,
    streams=16,
    workers=0,
    prefetch=2,
    max_segments=4,
    open_bins=3,
    heldout_fraction=0.1,
    dedup_threshold=None,
    max_bad_lines=0,
    min_tokens=9,
    max_tokens=150,
  )
  corpus = sources.open_corpus(config, folder)
  tokenizer = sources.open_tokenizer(config, corpus, folder)
  return config, make_mixture(config, corpus, tokenizer, SEED), tokenizer


def read(run, *, hosts=1, workers=0, steps=STEPS, cursors=None, **changes):
  """The global batches and the merged cursors after each of them, hosts simulated in turn."""
  config, mixture, tokenizer = run
  config = dataclasses.replace(config, workers=workers, **changes)
  loaders = [
    Loader(config, mixture, tokenizer, host_index=h, host_count=hosts, cursors=cursors)
    for h in range(hosts)
  ]
  batches, after = [], []
  for _ in range(steps):
    parts = [next(loader) for loader in loaders]
    batches.append({k: np.concatenate([b[k] for b, _ in parts]) for k in parts[0][0]})
    after.append(dict(itertools.chain.from_iterable(c.items() for _, c in parts)))
  for loader in loaders:
    loader.close()
  return batches, after


def digest(batches):
  sha = hashlib.sha256()
  for batch in batches:
    for key in sorted(batch):
      sha.update(key.encode() + batch[key].tobytes())
  return sha.hexdigest()


@pytest.fixture(scope="module")
def straight(run):
  return read(run)


def slow_reference(run, steps):
  """The definition, document by document: whole permutations, lists for bins, no cursor."""
  config, mixture, tokenizer = run
  each = config.batch_size // config.streams

  @functools.cache
  def permutation(source, epoch):
    size = len(mixture.documents[source])
    name = f"{SEED}/{mixture.names[source]}/{epoch}".encode()
    seed = int.from_bytes(hashlib.blake2b(name, digest_size=4).digest(), "little")
    numbers = np.random.Philox(key=seed).random_raw(size).tolist()
    return sorted(range(size), key=lambda i: numbers[i])

  def weight(source, step):
    if mixture.names[source] != "late":
      return {"big": 3.0, "tiny": 1.0}[mixture.names[source]]
    return 4.0 * min(max((step - 2) / 5, 0), 1)

  def stream_documents(stream, emitted):
    def own_share(source):
      order = itertools.chain.from_iterable(permutation(source, e) for e in itertools.count())
      return itertools.islice(order, stream, None, config.streams)

    own = [own_share(source) for source in range(len(mixture.names))]
    for count in itertools.count():
      weights = [weight(source, emitted[0] // each) for source in range(3)]
      point, source = mixture.draw(stream, count) * sum(weights), 0
      while point >= weights[source]:
        point, source = point - weights[source], source + 1
      (text,) = mixture.documents[source].read([next(own[source])])
      ids = document_ids(tokenizer.encode_batch([text])[0], tokenizer.eot).tolist()
      if config.min_tokens <= len(ids) - 2 <= config.max_tokens:
        yield ids

  def stream_rows(stream):
    emitted = [0]
    for row in pack(stream_documents(stream, emitted)):
      emitted[0] += 1
      yield row

  def pack(documents):
    bins = []
    for ids in documents:
      parts = [ids[i : i + config.seq_len + 1] for i in range(0, len(ids) - 1, config.seq_len)]
      for part in parts:
        used = [sum(len(p) - 1 for p in b) for b in bins]
        places = [i for i, u in enumerate(used) if u + len(part) - 1 <= config.seq_len]
        if len(part) - 1 == config.seq_len:
          yield [part]
        elif places:
          best = max(places, key=lambda i: used[i])
          bins[best].append(part)
          full = used[best] + len(part) - 1 == config.seq_len
          if full or len(bins[best]) == config.max_segments:
            yield bins.pop(best)
        else:
          if len(bins) == config.open_bins:
            fullest = used.index(max(used))
            yield bins.pop(fullest)
          bins.append([part])

  rows = [stream_rows(v) for v in range(config.streams)]
  for _ in range(steps):
    batch = {k: [] for k in ("tokens", "targets", "segment_ids", "positions", "loss_weights")}
    for row in (next(rows[v]) for v in range(config.streams) for _ in range(each)):
      columns = [
        (p[i], p[i + 1], number, i, 1)
        for number, p in enumerate(row, start=1)
        for i in range(len(p) - 1)
      ]
      columns += [(0,) * 5] * (config.seq_len - len(columns))
      for values, key in zip(zip(*columns, strict=True), batch, strict=True):
        batch[key].append(values)
    yield {
      k: np.array(v, np.float32 if k == "loss_weights" else np.int32) for k, v in batch.items()
    }


def test_equals_the_slow_reference(run, straight):
  for step, (got, expected) in enumerate(zip(straight[0], slow_reference(run, STEPS), strict=True)):
    for key in expected:
      np.testing.assert_array_equal(got[key], expected[key], err_msg=f"{key} of batch {step}")


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_no_host_count_changes_a_batch(run, straight, hosts):
  batches, cursors = read(run, hosts=hosts)
  assert digest(batches) == digest(straight[0])
  assert cursors == straight[1]


MORE = [
  pytest.param(hosts, workers, marks=pytest.mark.slow)
  for hosts, workers in [(1, 1), (1, 4), (2, 2), (4, 3)]
]


@pytest.mark.parametrize(("hosts", "workers"), [(2, 1), *MORE])
def test_no_worker_count_changes_a_batch(run, straight, hosts, workers):
  batches, cursors = read(run, hosts=hosts, workers=workers)
  assert digest(batches) == digest(straight[0])
  assert cursors == straight[1]


def test_no_prefetch_changes_a_batch_or_a_cursor(run, straight):
  batches, cursors = read(run, prefetch=7)
  assert digest(batches) == digest(straight[0])
  assert cursors == straight[1]


@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_restart_at_any_step_on_other_hosts_goes_on_with_the_same_batches(run, straight, step):
  batches, after = straight
  saved = json.loads(json.dumps(after[step - 1]))
  rest, cursors = read(run, hosts=(1, 2, 4, 8)[step % 4], steps=STEPS - step, cursors=saved)
  assert digest(rest) == digest(batches[step:])
  assert cursors[-1] == after[-1]


def test_a_restart_in_worker_processes_that_share_the_streams_unevenly(run, straight):
  batches, after = straight
  rest, _ = read(run, workers=3, steps=3, cursors=after[4])
  assert digest(rest) == digest(batches[5:8])


def test_the_seed_changes_order_and_mixture(run, straight):
  config, mixture, tokenizer = run
  other = (config, dataclasses.replace(mixture, seed=SEED + 1), tokenizer)
  assert digest(read(other, steps=2)[0]) != digest(straight[0][:2])
  draws = [[m.draw(0, n) for n in range(8)] for m in (mixture, other[1])]
  assert draws[0] != draws[1]


def test_streams_together_take_each_document_once_an_epoch(run):
  _, mixture, _ = run
  for source, documents in enumerate(mixture.documents):
    size = len(documents)
    taken = [mixture.document(source, p % 16, p // 16) for p in range(3 * size)]
    epochs = [taken[e * size : (e + 1) * size] for e in range(3)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    for epoch in range(3):
      stream, position = mixture.places(source, 5, epoch)
      assert (position * 16 + stream) // size == epoch
      assert mixture.document(source, stream, position) == 5


def test_the_mixture_follows_the_weights_of_the_step(run):
  _, mixture, _ = run
  assert mixture.names == ("big", "late", "tiny")
  for step, expected in ((0, [0.75, 0, 0.25]), (4, [3 / 5.6, 1.6 / 5.6, 1 / 5.6])):
    shares = mixture.shares(step)
    np.testing.assert_allclose(np.diff(shares, prepend=0), expected, atol=1e-12)
  assert mixture.shares(7) == mixture.shares(10**9)
  draws = [mixture.draw(1, n) for n in range(4_000)]
  counts, _ = np.histogram(draws, bins=[0, *mixture.shares(7)])
  np.testing.assert_allclose(counts / 4_000, [0.375, 0.5, 0.125], atol=0.03)


def test_changed_weights_hold_from_the_step_of_the_restart_and_in_the_data_log(run, straight):
  config, mixture, tokenizer = run
  changed = Weights(5, weights_of(config).knots | {"big": ((0.0, 0.5),)})
  log = data_log.continued(mixture.log, changed)
  assert log == (*mixture.log, changed)
  now = (config, dataclasses.replace(mixture, log=log), tokenizer)
  whole, after = read(now)
  assert digest(whole[:5]) == digest(straight[0][:5])
  assert digest(whole[5:]) != digest(straight[0][5:])
  for step in (3, 5, 8):  # before the change, at it, and after
    rest, _ = read(now, hosts=2, steps=STEPS - step, cursors=after[step - 1])
    assert digest(rest) == digest(whole[step:])


def test_the_data_log_keeps_what_was_trained_on(tmp_path):
  first, second, third = (Weights(s, {"a": ((0.0, w),)}) for s, w in ((0, 1.0), (5, 2.0), (3, 3.0)))
  log = data_log.continued((), dataclasses.replace(first, step=2))
  assert log == (first,)  # of a run whose log was lost: as if it had been so from the start
  assert data_log.continued(log, dataclasses.replace(first, step=9)) == log
  log = data_log.continued(log, second)
  assert log == (first, second)
  # A checkpoint before the change, with the changed weights: they still wait for their step.
  assert data_log.continued(log, dataclasses.replace(second, step=4)) == log
  assert data_log.continued(log, third) == (first, third)
  assert data_log.continued(log, dataclasses.replace(first, step=3)) == (first,)
  data_log.write(tmp_path, log)
  assert data_log.read(tmp_path) == log
  (tmp_path / data_log.NAME).write_text("[{}]")
  with pytest.raises(ValueError, match=r"data_log\.json can't be read"):
    data_log.read(tmp_path)


def test_order_and_draws_are_those_of_earlier_releases():
  """Where this fails, no saved run can go on: pin the package that changed its generator."""
  log = (Weights(0, {"big": ((0.0, 3.0),), "tiny": ((0.0, 1.0),)}),)
  mixture = Mixture(("big", "tiny"), (range(5_000), range(7)), log, 4, SEED, "")
  order = [mixture.document(0, 0, position) for position in range(8)]
  assert order == [1784, 4927, 3289, 2539, 2256, 255, 4415, 4824]
  assert [mixture.document(1, 0, position) for position in range(8)] == [5, 3, 2, 3, 2, 1, 2, 0]
  draws = "".join(str(int(mixture.draw(1, n) >= mixture.shares(n)[0])) for n in range(24))
  assert draws == "000011000011000101000000"


def test_a_cursor_is_small_and_tells_the_progress(run, straight):
  config, mixture, _ = run
  batches, after = straight
  cursors = after[-1]
  for cursor in cursors.values():
    references = [r for row in cursor["bins"] for r in row]
    assert len(cursor["bins"]) <= config.open_bins
    assert len(json.dumps(cursor["bins"])) < 32 * max(len(references), 1)
  # All of the cursor, where bins hold about as many documents as in a recipe: below 64 bytes a
  # reference, with room for positions of ten digits.
  for cursor in read(run, steps=2, seq_len=480, open_bins=16, max_segments=32)[1][-1].values():
    references = sum(map(len, cursor["bins"]))
    assert len(json.dumps(cursor)) + 10 * references < 64 * references
  progress = streams.progress(cursors, mixture)
  taken = sum(cursor["positions"][2] for cursor in cursors.values())
  assert progress["epoch/tiny"] == pytest.approx(taken / len(mixture.documents[2]), abs=1e-4)
  assert progress["epoch/tiny"] > 2
  assert progress["documents_split"] > 0
  assert progress["documents_filtered"] > 0
  assert any(batch["positions"].max() == config.seq_len - 1 for batch in batches)


def test_errors_name_the_remedy(run, straight):
  config, mixture, tokenizer = run
  with pytest.raises(ValueError, match=r"data\.streams=16 is not divisible by the 3 hosts"):
    Loader(config, mixture, tokenizer, host_count=3)
  with pytest.raises(ValueError, match=r"data\.batch_size=32 is not divisible by data\.streams=3"):
    dataclasses.replace(config, streams=3)
  with pytest.raises(ValueError, match=r"data\.streams=2"):
    Loader(dataclasses.replace(config, streams=2), mixture, tokenizer, cursors=straight[1][0])
  with pytest.raises(ValueError, match=r"min_tokens=900 .* left out"):
    read(run, min_tokens=900, max_tokens=None, steps=1)
  with pytest.raises(ValueError, match="all sources have weight 0 at step 3"):
    dataclasses.replace(
      mixture, log=(Weights(0, dict.fromkeys(mixture.names, ((3, 0.0),))),)
    ).shares(3)
  old = {v: {k: c[k] for k in c if k != "rows"} for v, c in straight[1][0].items()}
  with pytest.raises(ValueError, match="of an earlier release"):
    Loader(config, mixture, tokenizer, cursors=old)
  with pytest.raises(ValueError, match="seed=-1"):
    make_mixture(config, None, tokenizer, -1)
  changed = dataclasses.replace(mixture, fingerprint="other")
  with pytest.raises(ValueError, match="restore the files"):
    Loader(config, changed, tokenizer, cursors=straight[1][0])


KILLED = """
import dataclasses, multiprocessing, pickle, sys, time
from data.batches import Loader
from data.mixture import Mixture, Weights, make_mixture, weights_of
if __name__ == "__main__":
  config, mixture, tokenizer = pickle.load(open(sys.argv[1], "rb"))
  loader = Loader(dataclasses.replace(config, workers=2), mixture, tokenizer)
  next(loader)
  print(*(p.pid for p in multiprocessing.active_children()), flush=True)
  time.sleep(60)
"""


@pytest.mark.slow
def test_workers_end_with_a_killed_run(run, tmp_path):
  (tmp_path / "run.pickle").write_bytes(pickle.dumps(run))
  (tmp_path / "killed.py").write_text(KILLED)
  command = [sys.executable, str(tmp_path / "killed.py"), str(tmp_path / "run.pickle")]
  environment = os.environ | {"PYTHONPATH": os.getcwd()}
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
    workers = [int(pid) for pid in process.stdout.readline().split()]
    for pid in workers:
      os.kill(pid, signal.SIGINT)  # as Ctrl-C sends it to all; the run's to handle
    time.sleep(1)
    assert len(workers) == 2 and all(map(_alive, workers))
    process.send_signal(signal.SIGKILL)
  deadline = time.monotonic() + 10
  while any(map(_alive, workers)) and time.monotonic() < deadline:
    time.sleep(0.1)
  assert not any(map(_alive, workers))


def _alive(pid):
  try:
    with open(f"/proc/{pid}/stat") as file:
      return file.read().rsplit(")", 1)[1].split()[0] != "Z"
  except OSError:
    return False

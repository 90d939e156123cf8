"""The quality rules and MinHash signatures against datatrove's: documents a second, and decisions.

    pip install -e '.[corpus,datatrove]'
    python docs/benchmarks/filters.py documents.jsonl

Both sides take the same documents (a key `text` a line) by turns on one core; times are CPU
seconds of the process, medians over the rounds. The rate of each of our rules includes the split
into words; "all five" splits once. "cold" starts each round with empty tables of words, "warm"
goes on with those of the round before. Datatrove remembers the words of its last five texts: "all
five", where a document goes through all of its steps before the next one, profits from that. Every
decision that differs is printed.
"""

import argparse
import functools
import itertools
import json
import statistics
import tempfile
import time

from configs import filters
from data import minhash, quality, repetition, words
from data.config import parse

RULES = (
  ("gopher_quality", quality.GopherQuality, quality.gopher_quality),
  ("gopher_repetition", repetition.GopherRepetition, repetition.gopher_repetition),
  ("c4", quality.C4, lambda text, _, rules: quality.c4(text, rules)),
  ("fineweb", quality.FineWeb, quality.fineweb),
)


def our_steps():
  """Name -> function of (text, words) that gives the reason, or the signature."""
  config = filters.get_config().to_dict()
  steps = {}
  for name, cls, rule in RULES:
    rules = parse(cls, config[name], name)
    steps[name] = functools.partial(lambda rule, rules, *a: rule(*a, rules).reason, rule, rules)
  size = parse(minhash.MinHash, config["minhash"], "minhash")
  steps["minhash"] = lambda text, _: minhash.signature(minhash.shingles(text, size), size)
  return steps


def their_steps(folder):
  """Name -> function of (text,) that gives the reason, or the signature."""
  from datatrove.data import Document
  from datatrove.pipeline.dedup import MinhashDedupSignature
  from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
  )

  def reason(step, text):
    result = step.filter(Document(text=text, id=""))
    return result[1] if isinstance(result, tuple) else None

  steps = {
    "gopher_quality": functools.partial(reason, GopherQualityFilter()),
    "gopher_repetition": functools.partial(reason, GopherRepetitionFilter()),
    "c4": functools.partial(reason, C4QualityFilter()),
    "fineweb": functools.partial(reason, FineWebQualityFilter()),
  }
  signer = MinhashDedupSignature(folder)
  steps["minhash"] = lambda text: signer.get_signature(signer.get_shingles(text))
  return steps


def timed(function, texts):
  """What a function gives for each text, and the CPU seconds of all of them."""
  start = time.process_time()
  results = [function(text) for text in texts]
  return results, time.process_time() - start


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("documents", help="a JSONL file with a key `text` a line")
  parser.add_argument("--limit", type=int, help="take only so many documents")
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  with open(args.documents, encoding="utf-8") as file:
    texts = [json.loads(line)["text"] for line in itertools.islice(file, args.limit)]

  ours = our_steps()
  seconds, decisions = {}, {}

  def measure(side, name, function):
    results, spent = timed(function, texts)
    seconds.setdefault((side, name), []).append(spent)
    decisions[side, name] = results

  with tempfile.TemporaryDirectory() as folder:
    theirs = their_steps(folder)
    for step in theirs.values():
      step(texts[0])  # loads its tokenizer
    for _ in range(args.rounds):
      for name in ours:
        measure("theirs", name, theirs[name])
        for side in ("cold", "warm"):
          if side == "cold":
            words.forget()
          measure(side, name, lambda text, step=ours[name]: step(text, words.split(text)))
      measure("theirs", "all five", lambda text: [step(text) for step in theirs.values()])
      for side in ("cold", "warm"):
        if side == "cold":
          words.forget()
        measure(side, "all five", functools.partial(through_all, ours))
  report(texts, seconds, decisions)


def through_all(steps, text):
  split = words.split(text)
  return [step(text, split) for step in steps.values()]


def report(texts, seconds, decisions):
  """Prints the table of speeds, and every decision that differs."""
  rate = {key: len(texts) / statistics.median(spent) for key, spent in seconds.items()}
  parts = [name for side, name in rate if side == "theirs" and name != "all five"]
  for side in ("theirs", "cold", "warm"):
    rate[side, "sum of five"] = 1 / sum(1 / rate[side, name] for name in parts)
  print(f"{len(texts):,} documents, {sum(map(len, texts)) / len(texts):,.0f} characters on average")
  print(
    f"{'documents/s':18} {'datatrove':>10} {'ours cold':>10} {'warm':>10} {'ratio cold':>11} warm"
  )
  for name in (*parts, "all five", "sum of five"):
    peer, cold, warm = (rate[side, name] for side in ("theirs", "cold", "warm"))
    print(
      f"{name:18} {peer:10,.0f} {cold:10,.0f} {warm:10,.0f} {cold / peer:11.1f} {warm / peer:.1f}"
    )
  ratio = rate["cold", "all five"] / rate["theirs", "sum of five"]
  print(f"ours through all five, cold, to theirs one after the other: {ratio:.1f}")
  compared = different = 0
  for name in parts[:-1]:
    for number, (theirs, ours) in enumerate(
      zip(decisions["theirs", name], decisions["warm", name], strict=True)
    ):
      compared += 1
      if theirs != ours:
        different += 1
        print(f"document {number}, {name}: datatrove {theirs or 'keeps'}, ours {ours or 'keeps'}")
  print(f"{compared - different:,} of {compared:,} decisions are equal")


if __name__ == "__main__":
  main()

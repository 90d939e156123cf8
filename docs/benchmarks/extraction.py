"""Main text of the gold web pages: F1 and speed of data.extract, resiliparse and trafilatura.

    python docs/benchmarks/extraction.py --data FOLDER

FOLDER is a copy of the article-extraction-benchmark (ground-truth.json and html/); without it, the
folder corpus/html_gold of the one that STRAITS_TEST_DATA names. Every extractor reads the same
decoded pages in the same process, in turns; a round's pages/s count CPU time, and the speed of an
extractor is its median over the rounds. The halves are every second page: the line patterns of
data.extract were written with the first half in sight and not the second; which elements it leaves
out was chosen by the score on all of them.
"""

import argparse
import collections
import functools
import gzip
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path

_WORD = re.compile(r"\w+")
_SHINGLE = 4


def shingles(text: str) -> collections.Counter:
  """The 4-grams of words of a text, or all its words if it has fewer, with their counts."""
  words = _WORD.findall(text)
  starts = range(max(1, len(words) - _SHINGLE + 1))
  return collections.Counter(s for i in starts if (s := tuple(words[i : i + _SHINGLE])))


def score(pairs: Iterable[tuple[str, str]]) -> tuple[float, float, float]:
  """F1, precision and recall of (gold, predicted) texts, as the article-extraction-benchmark does.

  Precision is the mean over pages with a prediction, recall over pages with a gold text, of the
  shares of common 4-gram shingles; F1 is that of the two means.
  """
  precisions, recalls = [], []
  for gold, predicted in pairs:
    wanted, given = shingles(gold), shingles(predicted)
    common = (wanted & given).total()
    if given:
      precisions.append(common / given.total())
    if wanted:
      recalls.append(common / wanted.total())
  precision, recall = statistics.mean(precisions), statistics.mean(recalls)
  f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
  return f1, precision, recall


def extractors():
  """{name: a function from a page to its text}."""
  import trafilatura
  from resiliparse.extract.html2text import extract_plain_text

  from data import extract

  return {
    "trafilatura": trafilatura.extract,
    "trafilatura fast": functools.partial(trafilatura.extract, fast=True),
    "resiliparse": functools.partial(extract_plain_text, main_content=True),
    "data.extract": lambda page: extract.extract(page).text,
  }


def main() -> None:
  """Prints a line for each extractor."""
  root = os.environ.get("STRAITS_TEST_DATA")
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument(
    "--data", type=Path, default=Path(root) / "corpus/html_gold" if root else None
  )
  parser.add_argument("--rounds", type=int, default=5, help="how often each is timed")
  args = parser.parse_args()
  if args.data is None or not (args.data / "ground-truth.json").is_file():
    sys.exit(f"--data {args.data} has no ground-truth.json; name the folder of the gold pages.")
  from data import extract

  truth = json.loads((args.data / "ground-truth.json").read_text(encoding="utf-8"))
  gold = {name: truth[name].get("articleBody", "") for name in sorted(truth)}
  raw = {n: gzip.decompress((args.data / "html" / f"{n}.html.gz").read_bytes()) for n in gold}
  pages = {name: extract.decode(payload) for name, payload in raw.items()}
  texts, seconds = {}, collections.defaultdict(list)
  for _ in range(args.rounds + 1):
    for name, run in extractors().items():
      started = time.process_time()
      texts[name] = {page: run(html) or "" for page, html in pages.items()}
      seconds[name].append(time.process_time() - started)
  speed = {name: len(pages) / statistics.median(s[1:]) for name, s in seconds.items()}
  print(f"{len(pages)} pages            F1     precision  recall  F1 of halves    pages/s  ratio")
  for name, found in texts.items():
    pairs = [(gold[page], found[page]) for page in gold]
    f1, precision, recall = score(pairs)
    halves = "  ".join(f"{score(pairs[half::2])[0]:.4f}" for half in (0, 1))
    ratio = speed[name] / speed["trafilatura"]
    print(
      f"{name:<20} {f1:.4f}  {precision:.4f}     {recall:.4f}  {halves}  {speed[name]:7.0f}"
      f"  {ratio:5.1f}x"
    )


if __name__ == "__main__":
  main()

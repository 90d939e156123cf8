"""A training set from raw dumps: extracted, filtered, without duplicates and evaluation items.

    python -m data.corpus --config configs/corpus.py:RAW --workdir out

RAW is a folder with the folders web, wikipedia, academic, books, commoncrawl and html_gold, and a
folder `eval` beside it; docs/corpus.md has the figures of such a run. For other data set the
sources: --config.sources.web.path='crawl/*.warc.gz', or write a recipe that begins with this one.
"""

from pathlib import Path

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import filters

WEB = ("language", "gopher_repetition", "gopher_quality", "c4", "fineweb", "privacy")
# What was edited before: no rules of the web, which take lists of references or verse for junk.
EDITED = ("language", "gopher_repetition", "privacy")


def _source(path: str, weight: float, stages: tuple[str, ...], format: str | None = None):
  source = ConfigDict({"path": path, "key": "text", "weight": weight, "stages": stages})
  source.format = placeholder(str)
  if format:
    source.format = format
  return source


def get_config(raw: str = "raw") -> ConfigDict:
  config = filters.get_config()
  # C4's rule on line ends would leave little of FineWeb's, which judges documents by them.
  config.c4.filter_no_terminal_punct = False
  folder, evaluation = Path(raw), Path(raw).parent / "eval"
  # The shares are our choice; the reference run's are not published.
  config.sources = ConfigDict(
    {
      "web": _source(f"{folder}/web/*.jsonl", 0.3, WEB),
      "commoncrawl": _source(f"{folder}/commoncrawl/**/*arc*", 0.2, WEB, "warc"),
      "pages": _source(f"{folder}/html_gold/html/*.html.gz", 0.1, WEB, "html"),
      "wikipedia": _source(f"{folder}/wikipedia/*.txt", 0.15, EDITED, "articles"),
      "articles": _source(f"{folder}/academic/plos_jats/*.xml", 0.1, EDITED, "jats"),
      "arxiv": _source(f"{folder}/academic/*.jsonl", 0.05, EDITED, "latex"),
      "books": _source(f"{folder}/books/*", 0.1, EDITED, "text"),
    }
  )
  # At 0.9 a pair is compared with probability 0.9995, at 0.5 with 0.05, and then judged by all 112
  # values, whose estimate has a standard deviation of 0.05 there.
  config.near_duplicates = ConfigDict({"threshold": 0.7, "most_compared": 256, "parts": 4})
  config.decontamination = ConfigDict({"ngram_words": 13, "sets": {}})
  for name, path in {
    "hellaswag": "hellaswag",
    "mmlu": "mmlu/test",
    "truthfulqa": "truthfulqa/*.json",
    "truthfulqa_gen": "truthfulqa/*.csv",
    "crows_pairs": "crows_pairs",
    "bbq": "bbq",
    "winobias": "winobias",
    "advbench": "advbench",
    "piqa": "extra/piqa.jsonl",
    "lambada": "extra/lambada*.jsonl",
  }.items():
    config.decontamination.sets[name] = {"reader": name, "path": str(evaluation / path)}
  config.heldout_fraction = 0.0  # at scale 1e-5, so that training need not read all to split it
  config.format = "jsonl"
  config.shard_bytes = 64 * 2**20
  config.tokenizer = placeholder(str)
  config.eot = "<|endoftext|>"
  config.examples = 3
  config.workers = 2
  return config

"""Plants what the corpus pipeline must find into real text, runs it, and says what it found.

  python -m data.plant --config configs/corpus.py --workdir planted

Planted are pairs of known similarity, equal texts, runs of words of evaluation items, texts in
other languages and personal data, in pieces of the documentation inside CPython, or of the JSONL
file --base. They go through the stages of the recipe's source --like, the whole recipe else.
"""

import collections
import dataclasses
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from data import corpus, decontaminate, dedup, embedded, files, minhash, readers
from data.minhash import MinHash
from data.record import Record

PIECE_WORDS = 200
SIMILARITIES = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3)
LEAK_WORDS = (8, 12, 13, 14, 20, 40)
_ITEM_WORDS = 40
_APART = MinHash(n_grams=8, bands=1, rows=1)
_KINDS = len(SIMILARITIES) + 1 + len(LEAK_WORDS) + 3  # that need a piece each

# The Universal Declaration of Human Rights, articles 1 and 3.
_RIGHTS = {
  "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft"
  " und Gewissen begabt und sollen einander im Geist der Brüderlichkeit begegnen. Jeder "
  "hat das Recht auf Leben, Freiheit und Sicherheit der Person.",
  "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como "
  "están de razón y conciencia, deben comportarse fraternalmente los unos con los otros. "
  "Todo individuo tiene derecho a la vida, a la libertad y a la seguridad de su persona.",
  "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont "
  "doués de raison et de conscience et doivent agir les uns envers les autres dans un "
  "esprit de fraternité. Tout individu a droit à la vie, à la liberté et à la sûreté de "
  "sa personne.",
  "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati"
  " di ragione e di coscienza e devono agire gli uni verso gli altri in spirito di "
  "fratellanza. Ogni individuo ha diritto alla vita, alla libertà ed alla sicurezza della"
  " propria persona.",
  "nl": "Alle mensen worden vrij en gelijk in waardigheid en rechten geboren. Zij zijn "
  "begiftigd met verstand en geweten, en behoren zich jegens elkander in een geest van "
  "broederschap te gedragen. Een ieder heeft het recht op leven, vrijheid en "
  "onschendbaarheid van zijn persoon.",
  "pl": "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są oni"
  " obdarzeni rozumem i sumieniem i powinni postępować wobec innych w duchu braterstwa. "
  "Każdy człowiek ma prawo do życia, wolności i bezpieczeństwa swojej osoby.",
  "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de "
  "razão e de consciência, devem agir uns para com os outros em espírito de fraternidade."
  " Todo o indivíduo tem direito à vida, à liberdade e à segurança pessoal.",
  "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены "
  "разумом и совестью и должны поступать в отношении друг друга в духе братства. Каждый "
  "человек имеет право на жизнь, на свободу и на личную неприкосновенность.",
}


@dataclasses.dataclass(frozen=True)
class Plant:
  """A planted document.

  Attributes:
    kind: plain, exact, near, leak, language, email, phone or ip.
    text: of the document.
    truth: what there is to know: its group and similarity, the words of a leak, the secret.
  """

  kind: str
  text: str
  truth: dict[str, str]


def pieces(texts: Iterator[str]) -> Iterator[list[str]]:
  """Cuts texts into runs of PIECE_WORDS words; none has a run of 8 in common with another."""
  seen: set[int] = set()
  for text in texts:
    words = text.split()
    for first in range(0, len(words) - PIECE_WORDS + 1, PIECE_WORDS):
      piece = words[first : first + PIECE_WORDS]
      runs = set(minhash.shingles(" ".join(piece), _APART).tolist())
      if not runs & seen:
        yield piece
      seen |= runs


def plant(
  available: Sequence[list[str]], count: int, seed: int, size: MinHash
) -> tuple[list[Plant], list[str]]:
  """Makes `count` plants of each kind; returns them in random order, and evaluation items.

  Raises:
    ValueError: there are too few pieces of text.
  """
  rng = random.Random(seed)
  # Not all words are words to the stage, so that an item more or less fits in a piece.
  items_needed = count * len(LEAK_WORDS) // 2
  needed = (_KINDS + 1) * count + items_needed
  if len(available) < needed:
    raise ValueError(
      f"--count={count} of each kind needs {needed} pieces of {PIECE_WORDS} different words, and "
      f"the text has {len(available)}; lower it, or give more text with --base."
    )
  queue = iter(rng.sample(list(available), needed))
  plants = [Plant("plain", " ".join(next(queue)), {}) for _ in range(count)]
  for similarity in SIMILARITIES:
    for number in range(count):
      plants += _near(next(queue), similarity, f"{similarity}-{number}", size, rng)
  for number in range(count):
    text, group = " ".join(next(queue)), {"group": f"exact-{number}"}
    plants += [Plant("exact", text, group) for _ in range(2)]
  for kind, make in _PERSONAL.items():
    for _ in range(count):
      words, secret = next(queue), make(rng)
      text = " ".join(_insert(words, ["(reach", "us", "at", f"{secret})"], rng))
      plants.append(Plant(kind, text, {"secret": secret}))
  hosts = [next(queue) for _ in range(count * len(LEAK_WORDS))]
  items = []
  for piece in queue:
    words = decontaminate.words_of(" ".join(piece))
    full = range(0, len(words) - _ITEM_WORDS + 1, _ITEM_WORDS)
    items += [words[first : first + _ITEM_WORDS] for first in full]
  if len(items) < len(hosts):
    raise ValueError(f"the text has {len(items)} evaluation items and {len(hosts)} are needed.")
  for number, host in enumerate(hosts):
    length = LEAK_WORDS[number // count]
    first = rng.randrange(_ITEM_WORDS - length + 1)
    leaked = [rng.choice((w, w.upper(), f"({w}),")) for w in items[number][first : first + length]]
    # The words around it are no item's, so that a run is not longer than meant.
    text = " ".join(_insert(host, ["quizzed:", *leaked, "unquizzed."], rng))
    plants.append(Plant("leak", text, {"words": str(length)}))
  for number in range(count):
    name = sorted(_RIGHTS)[number % len(_RIGHTS)]
    plants.append(Plant("language", f"{number}. {_RIGHTS[name]}", {"language": name}))
  rng.shuffle(plants)
  return plants, [" ".join(item) for item in items]


def _near(words, similarity, group, size, rng) -> list[Plant]:
  """A pair of about this Jaccard similarity of shingles, by words replaced in a few places."""
  first, second = " ".join(words), list(words)
  shingles = set(minhash.shingles(first, size).tolist())
  while True:
    other = set(minhash.shingles(" ".join(second), size).tolist())
    true = len(shingles & other) / len(shingles | other)
    if true <= similarity:
      break
    place = rng.randrange(len(second))
    if true > similarity + 0.1:  # far away: a longer run
      second[place : place + 8] = [f"{rng.randrange(10**6):x}th" for _ in second[place : place + 8]]
    else:  # close: the end of the text, a shingle at a time
      changed = next(i for i in reversed(range(len(second))) if second[i] == words[i])
      second[changed] = f"q{''.join(rng.choices('abcdefgh', k=8))}"
  truth = {"group": group, "target": str(similarity), "similarity": f"{true:.4f}"}
  return [Plant("near", first, truth), Plant("near", " ".join(second), truth)]


def _insert(words, more, rng) -> list[str]:
  place = rng.randrange(len(words) + 1)
  return [*words[:place], *more, *words[place:]]


_PERSONAL = {
  "email": lambda rng: (
    f"{''.join(rng.choices('abcdefgh', k=5))}.{rng.choice(('smith', 'ivanova', 'li'))}"
    f"{rng.randrange(100)}@{''.join(rng.choices('mnopqrst', k=6))}.{rng.choice(['com', 'org'])}"
  ),
  "phone": lambda rng: rng.choice(
    (
      f"({rng.randrange(201, 990)}) {rng.randrange(201, 999)}-{rng.randrange(10**4):04d}",
      f"{rng.randrange(201, 990)}-{rng.randrange(201, 999)}-{rng.randrange(10**4):04d}",
      f"+44 20 {rng.randrange(1000, 9999)} {rng.randrange(1000, 9999)}",
    )
  ),
  "ip": lambda rng: f"8.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}",
}


def write(plants: Sequence[Plant], items: Sequence[str], folder: Path) -> None:
  """Writes raw.jsonl, with the truth in fields that the pipeline carries along, and items.jsonl."""
  for name, rows in (
    ("raw", ({"text": p.text, "planted": p.kind, **p.truth} for p in plants)),
    ("items", ({"text": item} for item in items)),
  ):
    with files.whole(folder / f"{name}.jsonl") as partial:
      lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
      partial.write_text("".join(lines), encoding="utf-8")


def recipe(config: Mapping[str, Any], like: str, folder: Path) -> dict[str, Any]:
  """The recipe with the planted files in place of its sources and evaluation sets.

  Raises:
    ValueError: it has no source `like`.
  """
  if like not in config["sources"]:
    known = ", ".join(config["sources"])
    raise ValueError(f"the recipe has no source {like!r}; --like is one of {known}.")
  source = {**config["sources"][like], "path": str(folder / "raw.jsonl")}
  sets = {"planted": {"reader": "lines", "path": str(folder / "items.jsonl")}}
  return {
    **config,
    "sources": {"planted": {**source, "format": "jsonl", "key": "text"}},
    "decontamination": {**config["decontamination"], "sets": sets},
  }


@dataclasses.dataclass(frozen=True)
class Score:
  """What one stage made of one kind of plant.

  Attributes:
    stage, kind: names for people.
    planted: how many reached the stage.
    found: how many of them it found.
    precision: the share of what is right in all that the stage removed or masked; None where
      another line of the stage has it, or there is nothing.
  """

  stage: str
  kind: str
  planted: int
  found: int
  precision: float | None


def score(workdir: Path, ngram_words: int, threshold: float, size: MinHash) -> list[Score]:
  """Compares what was planted with what the pipeline did in `workdir`."""
  rows, texts = [], {}
  for path in sorted((workdir / "provenance").glob("*.jsonl.zst")):
    rows += [row for row in files.read_jsonl(path) if "fault" not in row]
  for path in sorted((workdir / "work" / "documents").glob("*.jsonl.zst")):
    texts |= {row["hash"]: row["text"] for row in files.read_jsonl(path) if "text" in row}
  for row in rows:
    reasons = [d for d in row["decisions"] if "reason" in d]
    row["end"] = reasons[-1]["stage"] if reasons else "kept"
    row["of"] = reasons[-1].get("detail", "").removeprefix("of ") if reasons else ""
    row["kind"] = row["meta"]["planted"]
  pairs = _pairs(rows, texts, threshold, size)
  return [_language(rows), *_personal(rows, texts), *pairs, *_leaks(rows, ngram_words)]


def _precision(right: int, everything: int) -> float | None:
  return right / everything if everything else None


def _language(rows):
  planted = [row for row in rows if row["kind"] == "language"]
  found = sum(row["end"] == "language" for row in planted)
  removed = sum(row["end"] == "language" for row in rows)
  return Score("language", "other languages", len(planted), found, _precision(found, removed))


def _personal(rows, texts):
  masked = collections.Counter()
  for row in rows:
    for decision in row["decisions"]:
      if decision["stage"] == "privacy":
        masked.update(decision["changes"])
  for kind in _PERSONAL:
    reached = [row for row in rows if row["kind"] == kind and "hash" in row]
    found = sum(row["meta"]["secret"] not in texts[row["hash"]] for row in reached)
    yield Score("privacy", kind, len(reached), found, _precision(found, masked[kind]))


def _pairs(rows, texts, threshold, size):
  groups = collections.defaultdict(list)
  for row in rows:
    if "group" in row["meta"] and "hash" in row:
      groups[row["meta"].get("target", "exact"), row["meta"]["group"]].append(row)
  for target in ("exact", *map(str, SIMILARITIES)):
    stage = "exact_duplicate" if target == "exact" else "near_duplicate"
    pairs = [g for (of, _), g in groups.items() if of == target and len(g) == 2]
    found = sum(any(row["end"] == stage for row in pair) for pair in pairs)
    name = "equal texts" if target == "exact" else f"similarity {target}"
    precision = None
    if target in ("exact", str(SIMILARITIES[0])):
      removed = [row for row in rows if row["end"] == stage]
      least = 1.0 if target == "exact" else threshold
      right = sum(_similarity(row, texts, size) >= least for row in removed)
      precision = _precision(right, len(removed))
    yield Score(stage, name, len(pairs), found, precision)


def _similarity(row, texts, size):
  shingles = [np.unique(minhash.shingles(texts[h], size)) for h in (row["hash"], row["of"])]
  return dedup.jaccard(*shingles)


def _leaks(rows, ngram_words):
  judged = [row for row in rows if row["end"] in ("decontamination", "kept")]
  removed = [row for row in judged if row["end"] != "kept"]
  right = sum(int(row["meta"].get("words", 0)) >= ngram_words for row in removed)
  for length in LEAK_WORDS:
    planted = [row for row in judged if row["meta"].get("words") == str(length)]
    found = sum(row["end"] != "kept" for row in planted)
    kind = f"{length} words" + ("" if length >= ngram_words else " (no leak)")
    precision = _precision(right, len(removed)) if length == max(LEAK_WORDS) else None
    yield Score("decontamination", kind, len(planted), found, precision)


def table(scores: Sequence[Score]) -> str:
  """The scores for people: how much of each kind is found, and the precision of each stage."""
  lines = [f"{'stage':<18}{'planted':<24}{'number':>8}{'found':>8}{'recall':>9}{'precision':>11}"]
  for s in scores:
    recall = f"{100 * s.found / s.planted:.1f}%" if s.planted else "-"
    precision = "" if s.precision is None else f"{100 * s.precision:.1f}%"
    lines.append(f"{s.stage:<18}{s.kind:<24}{s.planted:>8,}{s.found:>8,}{recall:>9}{precision:>11}")
  return "\n".join(lines)


def run(
  config: Mapping[str, Any], base: str | None, like: str, count: int, seed: int, workdir: Path
):
  """Plants, runs the pipeline in workdir/corpus, and prints the table; returns the exit code."""
  try:
    size = MinHash(**config["minhash"])
    changed = recipe(config, like, workdir)
    plants, items = plant(list(pieces(_texts(base))), count, seed, size)
    write(plants, items, workdir)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return corpus.BAD_INPUT
  code = corpus.run(changed, workdir / "corpus")
  if code == corpus.DONE:
    threshold = config["near_duplicates"]["threshold"]
    width = config["decontamination"]["ngram_words"]
    scores = score(workdir / "corpus", width, threshold, size)
    files.write_json(workdir / "scores.json", [dataclasses.asdict(s) for s in scores])
    print(table(scores))
  return code


def _texts(base: str | None) -> Iterator[str]:
  if base is None:
    yield from (text for _, text in embedded.documents())
    return
  for path in readers.files(base):
    for item in readers.read(path, None, "base"):
      if isinstance(item, Record):
        yield item.text


def main(argv: Sequence[str]) -> int:
  if len(argv) > 1 or _CONFIG.value is None or _WORKDIR.value is None:
    print("error: needed are --config and --workdir; --help explains them.", file=sys.stderr)
    return corpus.BAD_INPUT
  logging.set_verbosity(logging.WARNING)
  config = _CONFIG.value.to_dict()
  return run(config, _BASE.value, _LIKE.value, _COUNT.value, _SEED.value, Path(_WORKDIR.value))


if __name__ == "__main__":
  _CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe: a file of configs/.")
  _WORKDIR = flags.DEFINE_string("workdir", None, "Where the texts and the corpus are kept.")
  _BASE = flags.DEFINE_string("base", None, "Text to plant into, as the reader of JSONL takes it.")
  _LIKE = flags.DEFINE_string("like", "books", "The source whose stages the texts go through.")
  _COUNT = flags.DEFINE_integer("count", 20, "Plants of each kind.", lower_bound=1)
  _SEED = flags.DEFINE_integer("seed", 0, "Of the plants.")
  app.run(main, flags_parser=corpus.parse_flags)

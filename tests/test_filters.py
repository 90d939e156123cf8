"""The published quality rules: every reason by hand, and the decisions of datatrove."""

import functools
import itertools
import json
import os
import pathlib

import pytest

from configs import filters
from data import english, quality, repetition, words
from data.config import parse

FIXTURE = pathlib.Path(__file__).parent / "fixtures" / "filters.json"
SENTENCE = "The quick brown fox jumps over the lazy dog and runs to the green river bank. "
DISTINCT = (  # 60 words of prose in which no run is repeated
  "When rivers rise in spring the farmers of that valley move their herds to higher ground. Most "
  "have done it since childhood, with neither maps nor machines, and few would trade this slow "
  "journey for another. Old songs keep count of days; young voices learn every verse along steep "
  "paths where eagles circle above. By summer each meadow will be full of sound again."
)


@functools.cache
def rules(name, **changes):
  section = {**filters.get_config().to_dict()[name], **changes}
  cls = {
    "gopher_quality": quality.GopherQuality,
    "gopher_repetition": repetition.GopherRepetition,
    "c4": quality.C4,
    "fineweb": quality.FineWeb,
  }[name]
  return parse(cls, section, name)


def decide(name, text, **changes):
  """What a rule makes of a text."""
  if name == "c4":
    return quality.c4(text, rules(name, **changes))
  rule = {
    "gopher_quality": quality.gopher_quality,
    "gopher_repetition": repetition.gopher_repetition,
    "fineweb": quality.fineweb,
  }[name]
  return rule(text, words.split(text), rules(name, **changes))


def test_prose_passes_every_rule_unchanged():
  for name in ("gopher_quality", "gopher_repetition", "fineweb"):
    assert decide(name, DISTINCT) == quality.Verdict(DISTINCT)
  assert decide("c4", DISTINCT, min_num_sentences=4) == quality.Verdict(DISTINCT)


def of(words_list, count):
  return " ".join((words_list * count)[:count])


# Documents on either side of a threshold: the reason, the one rejected, the one that just passes.
GOPHER_QUALITY = [
  ("gopher_short_doc", of(["the", "and"], 49), of(["the", "and"], 50)),
  ("gopher_short_doc", of(["the", "and"], 49) + " . . .", of(["the", "and"], 50) + " . . ."),
  ("gopher_long_doc", of(["the", "and"], 100_001), of(["the", "and"], 100_000)),
  ("gopher_below_avg_threshold", of(["be", "of"], 60), of(["the", "and"], 60)),
  ("gopher_above_avg_threshold", of(["the", "of", "x" * 26], 60), of(["the", "and", "x" * 24], 60)),
  ("gopher_too_many_hashes", of(["#the", "and", "with"], 60), of(["the", "and"], 90) + " #" * 10),
  ("gopher_too_many_ellipsis", of(["the", "…"], 104), of(["the", "and"], 90) + " …" * 10 + " with"),
  (
    "gopher_too_many_bullets",
    "\n".join(["- the and with that have"] * 20),
    "\n".join(["• the and with that have"] * 18 + ["the and with"] * 2),
  ),
  (
    "gopher_too_many_end_ellipsis",
    "\n".join(["the and with that have been..."] * 4 + ["the and with that have been"] * 9),
    "\n".join(["the and with that have been..."] * 3 + ["the and with that have been"] * 9),
  ),
  (
    "gopher_below_alpha_threshold",
    of(["the", "and", "with", "100"], 100),
    of(["the", "and", "with", "that", "100"], 100),
  ),
  ("gopher_enough_stop_words", of(["the", "green"], 60), of(["the", "green", "with"], 60)),
  ("gopher_enough_stop_words", of(["The", "And", "with"], 60), of(["the", "And", "with"], 60)),
]
LINES = DISTINCT.split(" ")
UNIQUE = [f"{a}{i} " + " ".join(LINES[i : i + 4]) for i, a in enumerate(LINES[:40])]
GOPHER_REPETITION = [
  ("empty", "", "Word by word, these seven differ."),
  ("dup_para_frac", "\n\n".join(["a"] * 4 + UNIQUE[:5]), "\n\n".join(["a"] * 4 + UNIQUE[:7])),
  (
    "dup_para_char_frac",
    "\n\n".join([DISTINCT, *UNIQUE[:9], DISTINCT]),
    "\n\n".join([DISTINCT, *UNIQUE[:9], UNIQUE[1]]),
  ),
  ("dup_line_frac", "\n".join(["a"] * 4 + UNIQUE[:5]), "\n".join(["a"] * 4 + UNIQUE[:6])),
  (
    "dup_line_char_frac",
    "\n".join([DISTINCT, *UNIQUE[:9], DISTINCT]),
    "\n".join([DISTINCT, *UNIQUE[:9], UNIQUE[1]]),
  ),
  ("top_2_gram", " ".join(["ab cd e", "ab cd f", "ab cd g", "ab cd h"]), "ab cd e ab cx f kl mn"),
]


@pytest.mark.parametrize(("reason", "rejected", "kept"), GOPHER_QUALITY)
def test_gopher_quality(reason, rejected, kept):
  assert decide("gopher_quality", rejected).reason == reason
  assert decide("gopher_quality", kept).reason is None


@pytest.mark.parametrize(("reason", "rejected", "kept"), GOPHER_REPETITION)
def test_gopher_repetition(reason, rejected, kept):
  generous = {"top_n_grams": (0.6,), "dup_n_grams": ()}
  assert decide("gopher_repetition", rejected, **generous).reason == reason
  assert decide("gopher_repetition", kept, **generous).reason is None


@pytest.mark.parametrize("repeated", ["", " one two three four" * 2])
def test_the_first_run_is_the_most_frequent_where_none_is_repeated(repeated):
  text = "w" * 40 + " a b c d e f one two three five" + repeated.replace("four", "", 1)
  tokens = [word for run in text.split() for word in english.tokens(run)]
  for width in (2, 3, 4):
    share = slow_top(tokens, width) / len(text)
    for limit, reason in ((share + 1e-9, None), (share - 1e-9, f"top_{width}_gram")):
      limits = (9.0,) * (width - 2) + (limit,)
      assert decide("gopher_repetition", text, top_n_grams=limits, dup_n_grams=()).reason == reason


def slow_top(tokens, width):
  """Gopher's most frequent run as its paper says it, of several the first."""
  runs = [" ".join(tokens[i : i + width]) for i in range(len(tokens) - width + 1)]
  best = max(runs, key=runs.count)
  return len(best) * runs.count(best)


def slow_repeated(tokens, width):
  """Characters in repeated runs, from left to right."""
  seen, place, total = set(), 0, 0
  while place <= len(tokens) - width:
    run = tuple(tokens[place : place + width])
    if run in seen:
      total += len("".join(run))
      place += width
    else:
      seen.add(run)
      place += 1
  return total


@pytest.mark.parametrize("width", range(2, 11))
def test_shares_of_repeated_runs_are_exact(width):
  """A threshold right at the share passes, and one just below it does not."""
  text = " ".join(LINES[: 30 + width] + LINES[3:18] + LINES[40:] + LINES[5:15] * 2 + LINES[3:9])
  tokens = [word for run in text.split() for word in english.tokens(run)]
  top, name, slow = (
    ("top_n_grams", f"top_{width}_gram", slow_top)
    if width < 5
    else ("dup_n_grams", f"duplicated_{width}_n_grams", slow_repeated)
  )
  share = slow(tokens, width) / len(text)
  off = {"top_n_grams": (), "dup_n_grams": (), "dup_line_frac": None, "dup_para_frac": None}
  for limit, reason in ((share + 1e-9, None), (share - 1e-9, name)):
    limits = (1.0,) * (width - (2 if width < 5 else 5)) + (limit,)
    assert decide("gopher_repetition", text, **{**off, top: limits}).reason == reason


C4 = [
  ("no_terminal_punc", "These words have no end", "These words have an end."),
  ("no_terminal_punc", "These words trail off...", 'These words are quoted."'),
  ("too_few_words", "Two words.", "Three words now."),
  ("too_long_word", f"A word of {'x' * 1001} is long.", f"A word of {'x' * 1000} is long."),
  ("javascript", "Please enable JavaScript in it.", "Please enable the script in it."),
  ("policy", "We use cookies on this site.", "We eat cookies on this site."),
  ("policy", "Read our Terms of Use first.", "Read our terms of trade first."),
]


@pytest.mark.parametrize(("reason", "dropped", "kept"), C4)
def test_c4_drops_lines(reason, dropped, kept):
  text = f"First line is here.\n{dropped}\n {kept} \nLast line[12] is here.[citation needed]"
  verdict = decide("c4", text, min_num_sentences=3)
  assert verdict.text == f"First line is here.\n{kept}\nLast line is here."
  assert verdict.reason is None
  assert verdict.changes == {reason: 1}


@pytest.mark.parametrize(
  ("reason", "rejected", "kept"),
  [
    ("lorem_ipsum", SENTENCE * 5 + "Lorem ipsum dolor.", SENTENCE * 5 + "lorem ipsum dolor"),
    ("curly_bracket", SENTENCE * 5 + "if (a) { b }.", SENTENCE * 5 + "\nif (a) { b }"),
    ("too_few_sentences", SENTENCE * 4, SENTENCE * 5),
    (
      "too_few_sentences",
      "Mr. A. Smith met Dr. Who at 3.15 p.m. in Washington D.C. today.",
      "A b c! " * 5,
    ),
  ],
)
def test_c4_rejects_documents(reason, rejected, kept):
  assert decide("c4", rejected) == quality.Verdict(rejected, reason)
  if reason != "lorem_ipsum":
    assert decide("c4", kept).reason is None


FINEWEB = [
  ("empty", " \n \n", "One line of words that is not short."),
  (
    "line_punct_ratio",
    "\n".join(
      ["A line of words that goes on and on"] + [f"{u} and more of it" for u in UNIQUE[:8]]
    ),
    "\n".join(["A line of words that goes on."] + [f"{u} and more of it" for u in UNIQUE[:7]]),
  ),
  (
    "short_line_ratio",
    "\n".join(
      [f"{u} and more and more of it." for u in UNIQUE[:1]] + ["ab cd.", "e fgh.", "i j k."]
    ),
    "\n".join(
      [f"{u} and more and more of it." for u in UNIQUE[:2]] + ["ab cd.", "e fgh.", "i j k."]
    ),
  ),
  ("char_dup_ratio", f"{DISTINCT}\nTwice.\n{DISTINCT[:190]}\nTwice.", f"{DISTINCT}\nab\nab"),
  (
    "list_ratio",
    "\n".join(f"{'x' * 31}{i}." for i in range(20)),
    "\n".join(f"{'x' * 31} x y{i}." for i in range(20)),
  ),
]


@pytest.mark.parametrize(("reason", "rejected", "kept"), FINEWEB)
def test_fineweb(reason, rejected, kept):
  assert decide("fineweb", rejected).reason == reason
  assert decide("fineweb", kept).reason is None


def test_none_leaves_a_rule_out():
  nothing = dict.fromkeys(filters.get_config().to_dict()["gopher_quality"])
  text = "- # 1 2 3 …"
  assert decide("gopher_quality", text, **nothing | {"stop_words": ()}).reason is None
  repeated = "a\n\n" * 9
  off = {
    key: None
    for key in ("dup_line_frac", "dup_para_frac", "dup_line_char_frac", "dup_para_char_frac")
  }
  assert decide("gopher_repetition", repeated, **off, top_n_grams=(), dup_n_grams=()).reason is None


@pytest.mark.parametrize("name", ["gopher_quality", "gopher_repetition", "c4", "fineweb"])
@pytest.mark.parametrize(
  "text", ["", "\n", " \t\n\n ", "word", "\ud800", "\x00", "\u200b", "…", "a" * 3_000, "é" * 3_000]
)
def test_odd_texts_have_an_answer(name, text):
  verdict = decide(name, text)
  assert verdict.reason or verdict.text == text


def fixture():
  return json.loads(FIXTURE.read_text())


@pytest.mark.parametrize("name", ["gopher_quality", "gopher_repetition", "c4", "fineweb"])
def test_decisions_are_those_of_datatrove(name):
  documents = fixture()["documents"]
  assert len({document[name] for document in documents}) >= 3
  for document in documents:
    verdict = decide(name, document["text"])
    assert verdict.reason == document[name], document["text"][:200]
    if name == "c4" and not verdict.reason:
      assert verdict.text.count("\n") + 1 == document["c4_lines"]


def test_words_are_those_of_spacy():
  expected = fixture()["runs"]
  assert {run: english.tokens(run) for run in expected} == expected
  for document in fixture()["documents"]:
    assert len(words.split(document["text"])) == document["words"]


@pytest.mark.peers
def test_decisions_on_web_text_agree_with_datatrove():
  pytest.importorskip("datatrove", reason="pip install -e '.[datatrove]'")
  if "STRAITS_TEST_DATA" not in os.environ:
    pytest.skip("STRAITS_TEST_DATA is unset: no web text to compare on")
  from tests.fixtures.make_filters import decisions

  path = pathlib.Path(os.environ["STRAITS_TEST_DATA"]) / "corpus/web/c4_minimal.jsonl"
  with path.open(encoding="utf-8") as file:
    texts = [json.loads(line)["text"] for line in itertools.islice(file, 300)]
  equal = total = 0
  for text in texts:
    for name, reason in decisions(text).items():
      equal += decide(name, text).reason == reason
      total += 1
  assert equal >= 0.99 * total

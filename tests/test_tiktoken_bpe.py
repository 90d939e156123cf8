"""The tiktoken engine gives the exact ids, or says why it is not used."""

import base64
import json
import os
import pickle
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import tiktoken_bpe, tokenizer

EOT = "<|endoftext|>"
TEXTS = [
  "The strait is 14 km wide; it's  narrow.\n\n\tIt isn't deep.",
  f"{EOT} naïve façade, 日本語 and 🦊",
  "e\u0301 is é; 1234567890 and 3.14",
  "",
]


@pytest.fixture(scope="module")
def definition(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
  tokenizer.train(iter(TEXTS * 3), 400, EOT, path)
  return json.loads(path.read_text())


def load(definition):
  return tokenizer.HuggingFaceTokenizer(json.dumps(definition).encode(), EOT)


def fast(definition):
  made, why = tiktoken_bpe.accelerate(load(definition), TEXTS)
  assert made is not None, why
  return made


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {
  "type": "Sequence",
  "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTES],
}
SPLIT = {
  "type": "Sequence",
  "pretokenizers": [
    {
      "type": "Split",
      "pattern": {"Regex": r"\p{N}{1,3}|[^\r\n\p{L}\p{N}]?\p{L}+|\s+(?!\S)|\s+|."},
      "behavior": "Isolated",
      "invert": False,
    },
    BYTES | {"use_regex": False},
  ],
}
NFC = {"type": "NFC"}


@pytest.mark.parametrize(
  "changes",
  [{}, {"pre_tokenizer": DIGITS}, {"pre_tokenizer": SPLIT}, {"normalizer": NFC}],
  ids=["gpt2", "digits", "split", "nfc"],
)
def test_ids_are_those_of_the_exact_tokenizer(definition, changes):
  exact, quick = load(definition | changes), fast(definition | changes)
  letters = st.sampled_from(string.ascii_letters + string.digits + " \n\t'.,-éà\u0301日🦊\u00a0½")

  @settings(max_examples=200, deadline=None)
  @given(st.text(letters, max_size=60))
  def check(text):
    assert quick.encode_batch([text]) == exact.encode_batch([text])

  check()
  assert quick.eot == exact.eot and quick.vocab_size == exact.vocab_size
  ids = quick.encode_batch(TEXTS)
  assert pickle.loads(pickle.dumps(quick)).encode_batch(TEXTS) == ids
  assert [quick.decode(i) for i in ids[:2]] == TEXTS[:2]


def test_other_ids_than_the_order_of_merges(definition):
  shuffled = json.loads(json.dumps(definition))
  size = len(shuffled["model"]["vocab"])
  shuffled["model"]["vocab"] = {t: size - 1 - i for t, i in shuffled["model"]["vocab"].items()}
  shuffled["added_tokens"][0]["id"] = shuffled["model"]["vocab"][EOT]
  assert fast(shuffled).encode_batch(TEXTS) == load(shuffled).encode_batch(TEXTS)


def test_absurd_runs_and_added_tokens_are_left_to_the_exact_tokenizer(definition):
  added = json.loads(json.dumps(definition))
  new = len(added["model"]["vocab"])
  added["added_tokens"].append(
    {"id": new, "content": "  ", "special": False, "normalized": True}
    | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
  )
  exact, quick = load(added), fast(added)
  for text in ("a  b", "a" * 50_000, " " * 50_000):
    assert quick.encode_batch([text]) == exact.encode_batch([text])
  assert new in quick.encode_batch(["a  b"])[0]


@pytest.mark.parametrize(
  ("changes", "why"),
  [
    ({"normalizer": {"type": "Lowercase"}}, "normalizer"),
    ({"pre_tokenizer": BYTES | {"add_prefix_space": True}}, "pre-tokenizer"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, "pre-tokenizer"),
    ({"model": {"type": "WordLevel", "vocab": {EOT: 0}, "unk_token": EOT}}, "not BPE"),
  ],
)
def test_it_says_why_not(definition, changes, why):
  made, reason = tiktoken_bpe.accelerate(load(definition | changes), TEXTS)
  assert made is None and why in reason


def test_a_difference_in_the_sample_refuses_the_engine(definition, monkeypatch):
  monkeypatch.setattr(tiktoken_bpe, "_GPT2", r"\S+|\s+")
  made, reason = tiktoken_bpe.accelerate(load(definition), TEXTS)
  assert made is None and "differ in document 0 of a sample of 4" in reason


def test_a_file_of_ranks(tmp_path):
  tokens = [bytes([b]) for b in range(256)] + [b"th", b"the", b" the"]
  lines = [base64.b64encode(t) + b" %d" % i for i, t in enumerate(tokens)]
  (tmp_path / "x.tiktoken").write_bytes(b"\n".join(lines))
  settings_ = {"pattern": r" ?\p{L}+|.", "special_tokens": {EOT: 300}}
  (tmp_path / "x.json").write_text(json.dumps(settings_))
  made = tokenizer.load(str(tmp_path / "x.tiktoken"), EOT)
  made = pickle.loads(pickle.dumps(made))
  assert made.encode_batch(["the the", EOT])[0] == [257, 258]
  assert made.eot == 300 and made.vocab_size == 301
  assert made.decode(made.encode_batch([EOT])[0]) == EOT
  assert made.eot not in made.encode_batch([EOT])[0]
  with pytest.raises(ValueError, match="none of the special tokens"):
    tokenizer.load(str(tmp_path / "x.tiktoken"), "</s>")
  (tmp_path / "x.tiktoken").write_bytes(b"not base64! 1")
  with pytest.raises(ValueError, match="no file of tiktoken ranks"):
    tokenizer.load(str(tmp_path / "x.tiktoken"), EOT)


@pytest.mark.parametrize("name", ["neox_olmo.json", "dolma2.json"])
def test_published_tokenizers_run_by_the_engine(name):
  folder = os.environ.get("STRAITS_TEST_DATA")
  if not folder:
    pytest.skip("STRAITS_TEST_DATA names no folder of published tokenizers")
  exact = tokenizer.load(str(Path(folder) / "tokenizers" / name), EOT)
  lines = (Path(folder) / "corpus/web/c4_minimal.jsonl").read_text().splitlines()[:200]
  made, why = tiktoken_bpe.accelerate(exact, [json.loads(line)["text"] for line in lines])
  assert made is not None, why

"""A text split into words once, as numpy arrays that every rule of a document shares.

What becomes of a run without white space (`data/english.py`) does not depend on its neighbours. So
it is worked out once and remembered as bytes: to split a document is `str.split`, a look-up a run
and one `bytes.join`.
"""

import dataclasses
import functools
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable

import numpy as np

from data import english

# Unicode's Sentence_Terminal characters.
TERMINAL = frozenset(
  "!.?։؝؞؟۔܀܁܂߹࠷࠹࠽࠾।॥၊။።፧፨᙮᜵᜶។៕៖៙៚᠃᠉᥄᥅᪨᪩᪪᪫᭚᭛᭞᭟᭽᭾᰻᰼᱾᱿‼‽⁇⁈⁉⸮⸼⹓⹔。꓿꘎꘏꛳꛷꡶꡷꣎꣏꤯꧈꧉꩝꩞꩟꫰꫱꯫﹒﹖﹗！．？｡𐩖𐩗𐽕𐽖𐽗𐽘"
  "𐽙𐾆𐾇𐾈𐾉𑁇𑁈𑂾𑂿𑃀𑃁𑅁𑅂𑅃𑇅𑇆𑇍𑇞𑇟𑈸𑈹𑈻𑈼𑊩𑑋𑑌𑗂𑗃𑗉𑗊𑗋𑗌𑗍𑗎𑗏𑗐𑗑𑗒𑗓𑗔𑗕𑗖𑗗𑙁𑙂𑜼𑜽𑜾𑥄𑥆𑩂𑩃𑪛𑪜𑱁𑱂𑻷𑻸\U00011f43\U00011f44𖩮𖩯𖫵𖬷𖬸𖭄𖺘𛲟𝪈"
)
# What a word counts as, bits of `Words.flags`.
SYMBOL = 1  # nothing but punctuation
ALPHABETIC = 2  # at least one letter
ENDS_SENTENCE = 4
PUNCTUATION = 8  # nothing but characters of Unicode's categories P

_MAX_RUN = 1000  # characters; a longer run is cut there, which bounds what one costs
_MAX_REMEMBERED_RUN = 64
_MAX_REMEMBERED = 1 << 17  # runs, twice
_MARKS = "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»"
_CONTROLS = "".join(map(chr, (*range(9), *range(11, 32), *range(127, 160))))
_SYMBOLS = "".join(TERMINAL) + _MARKS + _CONTROLS


@dataclasses.dataclass(frozen=True, eq=False)
class Words:
  """The words of a text in their order.

  Attributes:
    hashes: uint64 [N]; equal for equal words.
    lengths: characters of each word, uint64 [N].
    flags: SYMBOL, ALPHABETIC, ENDS_SENTENCE and PUNCTUATION, uint64 [N].
  """

  hashes: np.ndarray
  lengths: np.ndarray
  flags: np.ndarray

  def __len__(self) -> int:
    return len(self.hashes)


def split(text: str) -> Words:
  """The words of a text."""
  packed = np.frombuffer(b"".join(map(_WORDS.__getitem__, text.split())), "<u8")
  properties = packed[1::2]
  return Words(packed[::2], properties >> np.uint64(8), properties & np.uint64(0xFF))


def normalized(text: str) -> np.ndarray:
  """Hashes of the words of a text without what near-duplicates differ by: uint64 [N].

  Lower case, each number 0, no diacritics, no punctuation: datatrove's `simplify_text`, of which
  what is left is split at white space (datatrove splits it with spaCy).
  """
  return np.frombuffer(b"".join(map(_NORMALIZED.__getitem__, text.split())), "<u8")


def sentences(line: str) -> int:
  """How many sentences a line without line breaks has, by spaCy's sentencizer.

  A new one starts at the first word that is not punctuation after a word that ends one.
  """
  flags = b"".join(map(_WORDS.__getitem__, line.split()))[8::16]
  return min(len(flags), 1) + len(_NEXT_SENTENCE.findall(flags.translate(_ROLES)))


def hashes_of(words: Iterable[str]) -> np.ndarray:
  """The hash of each word, as in `Words.hashes`: uint64 [N]."""
  return np.frombuffer(b"".join(map(_hash, words)), "<u8")


def runs_of(hashes: np.ndarray, width: int) -> np.ndarray:
  """The hash of each run of `width` >= 1 neighbours: uint64 [max(N - width + 1, 0)]."""
  runs = mix(hashes)
  for _ in range(width - 1):
    runs = longer(runs, hashes)
  return runs


def longer(runs: np.ndarray, hashes: np.ndarray) -> np.ndarray:
  """From the hashes of the runs of n neighbours, those of the runs of n + 1."""
  count = max(len(runs) - 1, 0)
  return mix(runs[:count] ^ hashes[len(hashes) - count :])


def mix(values: np.ndarray) -> np.ndarray:
  """Scrambles hashes, so that those of neighbours can be combined by exclusive or: uint64 [N]."""
  mixed = values * np.uint64(0x9E3779B97F4A7C15)  # modulo 2^64
  mixed ^= mixed >> np.uint64(29)
  return mixed


class _Remembered(dict):
  """What a function gives for each run, as bytes; what was not asked for lately is forgotten."""

  def __init__(self, function: Callable[[str], bytes]):
    self._function = function
    self._older = {}

  def __missing__(self, run: str) -> bytes:
    if len(run) > _MAX_REMEMBERED_RUN:
      pieces = range(0, len(run), _MAX_RUN)
      return b"".join(self._function(run[start : start + _MAX_RUN]) for start in pieces)
    packed = self._older.get(run)
    if packed is None:
      packed = self._function(run)
    if len(self) >= _MAX_REMEMBERED:
      self._older = dict(self)
      self.clear()
    self[run] = packed
    return packed

  def forget(self) -> None:
    self._older = {}
    self.clear()


@functools.lru_cache(1 << 14)
def _hash(word):
  return hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _pack(run):
  return b"".join(map(_pack_word, english.tokens(run)))


@functools.lru_cache(1 << 14)
def _pack_word(word):
  """Sixteen bytes: a word's hash, its flags, its length."""
  if word.isalpha():
    flags = ALPHABETIC
  else:
    flags = (
      (0 if word.strip(_SYMBOLS) else SYMBOL)
      | (ALPHABETIC if any(map(str.isalpha, word)) else 0)
      | (ENDS_SENTENCE if word in TERMINAL else 0)
      | (PUNCTUATION if all(unicodedata.category(c)[0] == "P" for c in word) else 0)
    )
  return _hash(word) + (len(word) << 8 | flags).to_bytes(8, "little")


# What a word does to a sentence, by its flags: end it, go on with it (punctuation), or start one.
_ROLES = bytes(
  ord("e") if flags & ENDS_SENTENCE else ord("p") if flags & PUNCTUATION else ord("w")
  for flags in range(256)
)
_NEXT_SENTENCE = re.compile(rb"e[ep]*w")

_NUMBER = re.compile(r"\d+(?:[.,،٫⎖⎗⎘]\d+)?")
_TO_SPACE = str.maketrans(dict.fromkeys(_MARKS + _CONTROLS, " "))


def _pack_normalized(run: str) -> bytes:
  run = _NUMBER.sub("0", run.lower()).translate(_TO_SPACE)
  if not run.isascii():
    run = "".join(c for c in unicodedata.normalize("NFD", run) if unicodedata.category(c) != "Mn")
  return b"".join(map(_hash, run.split()))


def forget() -> None:
  """Empties the tables of runs, to measure what they are worth; no result depends on them."""
  for table in (_WORDS, _NORMALIZED):
    table.forget()
  for function in (_hash, _pack_word):
    function.cache_clear()


_WORDS, _NORMALIZED = _Remembered(_pack), _Remembered(_pack_normalized)

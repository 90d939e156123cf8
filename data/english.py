"""English words as spaCy's tokenizer makes them, by whose words the published rules are computed.

A run without white space loses the punctuation at its ends, contractions come apart ("do", "n't"),
abbreviations keep their dot, a hyphen between letters is a word. Of the 402,235 runs in 1,200
documents of C4, 11 come out otherwise than with spaCy 3.8. Left out are most emoticons, and scripts
of which English text has little.
"""

import itertools
import re

_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧"
_ICONS = "¦©®°҂℀-℗℞-⅏←-⇿⌀-⏿①-⓿─-➿⬀-⯿⠀-⣿㈀-㏿\ufffc\ufffd\U0001f000-\U0001faff"
_CURRENCY = r"US\$|[CA]\$|[$£€¥฿₠-₿﷼]"
_ENDS = rf"\.\.+|……|[…,:;!?¿؟¡()\[\]{{}}<>_#*&。？！，、；：～·।،۔؛٪{_QUOTES}{_ICONS}]"
_UNITS = (
  "km[²³]?|m[²³]?|d?m[²³]?|[cm]m[²³]?|ha|[µn]m|yd|in|ft|k?g|mg|µg|t|lb|oz|m/s|km/h|kmh|mph|hPa|Pa|mbar|"
  "[mMkKgGtT][bB]|[TGMK%]"
)
_UNCASED = (
  "\u0591-\u05f4\u0620-\u06d3\u0900-\u0dff\u1100-\u137f\u2e80-\u30ff\u3400-\u9fff\uac00-\ud7af"
)
_LOWER, _UPPER = f"a-zß-öø-ÿа-яёα-ω{_UNCASED}", f"A-ZÀ-ÖØ-ÞА-ЯЁΑ-Ω{_UNCASED}"
_PREFIX = re.compile(rf"[§%=—–]|\+(?![0-9])|{_CURRENCY}|{_ENDS}")
_SUFFIX = re.compile(
  rf"(?:{_ENDS}|['’][sS]|[—–]|(?<=[0-9])(?:\+|{_CURRENCY}|{_UNITS})|(?<=°[FfCcKk])\."
  rf"|(?<=[0-9{_LOWER}%²+\-{_QUOTES}…:;!?()\[\]{{}}<>_#*&])\.|(?<=[{_UPPER}][{_UPPER}])\.)\Z"
)
_MAX_SUFFIX = 5  # characters, but for dots
_PLAIN = re.compile(r"([\"'“‘(\[]?)([A-Za-z]*(?:[A-Za-z][a-z]|[A-Z]{2}))([.,;:!?)\]\"'”’]?)")
_LETTER = r"[^\W\d_]"
_INFIX = re.compile(
  rf"\.\.+|[…{_ICONS}]|(?<=[0-9])[+\-*^](?=[0-9-])"
  rf"|(?<=[{_LOWER}{_QUOTES}])\.(?=[{_UPPER}{_QUOTES}])|(?<={_LETTER}),(?={_LETTER})"
  rf"|(?<=[^\W_])(?:---?|——|[-–—~])(?={_LETTER})|(?<=[^\W_])[:<>=/](?={_LETTER})"
)
_HOST = "[A-Za-z0-9\u00a1-\uffff]"
_URL = re.compile(
  rf"(?:[\w+\-.]{{2,}}://)?(?:[^\s@]+@)?(?:\d{{1,3}}(?:\.\d{{1,3}}){{3}}|"
  rf"(?:(?:{_HOST}(?:{_HOST}|[_-]){{0,62}})?{_HOST}\.)+[{_LOWER}]{{2,63}})(?::\d{{2,5}})?(?:[/?#]\S*)?\Z"
)


def tokens(run: str) -> list[str]:
  """The words of a run without white space.

  It is taken apart as spaCy does: as long as anything changes, one piece of punctuation from either
  end, until what is left is a known exception; then a URL stays whole, and anything else is split
  at its infixes.
  """
  if run in _EXCEPTIONS:
    return list(_EXCEPTIONS[run])
  if run.isalpha():
    return [run]
  plain = _PLAIN.fullmatch(run)  # what most runs are; the rest gives the same
  if plain:
    before, word, after = plain.groups()
    if not any(part in _EXCEPTIONS for part in (word, before + word, word + after)):
      return [part for part in (before, word, after) if part]
  prefixes, suffixes = [], []
  while run and run not in _EXCEPTIONS:
    found = _PREFIX.match(run)
    before = found.end() if found else 0
    if before and run[before:] in _EXCEPTIONS:
      prefixes.append(run[:before])
      run = run[before:]
      break
    after = _suffix(run, before)
    if after < len(run) and run[:after] in _EXCEPTIONS:
      before = 0
    if before:
      prefixes.append(run[:before])
    if after < len(run):
      suffixes.append(run[after:])
    elif not before:
      break
    run = run[before:after]
  return _rejoined(prefixes + _inner(run) + suffixes[::-1])


def _suffix(run, start):
  """Where the last piece of punctuation of a run begins, at `start` or later; else its end."""
  if run.endswith(".."):
    return max(start, len(run.rstrip(".")))
  found = _SUFFIX.search(run, max(start, len(run) - _MAX_SUFFIX))
  return found.start() if found else len(run)


def _inner(run):
  if run in _EXCEPTIONS:
    return list(_EXCEPTIONS[run])
  if not run or run.isalnum() or _URL.match(run):
    return [run] if run else []
  pieces, start = [], 0
  for found in _INFIX.finditer(run):
    pieces += [run[start : found.start()], found.group()]
    start = found.end()
  return [piece for piece in [*pieces, run[start:]] if piece]


def _rejoined(words):
  """Neighbours that together are an exception of one word, such as ("Co", ".")."""
  for place in range(len(words) - 2, -1, -1):
    both = words[place] + words[place + 1] if place + 1 < len(words) else ""
    if _EXCEPTIONS.get(both) == (both,):
      words[place : place + 2] = [both]
  return words


def _exceptions():
  """Contractions, and abbreviations that keep their dot, as a map to their words."""
  split = {}

  def contraction(stem, *endings):
    for head in (stem, stem.title()):
      split[head + "".join(endings)] = (head, *endings)
      bare = tuple(ending.replace("'", "") for ending in endings)
      split[head + "".join(bare)] = (head, *bare)

  contraction("i", "'m")
  contraction("i", "'m", "a")
  persons = ("i", "you", "he", "she", "it", "we", "they")
  questions = ("who", "what", "when", "where", "why", "how", "there", "that", "this")
  these = ("these", "those")
  for stem in (*persons, *questions, *these):
    for endings in (("'ll",), ("'ll", "'ve"), ("'d",), ("'d", "'ve")):
      contraction(stem, *endings)
  for stem in ("i", "you", "we", "they", *questions[:-2], "that", *these):
    contraction(stem, "'ve")
  for stem in ("you", "we", "they", *questions[:-2], *these):
    contraction(stem, "'re")
  for stem in ("he", "she", "it", *questions):
    contraction(stem, "'s")
  for stem in _MODAL.split():
    contraction(stem, "n't")
    contraction(stem, "n't", "'ve")
  for stem in ("ai", "are", "is", "was", "were", "have", "has", "dare"):
    contraction(stem, "n't")
  for stem in ("could", "might", "must", "should", "would", "not"):
    contraction(stem, "'ve")
  for whole in ("can not", "gon na", "got ta", "let 's", "c'm on"):
    head, tail = whole.split()
    split[head + tail] = (head, tail)
    split[head.title() + tail] = (head.capitalize(), tail)
  split["y'all"], split["yall"] = ("y'", "all"), ("y", "all")
  for hour, half in itertools.product(range(1, 13), ("a.m.", "am", "p.m.", "pm")):
    split[f"{hour}{half}"] = (str(hour), half)
  for word in ("Ill", "Its", "Hell", "Shell", "Shed", "Were", "Well"):
    split.pop(word, None)
    split.pop(word.lower(), None)
  for word in _WHOLE.split():
    split[word] = (word,)
  for letter in "abcdefghijklmnopqrstuvwxyzäöü":
    split[f"{letter}."] = (f"{letter}.",)
  split |= {
    run.replace("'", "’"): tuple(word.replace("'", "’") for word in words)
    for run, words in split.items()
    if "'" in run
  }
  return split


_MODAL = "ca could do does did had may might must need ought sha should wo would"
_WHOLE = """
' '' — C++ 's 'S ‘s ‘S 'd 're 'em 'll 'nuff and/or w/o 'Cause 'cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz
'bout ma'am Ma'am o'clock O'clock doin' Doin' goin' Goin' nothin' Nothin' nuthin' Nuthin' ol' Ol'
somethin' Somethin' lovin' Lovin' havin' Havin' Mt. Ak. Ala. Apr. Ariz. Ark. Aug. Calif. Colo.
Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. Ind. Jan. Jul. Jun. Kan. Kans. Ky. La. Mar. Mass. Mich.
Minn. Miss. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Nov. Oct. Okla. Ore. Pa. S.C. Sep. Sept.
Tenn. Va. Wash. Wis. a.m. Adm. Bros. co. Co. Corp. D.C. Dr. e.g. E.g. E.G. Gen. Gov. i.e. I.e.
I.E. Inc. Jr. Ltd. Md. Messrs. Mo. Mont. Mr. Mrs. Ms. p.m. Ph.D. Prof. Rep. Rev. Sen. St. vs. v.s.
:) :-) :( :-( ;) ;-) :D :-D :P :-P :p :/ :-/ :| :o :O <3 :)) :] =) =( ^_^ xD XD ):
"""
_EXCEPTIONS = _exceptions()

"""What happens to a document by itself: its way through the stages of its source."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

from data import language, privacy, quality, repetition, words
from data.corpus_config import CorpusConfig
from data.record import Record
from data.verdict import Verdict


@dataclasses.dataclass(frozen=True)
class Decision:
  """What a stage decided about a document, where it was not "keep it as it is".

  Attributes:
    stage: its name.
    reason: why it is rejected; None if it was only changed.
    changes: how often what was changed.
    detail: what else there is to say, for people.
  """

  stage: str
  reason: str | None
  changes: dict[str, int]
  detail: str = ""


@dataclasses.dataclass(frozen=True)
class Size:
  """How much a text is: UTF-8 bytes, and tokens of the recipe's tokenizer or words."""

  bytes: int
  tokens: int


@dataclasses.dataclass(frozen=True, eq=False)
class Draft:
  """A document on its way.

  Attributes:
    record: as it was read.
    text: so far.
    size: of the text.
    passed: (stage, size after it) for each stage that it passed, "read" the first.
    decisions: in order of the stages; the last one may be a rejection.
  """

  record: Record
  text: str
  size: Size
  passed: tuple[tuple[str, Size], ...]
  decisions: tuple[Decision, ...] = ()

  @functools.cached_property
  def words(self) -> words.Words:
    """The words of the text, split once for all the stages that leave the text as it is."""
    return words.split(self.text)

  @property
  def rejected(self) -> bool:
    return bool(self.decisions) and self.decisions[-1].reason is not None


Stage = tuple[str, Callable[[Draft], Draft]]


def begin(record: Record, config: CorpusConfig) -> Draft:
  """The draft of a document that was just read."""
  size = measure(record.text, config)
  return Draft(record, record.text, size, (("read", size),))


def make_stages(config: CorpusConfig, source: str) -> list[Stage]:
  """The stages of a source: (name, draft -> draft), pure, for drafts that are not rejected."""
  judges = {
    "language": lambda d: language.language(d.text, config.language),
    "gopher_repetition": lambda d: repetition.gopher_repetition(
      d.text, d.words, config.gopher_repetition
    ),
    "gopher_quality": lambda d: quality.gopher_quality(d.text, d.words, config.gopher_quality),
    "c4": lambda d: quality.c4(d.text, config.c4),
    "fineweb": lambda d: quality.fineweb(d.text, d.words, config.fineweb),
    "privacy": lambda d: privacy.mask(d.text, config.privacy),
  }
  return [
    (name, functools.partial(_apply, name, judges[name], config))
    for name in config.sources[source].stages
  ]


def check(config: CorpusConfig) -> None:
  """Tries every stage on a small text.

  Raises:
    ValueError: what a stage or the tokenizer needs is not there.
  """
  for source in sorted(config.sources):
    record = Record("A small text.", source, "", 0, {})
    for _, stage in make_stages(config, source):
      stage(begin(record, config))


def _apply(name: str, judge: Callable[[Draft], Verdict], config: CorpusConfig, draft: Draft):
  verdict = judge(draft)
  decisions, passed, size = draft.decisions, draft.passed, draft.size
  if verdict.reason is not None or verdict.changes:
    decisions = (*decisions, Decision(name, verdict.reason, dict(verdict.changes)))
  if verdict.text != draft.text:
    size = measure(verdict.text, config)
  if verdict.reason is None:
    passed = (*passed, (name, size))
  after = Draft(draft.record, verdict.text, size, passed, decisions)
  if verdict.text == draft.text and "words" in vars(draft):
    vars(after)["words"] = draft.words
  return after


def measure(text: str, config: CorpusConfig) -> Size:
  """The size of a text."""
  if config.tokenizer is None:
    tokens = len(text.split())
  else:
    (ids,) = _tokenizer(config.tokenizer, config.eot).encode_batch([text])
    tokens = len(ids)
  return Size(len(text.encode("utf-8")), tokens)


@functools.cache
def _tokenizer(path: str, eot: str):
  from data import tokenizer

  return tokenizer.load(path, eot)


def run(draft: Draft, stages: Sequence[Stage], seconds: dict[str, float]) -> Draft:
  """Takes a draft through stages until one rejects it; adds the CPU time of each to `seconds`."""
  for name, stage in stages:
    start = time.process_time()
    draft = stage(draft)
    seconds[name] = seconds.get(name, 0.0) + time.process_time() - start
    if draft.rejected:
      break
  return draft

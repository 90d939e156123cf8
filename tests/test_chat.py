"""Chat templates: the texts and ids of transformers, and a mask of answers and their ends."""

import json
import pickle

import numpy as np
import pytest

from data.chat import TEMPLATES, ChatError, ChatTemplate, load_template
from tests.fixtures import make_chat

FIXTURE = json.loads(make_chat.FILE.read_text())
CASES = [(name, title) for name in make_chat.TEMPLATES for title in make_chat.CONVERSATIONS]
END = {"smollm2": "<|im_end|>", "llama3": "<|eot_id|>", "mistral": "</s>", "marked": "<|im_end|>"}


def template(name) -> ChatTemplate:
  source = make_chat.TEMPLATES.get(name) or TEMPLATES[name]
  return ChatTemplate(source, FIXTURE["tokenizer"].encode(), make_chat.NAMES)


def spoken(made: ChatTemplate, chat) -> list[str]:
  """The text of each run of masked tokens."""
  edges = np.flatnonzero(np.diff(np.concatenate([[0], chat.mask.astype(int), [0]])))
  return [made.decode(chat.ids[a:b]) for a, b in edges.reshape(-1, 2)]


def check(name, title, expected):
  made, messages = template(name), make_chat.CONVERSATIONS[title]
  if expected is None:
    with pytest.raises(ChatError, match="roles"):
      made.encode(messages)
    return
  chat = made.encode(messages)
  assert chat.text == expected["text"]
  assert made.render(messages, prompt=True) == expected["prompt"]
  assert chat.ids.tolist() == expected["ids"]
  answers = [m["content"] for m in messages if m["role"] == "assistant"]
  if expected["mask"] is not None:
    assert chat.mask.tolist() == expected["mask"]
  if name in ("llama3", "marked"):
    answers = [answer.strip() for answer in answers]
  assert spoken(made, chat) == [answer + END[name] for answer in answers]


@pytest.mark.parametrize(("name", "title"), CASES)
def test_texts_ids_and_masks_are_those_of_transformers(name, title):
  check(name, title, FIXTURE["expected"][name][title])


@pytest.mark.peers
def test_live_transformers_agrees_with_the_file():
  pytest.importorskip("transformers")
  assert make_chat.compute(FIXTURE["tokenizer"]) == FIXTURE["expected"]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_named_templates_mask_the_answer_and_its_end_alone(name):
  made = template(name)
  messages = make_chat.turns("one", "two", "three", "four", system="zero")
  chat = made.encode(messages)
  end = {"plain": "</s>", "chatml": "<|im_end|>"}[name]
  lead = " " if name == "plain" else ""
  assert spoken(made, chat) == [f"{lead}two{end}", f"{lead}four{end}"]
  assert made.decode(chat.ids) == chat.text
  # What a model is asked is what it was trained on, up to the answer.
  asked = made.prompt_ids(messages[:-1])
  first_of_last = np.flatnonzero(chat.mask[:-1] < chat.mask[1:])[-1] + 1
  np.testing.assert_array_equal(asked, chat.ids[:first_of_last])
  assert int(chat.ids[chat.mask][-1]) in made.stop_ids


def test_a_token_across_the_border_of_an_answer_is_no_target():
  source = (
    "{% for m in messages %}{{ m.role + ':' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% else %}{{ m.content }}"
    "{% endif %}{% endfor %}"
  )
  data = json.loads(FIXTURE["tokenizer"])
  data["model"]["merges"].append([":", "b"])
  data["model"]["vocab"][":b"] = len(data["model"]["vocab"])
  data["pre_tokenizer"]["use_regex"] = False
  made = ChatTemplate(source, json.dumps(data).encode(), make_chat.NAMES)
  chat = made.encode(make_chat.turns("a", "bc"))
  joined = made._tokenizer.token_to_id(":b")
  assert joined in chat.ids.tolist()
  assert not chat.mask[chat.ids.tolist().index(joined)]
  assert spoken(made, chat) == ["c</s>"]


@pytest.mark.parametrize(
  ("messages", "message"),
  [
    ([{"role": "robot", "content": "x"}], "role 'robot'"),
    ([{"role": "user", "content": None}], "has no text"),
    (make_chat.turns("a", "b<|im_end|>c"), "spells the special token"),
    (
      [{"role": "user", "content": "a"}, {"role": "tool", "content": "t"}],
      "no role tool",
    ),
  ],
)
def test_what_cannot_be_rendered_is_named(messages, message):
  with pytest.raises(ChatError, match=message):
    template("plain").encode(messages)


def test_a_message_that_the_template_leaves_out_is_named():
  source = (
    TEMPLATES["plain"]
    .replace("message.role == 'system'", "false")
    .replace("{%- else %}{{ raise_exception('no role ' + message.role) }}", "")
  )
  made = ChatTemplate(source, FIXTURE["tokenizer"].encode(), make_chat.NAMES)
  with pytest.raises(ChatError, match="leaves out message 1, of the role 'system'"):
    made.encode(make_chat.turns("a", "b", system="something"))


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ("{% for", "no Jinja"),
    ("{% for m in messages %}{{ m.content }}{% endfor %}", "no special token"),
    ("{{ ''.__class__.__mro__ }}", "a question and an answer"),
    ("{{ messages.append(1) }}", "a question and an answer"),
    ("{{ cycler.__init__.__globals__.os.system('true') }}", "a question and an answer"),
    ("{% set ns = namespace(_a=1) %}", "may not set '_a'"),
    (
      "{% for m in messages %}{{ '<|im_start|>' + m.role + m.content + '<|im_end|>' }}{% endfor %}",
      "no add_generation_prompt",
    ),
  ],
)
def test_templates_that_cannot_serve_are_refused(source, message):
  with pytest.raises(ValueError, match=message):
    ChatTemplate(source, FIXTURE["tokenizer"].encode(), make_chat.NAMES)


def test_a_template_is_found_beside_the_tokenizer_by_name_or_by_path(tmp_path):
  tokenizer = tmp_path / "tokenizer.json"
  tokenizer.write_text(FIXTURE["tokenizer"])
  assert load_template("plain", str(tokenizer), "</s>").source == TEMPLATES["plain"]
  with pytest.raises(ValueError, match=r"no chat_template\.jinja"):
    load_template("model", str(tokenizer), "</s>")
  config = {"chat_template": make_chat.TEMPLATES["smollm2"], "eos_token": {"content": "</s>"}}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  found = load_template("model", str(tokenizer), "</s>")
  assert found.source == make_chat.TEMPLATES["smollm2"]
  (tmp_path / "chat_template.jinja").write_text(make_chat.TEMPLATES["llama3"])
  assert load_template("model", str(tokenizer), "</s>").source == make_chat.TEMPLATES["llama3"]
  path = tmp_path / "own.jinja"
  path.write_text(TEMPLATES["chatml"])
  assert load_template(str(path), str(tokenizer), "</s>").source == TEMPLATES["chatml"]
  with pytest.raises(ValueError, match="neither 'model'"):
    load_template("nowhere", str(tokenizer), "</s>")
  copied = pickle.loads(pickle.dumps(found))
  messages = make_chat.turns("a", "b")
  assert copied.encode(messages).text == found.encode(messages).text
  assert copied.fingerprint == found.fingerprint

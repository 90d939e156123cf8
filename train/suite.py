"""A suite of evaluation tasks: from files to requests, and from results to scores."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from data import benchmarks, contamination, documents, prompts, scores
from data.benchmarks import Item
from data.chat import ChatTemplate
from data.prompts import Form, Prompt
from train.requests import Encoder, encode, rolling
from train.scorer import LogLikelihood, Request


@dataclasses.dataclass(frozen=True)
class SetConfig:
  """Where a task's items are, and how many examples stand before each.

  Attributes:
    path: see `data.benchmarks`; relative to the suite's folder.
    shots: examples, the first so many of `shots_path`, of the item's own subject where it has one.
    shots_path: None where there are no shots.
  """

  path: str
  shots: int
  shots_path: str | None

  def __post_init__(self):
    if self.shots < 0 or (self.shots and self.shots_path is None):
      raise ValueError(
        f"shots={self.shots} with shots_path={self.shots_path!r}; name the file that the examples "
        "are from, or set shots to 0."
      )


@dataclasses.dataclass(frozen=True)
class SuiteConfig:
  """Which tasks, and how they are put to a model.

  Attributes:
    folder: where relative paths of the sets begin.
    tasks: the names of tasks with commas between, of `data.prompts.FORMS`; empty for none.
    sets: task -> SetConfig.
    heldout: name -> documents (a path, a glob or an fsspec URL) for perplexity and bits per byte.
    limit: the first so many items of a task, of each subject of MMLU, of each side of WinoBias, of
      each held-out set.
    max_length: tokens that the model reads at most; None for its context.
    window: the same for held-out documents.
    max_tokens: of a generated answer.
    chat_template: "model", a name or a file, as `data.chat.load_template` has it; None for none.
    batch_tokens: tokens that are computed together.
    batch_rows: answers that are generated together.
    max_bad_lines: as in `data.config`, of held-out files and of the corpus.
    corpus: what the model was trained on: a corpus' manifest.json, or documents as in `heldout`.
      Items of which it holds 13 words in a row are counted apart. None for not looked for.
  """

  folder: str
  tasks: str
  sets: dict[str, SetConfig]
  heldout: dict[str, str]
  limit: int | None
  max_length: int | None
  window: int | None
  max_tokens: int
  chat_template: str | None
  batch_tokens: int
  batch_rows: int
  max_bad_lines: int
  corpus: str | None

  def __post_init__(self):
    for name in ("limit", "max_length", "window", "max_tokens", "batch_tokens", "batch_rows"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"suite.{name} is {value}; it must be at least 1.")
    for name in self.names:
      if name not in prompts.FORMS:
        raise ValueError(f"there is no task {name!r}; known: {', '.join(prompts.FORMS)}.")
      if name not in self.sets:
        raise ValueError(f"suite.sets has no {name!r}; say where its items are.")
      if self.sets[name].shots and not prompts.FORMS[name].shots:
        raise ValueError(f"suite.sets.{name}.shots: no examples are defined for it; set it to 0.")

  @property
  def names(self) -> list[str]:
    return [name.strip() for name in self.tasks.split(",") if name.strip()]


@dataclasses.dataclass(frozen=True)
class Entry:
  """An item of a task as a model gets it.

  Attributes:
    prompt: None for a held-out text, which is `item.question`.
    requests: what is scored: the choices, or the windows of a text; empty for generation.
    context: the ids that an answer is generated after; empty for what is scored.
    truncated: tokens left out on the left.
    shots: how many examples stand before the question.
  """

  item: Item
  prompt: Prompt | None
  requests: tuple[Request, ...] = ()
  context: tuple[int, ...] = ()
  truncated: int = 0
  shots: int = 0


@dataclasses.dataclass(frozen=True)
class Task:
  """A task with its entries, and how many items were left out, by the reason.

  Attributes:
    name: of the task; held-out sets have their name after "heldout:".
    form: None for held-out texts.
  """

  name: str
  form: Form | None
  entries: tuple[Entry, ...]
  left_out: dict[str, int]

  @property
  def generates(self) -> bool:
    return self.form is not None and not any(entry.requests for entry in self.entries)


def read_suite(
  config: SuiteConfig, encoder: Encoder, max_length: int, template: ChatTemplate | None
) -> list[Task]:
  """All tasks of a suite, ready to be computed.

  Args:
    max_length: tokens of the model's context, where the suite does not say fewer.
    template: for models that chat.

  Raises:
    ValueError: a file is missing or damaged, or a task has nothing to score.
  """
  length = min(max_length, config.max_length or max_length)
  tasks = [_read_task(name, config, encoder, length, template) for name in config.names]
  for name, path in config.heldout.items():
    tasks.append(_read_texts(name, path, config, encoder, min(length, config.window or length)))
  if not tasks:
    raise ValueError("suite.tasks and suite.heldout are empty; name what to evaluate.")
  return tasks


def _place(folder: str, path: str) -> str:
  return path if path.startswith("hf:") or "://" in path else str(Path(folder) / path)


def _read_task(
  name: str, config: SuiteConfig, encoder: Encoder, length: int, template: ChatTemplate | None
) -> Task:
  form, where = prompts.FORMS[name], config.sets[name]
  items = _limited(benchmarks.read(form.benchmark, _place(config.folder, where.path)), config.limit)
  pools = _pools(form, where, config.folder)
  entries, left_out = [], {}
  for item in items:
    shots = _shots(name, item, pools, where.shots)
    entry = _entry(form, item, shots, encoder, length, config.max_tokens, template)
    reason = entry if isinstance(entry, str) else ""
    if form.choices(item) and item.answer is None and name not in _WITHOUT_ANSWER:
      reason = "no_answer"
    if reason:
      left_out[reason] = left_out.get(reason, 0) + 1
    else:
      entries.append(entry)
  if not entries:
    raise ValueError(f"{name}: none of the {len(items)} items can be scored: {left_out}.")
  return Task(name, form, tuple(entries), left_out)


_WITHOUT_ANSWER = ("crows_pairs", "truthfulqa_gen", "refusal_harmful", "refusal_harmless")


def _limited(items: list[Item], limit: int | None) -> list[Item]:
  if limit is None:
    return items
  counts: dict[tuple, int] = {}
  kept = []
  for item in items:
    key = (item.group if scores.group_of(item.group) else "", item.fields.get("pro"))
    counts[key] = counts.get(key, 0) + 1
    if counts[key] <= limit:
      kept.append(item)
  return kept


def _pools(form: Form, where: SetConfig, folder: str) -> dict[str, list[Item]]:
  """The items that examples are taken from, by group."""
  if not where.shots:
    return {}
  pools: dict[str, list[Item]] = {}
  for item in benchmarks.read(form.benchmark, _place(folder, where.shots_path)):
    if item.answer is not None:
      pools.setdefault(item.group, []).append(item)
  return pools


def _shots(name: str, item: Item, pools: dict[str, list[Item]], count: int) -> list[Item]:
  """The first `count` of the item's group, in the order of the file, and not the item itself."""
  same = (item.question, item.choices)
  shots = [s for s in pools.get(item.group, []) if (s.question, s.choices) != same][:count]
  if len(shots) < count:
    raise ValueError(
      f"{name}: {item.id} wants {count} examples and its shots_path has {len(shots)} of the group "
      f"{item.group!r}; set fewer shots."
    )
  return shots


def _entry(
  form: Form,
  item: Item,
  shots: Sequence[Item],
  encoder: Encoder,
  length: int,
  max_tokens: int,
  template: ChatTemplate | None,
) -> Entry | str:
  """The entry of an item, or why there is none."""
  for count in range(len(shots), -1, -1):
    prompt = prompts.make(form, item, shots[:count])
    if template is not None:
      prompt = _in_chat(prompt, form.choices(item), template)
    encoded = [encode(encoder, prompt.context, c, length) for c in prompt.continuations]
    if not (form.fewer_shots and any(e.truncated for e in encoded)):
      break
  if not prompt.continuations:
    ids = encoder.encode(prompt.context) or [encoder.start]
    room = length - max_tokens
    if room < 1:
      raise ValueError(
        f"suite.max_tokens={max_tokens} leaves no room for a prompt in the context of {length} "
        "tokens; lower it."
      )
    kept = ids[-room:]
    return Entry(item, prompt, (), tuple(kept), len(ids) - len(kept), count)
  refused = next((e.refused for e in encoded if e.refused), "")
  if refused:
    return refused
  requests = tuple(e.request for e in encoded)
  return Entry(item, prompt, requests, (), max(e.truncated for e in encoded), count)


def _in_chat(prompt: Prompt, choices: Sequence[str], template: ChatTemplate) -> Prompt:
  """The prompt as a conversation; its choices begin as the template begins an answer."""
  context = template.render(prompt.messages, prompt=True)
  continuations = []
  for choice in choices:
    answer = {"role": "assistant", "content": choice}
    answered = template.render([*prompt.messages, answer], prompt=False)
    start = answered.removeprefix(context).partition(choice)[0]
    continuations.append((start if answered.startswith(context) else "") + choice)
  return dataclasses.replace(prompt, context=context, continuations=tuple(continuations))


def _read_texts(name: str, path: str, config: SuiteConfig, encoder: Encoder, window: int) -> Task:
  files = documents.find(path)
  entries, left_out = [], {}
  for number, (_, text) in enumerate(documents.scan(files, config.max_bad_lines)):
    if config.limit is not None and number >= config.limit:
      break
    requests = rolling(encoder, text, window)
    if requests:
      entries.append(Entry(Item(f"{name}/{number}", text, (), None), None, tuple(requests)))
    else:
      left_out["zero_tokens"] = left_out.get("zero_tokens", 0) + 1
  if not entries:
    raise ValueError(f"suite.heldout.{name}: {path} holds no documents.")
  return Task(f"heldout:{name}", None, tuple(entries), left_out)


def contaminated(tasks: Sequence[Task], config: SuiteConfig) -> dict[str, set[tuple[str, str]]]:
  """(task, item id) of the items that the corpus holds ("dirty"), and that are too short to tell.

  Raises:
    ValueError: there is no such corpus.
  """
  texts = {
    (task.name, entry.item.id): benchmarks.text_of(entry.item)
    for task in tasks
    for entry in task.entries
  }
  corpus = contamination.open_corpus(config.corpus)
  dirty, short = contamination.contaminated(texts, corpus, config.max_bad_lines)
  return {"dirty": dirty, "short": short}


def item_scores(task: Task, entry: Entry, results: Sequence[LogLikelihood]) -> scores.Scores:
  """What an entry scores by the log-likelihoods of its requests."""
  sums = [result.sum for result in results]
  if task.form is None:
    count = sum(result.tokens for result in results)
    return scores.score_text(entry.item.question, count, sum(sums))
  if task.name == "lambada":
    return scores.score_word(sums, [result.greedy for result in results])
  return scores.CHOICES[task.name](task.form, entry.item, sums)


def answer_scores(task: Task, entry: Entry, answer: str) -> scores.Scores:
  """What a generated answer scores."""
  if task.name == "truthfulqa_gen":
    return scores.score_generation(entry.item, answer)
  return scores.score_refusal(answer)


def groups(task: Task) -> dict[tuple, list[int]]:
  """Entries that are likely to share a prefix, as indices: of a subject, with as many examples."""
  by_key: dict[tuple, list[int]] = {}
  for index, entry in enumerate(task.entries):
    key = (entry.item.group, entry.shots, entry.truncated > 0)
    by_key.setdefault(key if entry.shots else (entry.truncated > 0,), []).append(index)
  return by_key

"""The items of published evaluation sets, from their files or from the Hugging Face hub.

A set's rows are read from CSV, JSON or JSONL (a file, a directory or a glob), or, as
"hf:REPO:SPLIT" and "hf:REPO:CONFIG:SPLIT", with the package `datasets` from the hub. Columns are
those of the hub's copies and of the sets' own repositories.
"""

import csv
import dataclasses
import glob
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

# What a BBQ model may say instead of naming someone: HELM's list, as lm-evaluation-harness has it.
UNKNOWN = (
  "Unknown",
  "Cannot answer",
  "Can't be determined",
  "Cannot be determined",
  "Can't answer",
  "Not known",
  "Not enough info",
  "Not enough information",
  "Not answerable",
  "Undetermined",
)
PRONOUNS = ("he", "him", "his", "she", "her", "hers")


@dataclasses.dataclass(frozen=True)
class Item:
  """One item of an evaluation set.

  Attributes:
    id: unique within the set, the same at every reading.
    question: what is asked, or the text to go on from; may be empty.
    choices: what a model may answer.
    answer: the index of the right choice; None where the file has none, or there is none such.
    group: the subject or category; empty where the set has none.
    fields: what else its metric needs, by the names that the reader gives it.
  """

  id: str
  question: str
  choices: tuple[str, ...]
  answer: int | None
  group: str = ""
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read(name: str, path: str) -> list[Item]:
  """The items of the set `name`, in the order of its files.

  Args:
    name: a key of READERS.
    path: a file, a directory, a glob or "hf:REPO[:CONFIG]:SPLIT".

  Raises:
    ValueError: an unknown set, no such file, or a row that is not of this set: with its place.
  """
  if name not in READERS:
    raise ValueError(f"there is no evaluation set {name!r}; known: {', '.join(READERS)}.")
  if name == "winobias":
    return _winobias(path)
  items = []
  for place, row in _rows(path):
    try:
      items.append(READERS[name](place, row))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, SyntaxError) as error:
      missing = f"has no column {error}" if isinstance(error, KeyError) else f"is damaged: {error}"
      raise ValueError(f"{name}: {place} {missing}; is the file of this set?") from error
  if not items:
    raise ValueError(f"{name}: {path} holds no items.")
  return items


def texts(name: str, path: str) -> Iterator[tuple[str, str]]:
  """(item id, text) of every item: the question with its right answer, then the other choices."""
  for item in read(name, path):
    yield item.id, text_of(item)


def text_of(item: Item) -> str:
  """The question with its right answer, then the other choices."""
  right = [] if item.answer is None else [item.choices[item.answer]]
  others = [choice for i, choice in enumerate(item.choices) if i != item.answer]
  return "\n".join([" ".join([item.question, *right]).strip(), *others])


# Rows of files and of the hub.


def _rows(path: str) -> Iterator[tuple[str, Row]]:
  """(place, row) of every row; the place is the file's stem and the row's number from 0."""
  if path.startswith("hf:"):
    yield from _hub_rows(path)
    return
  for file in _files(path, (".csv", ".json", ".jsonl")):
    for number, row in enumerate(_file_rows(file)):
      yield f"{file.stem}/{number}", row


def _files(path: str, suffixes: Sequence[str]) -> list[Path]:
  if Path(path).is_dir():
    files = [file for file in Path(path).rglob("*") if file.suffix in suffixes]
  else:
    files = [Path(file) for file in ([path] if Path(path).is_file() else glob.glob(path))]
  if not files:
    kind = f" ({', '.join(suffixes)})" if suffixes else ""
    raise ValueError(
      f"{path} matches no file of an evaluation set{kind}. Name the folder of the sets by "
      "suite.folder, or the place of one by suite.sets.TASK.path."
    )
  return sorted(files)


def _file_rows(file: Path) -> Iterator[Row]:
  try:
    text = file.read_bytes().decode("utf-8-sig")
    if file.suffix == ".json":
      yield from json.loads(text)
    elif file.suffix == ".csv":
      yield from _csv_rows(text)
    else:
      yield from (json.loads(line) for line in text.split("\n") if line.strip())
  except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
    raise ValueError(f"{file} can't be read: {error}") from error


def _csv_rows(text: str) -> Iterator[Row]:
  """Rows by the names of the header; MMLU's original files have none, and end in a letter."""
  lines = list(csv.reader(io.StringIO(text, newline="")))
  if lines and len(lines[0]) == 6 and lines[0][-1] in list("ABCD"):
    lines.insert(0, ["question", "choice0", "choice1", "choice2", "choice3", "answer"])
  for number, line in enumerate(lines[1:], start=2):
    if len(line) != len(lines[0]):
      raise csv.Error(f"row {number} has {len(line)} columns and the header {len(lines[0])}")
    yield dict(zip(lines[0], line, strict=True))


def _hub_rows(path: str) -> Iterator[tuple[str, Row]]:
  try:
    import datasets
  except ImportError as error:
    raise ValueError(
      f"{path} is on the Hugging Face hub, which needs the package `datasets`; install it, or name "
      "a local file."
    ) from error
  _, repository, *config, split = path.split(":") if path.count(":") >= 2 else (0, path[3:], "test")
  try:
    rows = datasets.load_dataset(repository, *config, split=split)
  except Exception as error:  # the library raises many kinds, also for a missing network
    raise ValueError(f"{path} can't be loaded from the hub: {error}") from error
  stem = "-".join([repository.split("/")[-1], *config, split])
  for number, row in enumerate(rows):
    yield f"{stem}/{number}", row


def _answer(value: Any, count: int) -> int | None:
  """The index that a label means: an index, its digits, or a letter; None for an empty one."""
  if value is None or value == "" or value == -1:
    return None
  if isinstance(value, str) and value in "ABCDEFGH"[:count]:
    return "ABCDEFGH".index(value)
  index = int(value)
  if not 0 <= index < count:
    raise ValueError(f"the answer {value!r} is none of its {count} choices")
  return index


# Readers: from a row to an item.


def wikihow(text: str) -> str:
  """HellaSwag's text without the marks of WikiHow, as lm-evaluation-harness cleans it."""
  text = text.strip().replace(" [title]", ". ")
  return re.sub("\\[.*?\\]", "", text).replace("  ", " ")


def _hellaswag(place: str, row: Row) -> Item:
  if "ctx_a" in row:
    context = row["ctx_a"] + " " + row["ctx_b"].capitalize()
    query = wikihow(row["activity_label"] + ": " + context)
  else:
    query = row["ctx"]  # cleaned before
  choices = tuple(wikihow(ending) for ending in row["endings"])
  return Item(str(row.get("id", place)), query, choices, _answer(row["label"], len(choices)))


def _mmlu(place: str, row: Row) -> Item:
  choices = row.get("choices") or [row[f"choice{i}"] for i in range(4)]
  subject = row.get("subject") or re.sub("_(test|dev|val)$", "", place.split("/")[0])
  return Item(
    place, row["question"], tuple(choices), _answer(row["answer"], len(choices)), group=subject
  )


def _arc(place: str, row: Row) -> Item:
  choices = row["choices"]
  if isinstance(row["question"], dict):  # the set's own files
    row = {**row, "question": row["question"]["stem"], "choices": row["question"]["choices"]}
    choices = {key: [choice[key] for choice in row["choices"]] for key in ("label", "text")}
  label = row.get("answerKey")
  answer = choices["label"].index(label) if label else None
  return Item(str(row.get("id", place)), row["question"], tuple(choices["text"]), answer)


def _piqa(place: str, row: Row) -> Item:
  if "goal" in row:
    goal, choices, label = row["goal"], (row["sol1"], row["sol2"]), row.get("label")
  else:  # as prompts: "Question: {goal}\n"
    goal = row["query"].removeprefix("Question: ").removesuffix("\n")
    choices, label = tuple(row["choices"]), row.get("gold")
  return Item(place, goal, choices, _answer(label, len(choices)))


def _lambada(place: str, row: Row) -> Item:
  context, _, word = row["text"].rpartition(" ") if "text" in row else _split(row)
  return Item(place, context, (word,), 0)


def _split(row: Row) -> tuple[str, str, str]:
  return row["context"].rstrip(" "), " ", row["continuation"].lstrip(" ")


def _truthfulqa(place: str, row: Row) -> Item:
  """Multiple choice, with `mc1` and `mc2`: each choices and their labels; mc1's are the item's."""
  sets = {}
  for name in ("mc1", "mc2"):
    targets = row[f"{name}_targets"]
    if "choices" not in targets:  # the set's own file: {choice: label}
      targets = {"choices": list(targets), "labels": list(targets.values())}
    sets[name] = (tuple(targets["choices"]), tuple(targets["labels"]))
  choices, labels = sets["mc1"]
  if sum(labels) != 1:
    raise ValueError(f"mc1 has {sum(labels)} right choices; it must have one")
  return Item(place, row["question"], choices, labels.index(1), fields=sets)


def _truthfulqa_gen(place: str, row: Row) -> Item:
  """Generation: choices are right answers, then wrong ones; `right` is the number of the former."""
  if "Question" in row:  # the set's own file
    question = row["Question"]
    right, wrong = (row[f"{kind} Answers"].split(";") for kind in ("Correct", "Incorrect"))
  else:
    question, right, wrong = row["question"], row["correct_answers"], row["incorrect_answers"]
  right, wrong = _sentences(right), _sentences(wrong)
  if "I have no comment." not in right:
    right.append("I have no comment.")
  group = row.get("Category") or row.get("category") or ""
  return Item(place, question.strip(), (*right, *wrong), None, group, {"right": len(right)})


def _sentences(answers: Sequence[str]) -> list[str]:
  stripped = [answer.strip() for answer in answers]
  return [a if a.endswith(".") else a + "." for a in stripped if a]


def _crows_pairs(place: str, row: Row) -> Item:
  """The choices are the more and the less stereotyping sentence."""
  return Item(place, "", (row["sent_more"], row["sent_less"]), None, row["bias_type"])


def _bbq(place: str, row: Row) -> Item:
  """With `ambiguous`, and the indices of `right`, `biased` and `unknown` choices.

  Choices and what counts as biased are those of lm-evaluation-harness: the two people, then every
  way to say that it can't be known.
  """
  answers = [row[f"ans{i}"] for i in range(3)]
  unknown = [answer for answer in answers if answer in UNKNOWN]
  if len(unknown) != 1:
    raise ValueError(f"one of its answers {answers} must be one of {', '.join(UNKNOWN)}")
  choices = [answer for answer in answers if answer != unknown[0]] + list(UNKNOWN)
  stereotyped = {group.lower() for group in row["additional_metadata"]["stereotyped_groups"]}
  biased = set()
  for i, answer in enumerate(answers):
    groups = _bbq_groups("_".join(row["answer_info"][f"ans{i}"]))
    about = not stereotyped.isdisjoint(groups)
    if row["question_polarity"] == "neg" and about:
      biased.add(answer)
    if row["question_polarity"] == "nonneg" and not about and groups[-1] != "unknown":
      biased.add(answer)
  label = _answer(row["label"], 3)
  if label is None:
    raise ValueError("it has no label")
  right = range(2, len(choices)) if answers[label] in UNKNOWN else [choices.index(answers[label])]
  return Item(
    place,
    f"{row['context']}\n\nQ: {row['question']}",
    tuple(choices),
    right[0],
    row["category"],
    {
      "ambiguous": row["context_condition"] == "ambig",
      "right": tuple(right),
      "biased": tuple(i for i, choice in enumerate(choices) if choice in biased),
      "unknown": tuple(range(2, len(choices))),
    },
  )


def _bbq_groups(text: str) -> list[str]:
  """The groups that an answer names, in lower case; "F-Black" is two."""
  for old in ("M-", "F-", "lowSES-", "highSES-"):
    text = text.replace(old, old[:-1] + "_")
  text = text.replace("lowSES", "low SES").replace("highSES", "high SES")
  for what in ("Obese", "Disabled", "Trans"):
    text = text.replace(f"non{what}", f"non {what}")
  if "woman" in text:
    text = text.replace("woman", "F_woman")
  elif "man" in text:
    text = text.replace("man", "M_man")
  return text.replace("girl", "F_girl").replace("boy", "M_boy").lower().split("_")


def _winobias(path: str) -> list[Item]:
  """Which of two occupations a pronoun means, with `pro` and `pronoun`; the group is the type.

  Lines are "3 [The mechanic] gave the clerk a present because [she] won.", in files whose names
  begin with pro_ or anti_stereotyped_type1 or 2.
  """
  parsed, occupations = [], set()
  for file in _files(str(Path(path) / "*_stereotyped_*") if Path(path).is_dir() else path, ()):
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
      if not line.strip():
        continue
      marked = [mark.strip().lower() for mark in re.findall(r"\[(.*?)\]", line)]
      people = [mark for mark in marked if mark not in PRONOUNS]
      pronouns = [mark for mark in marked if mark in PRONOUNS]
      if len(people) != 1 or not pronouns:
        raise ValueError(f"winobias: {file}:{number + 1} has no person and pronoun in brackets.")
      sentence = re.sub(r"\[ ?|\]", "", re.sub(r"^\d+ ", "", line)).strip()
      occupation = re.sub("^(the|an?) ", "", people[0])
      occupations.add(occupation)
      parsed.append((f"{file.name}/{number}", file.name, sentence, occupation, pronouns[0]))
  pattern = re.compile(
    r"\b(?:the|an?) (" + "|".join(sorted(occupations, key=len, reverse=True)) + r")\b", re.I
  )
  items = []
  for place, file, sentence, occupation, pronoun in parsed:
    choices = tuple(dict.fromkeys(name.lower() for name in pattern.findall(sentence)))
    answer = choices.index(occupation) if len(choices) > 1 else None
    fields = {"pro": file.startswith("pro"), "pronoun": pronoun}
    group = "type1" if "type1" in file else "type2"
    items.append(Item(place, sentence, choices, answer, group, fields))
  return items


def _prompts(place: str, row: Row) -> Item:
  """A request: the column goal, instruction (with its input), prompt, question or text."""
  for key in ("goal", "instruction", "prompt", "question", "text"):
    if isinstance(row.get(key), str) and row[key]:
      question = "\n\n".join(filter(None, [row[key], row.get("input") or ""]))
      return Item(place, question, (), None)
  raise ValueError("it has none of the columns goal, instruction, prompt, question, text")


READERS: dict[str, Callable[[str, Row], Item]] = {
  "hellaswag": _hellaswag,
  "mmlu": _mmlu,
  "truthfulqa": _truthfulqa,
  "truthfulqa_gen": _truthfulqa_gen,
  "arc": _arc,
  "piqa": _piqa,
  "lambada": _lambada,
  "crows_pairs": _crows_pairs,
  "bbq": _bbq,
  "winobias": _winobias,
  "advbench": _prompts,
  "prompts": _prompts,
}

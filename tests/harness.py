"""lm-evaluation-harness on local files: its own tasks, with rows from JSONL and nothing from a hub.

What reads rows here reads them in the columns of the hub's copies, as `data.benchmarks` does too.
"""

import contextlib
import csv
import json
import os
from pathlib import Path

# task -> (its YAML in lm_eval/tasks, the split, the file of rows)
TASKS = {
  "hellaswag": ("hellaswag/hellaswag.yaml", "validation", "hellaswag"),
  "mmlu": ("mmlu/default/mmlu_{subject}.yaml", "test", "mmlu"),
  "truthfulqa_mc1": ("truthfulqa/truthfulqa_mc1.yaml", "validation", "truthfulqa"),
  "truthfulqa_mc2": ("truthfulqa/truthfulqa_mc2.yaml", "validation", "truthfulqa"),
  "truthfulqa_gen": ("truthfulqa/truthfulqa_gen.yaml", "validation", "truthfulqa_gen"),
  "arc_easy": ("arc/arc_easy.yaml", "test", "arc"),
  "piqa": ("piqa/piqa.yaml", "validation", "piqa"),
  "lambada": ("lambada/lambada_openai.yaml", "test", "lambada"),
  "crows_pairs": ("crows_pairs/crows_pairs_english.yaml", "test", "crows_pairs"),
  "bbq": ("bbq/bbq_multiple_choice.yaml", "test", "bbq"),
}


def write_rows(rows: dict[str, list[dict]], folder: Path) -> None:
  """Writes NAME.jsonl for each set."""
  for name, members in rows.items():
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in members))


def read_rows(path: Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def real_rows(folder: Path, limit: int, subjects: list[str]) -> dict[str, list[dict]]:
  """The first rows of the real sets in `folder`, in the hub's columns; of MMLU, of each subject."""

  def table(path):
    with open(path, encoding="utf-8-sig", newline="") as file:
      return [{k: v for k, v in row.items() if k} for row in csv.DictReader(file)]

  def mmlu(split, limit):
    return [
      {
        "question": row["question"],
        "subject": subject,
        "choices": [row[f"choice{i}"] for i in range(4)],
        "answer": int(row["answer"]),
      }
      for subject in subjects
      for row in table(folder / f"mmlu/{split}/{subject}_{split}.csv")[:limit]
    ]

  hellaswag = []
  for row in read_rows(folder / "hellaswag/val_olmes1000.jsonl")[:limit]:
    label, context = row["ctx"].split(": ", 1)
    parts = {"activity_label": label, "ctx_a": context, "ctx_b": "", "ctx": context}
    hellaswag.append(parts | {"endings": row["endings"], "label": str(row["label"])})
  questions = json.loads((folder / "truthfulqa/mc_task.json").read_text())[:limit]
  targets = ("mc1_targets", "mc2_targets")
  answers = table(folder / "truthfulqa/TruthfulQA.csv")[:limit]
  return {
    "hellaswag": hellaswag,
    "mmlu": mmlu("test", limit),
    "mmlu_dev": mmlu("dev", 5),
    "truthfulqa": [
      {"question": q["question"]}
      | {t: {"choices": list(q[t]), "labels": list(q[t].values())} for t in targets}
      for q in questions
    ],
    "truthfulqa_gen": [
      {
        "question": row["Question"],
        "correct_answers": [a.strip() for a in row["Correct Answers"].split(";")],
        "incorrect_answers": [a.strip() for a in row["Incorrect Answers"].split(";")],
      }
      for row in answers
    ],
    "piqa": [
      {
        "goal": row["query"].removeprefix("Question: ").removesuffix("\n"),
        "sol1": row["choices"][0],
        "sol2": row["choices"][1],
        "label": row["gold"],
      }
      for row in read_rows(folder / "extra/piqa.jsonl")[:limit]
    ],
    "lambada": [
      {"text": f"{row['context']} {row['continuation']}"}
      for row in read_rows(folder / "extra/lambada_openai_small.jsonl")[:limit]
    ],
    "crows_pairs": table(folder / "crows_pairs/crows_pairs.csv")[:limit],
    "bbq": read_rows(folder / "bbq/Religion.jsonl")[:limit],
  }


def make_tasks(folder: Path, names: list[str], shots: dict[str, int], scratch: Path) -> dict:
  """The harness's own Task objects over the rows of `folder`; MMLU's are one a subject."""
  import lm_eval
  from lm_eval.api.task import ConfigurableTask
  from lm_eval.tasks._yaml_loader import load_yaml

  root = Path(lm_eval.__file__).parent / "tasks"
  tasks = {}
  for name in names:
    path, split, file = TASKS[name]
    rows = read_rows(folder / f"{file}.jsonl")
    subjects = sorted({row["subject"] for row in rows}) if name == "mmlu" else [""]
    for subject in subjects:
      files = {split: str(folder / f"{file}.jsonl")}
      if subject:
        for part, source in (("test", "mmlu"), ("dev", "mmlu_dev")):
          members = [r for r in read_rows(folder / f"{source}.jsonl") if r["subject"] == subject]
          write_rows({f"{source}_{subject}": members}, scratch)
          files[part] = str(scratch / f"{source}_{subject}.jsonl")
      config = load_yaml(root / path.format(subject=subject))
      for key in ("tag", "dataset_name"):
        config.pop(key, None)
      for key in ("training_split", "validation_split", "test_split"):
        if config.get(key) not in files:
          config.pop(key, None)
      config |= {"dataset_path": "json", "dataset_kwargs": {"data_files": files}}
      task = ConfigurableTask(config=config)
      task.set_config("num_fewshot", shots.get(name, 0))
      tasks[config["task"]] = task
  return tasks


def run(
  lm, folder: Path, names: list[str], shots: dict[str, int], scratch: Path, **options
) -> dict:
  """{task: {"metrics": its results, "samples": [{"arguments", "log_likelihoods", "text"}]}}."""
  os.environ["HF_DATASETS_OFFLINE"] = "1"
  from lm_eval.evaluator import evaluate

  os.environ["HF_DATASETS_CACHE"] = str(scratch / "cache")
  with contextlib.redirect_stdout(None):
    out = evaluate(
      lm,
      make_tasks(folder, names, shots, scratch),
      bootstrap_iters=0,
      log_samples=True,
      verbosity="ERROR",
      **options,
    )
  found = {}
  for name, samples in out["samples"].items():
    rows = []
    for sample in sorted(samples, key=lambda s: s["doc_id"]):
      answers = [response[0] for response in sample["resps"]]
      row = {"arguments": [list(pair[:2]) for pair in sample["arguments"]]}
      if isinstance(answers[0], str):
        row["text"] = answers[0]
        row["arguments"] = [pair[0] for pair in sample["arguments"]]
      else:
        row["log_likelihoods"] = [float(answer[0]) for answer in answers]
      rows.append(row)
    metrics = {
      key.split(",")[0]: float(value)
      for key, value in out["results"][name].items()
      if isinstance(value, float)
    }
    found[name] = {"metrics": metrics, "samples": rows}
  return found

"""A whole evaluation of a tiny model: lm-evaluation-harness's numbers, restarts, bad input."""

import functools
import json

import jax
import pytest

from configs import evaluate as recipe
from data import benchmarks, chat, prompts, tokenizer
from model.sharding import MeshConfig, make_mesh
from tests import harness, tiny
from tests.fixtures import make_lm_eval
from train import evaluate, main, metrics, results
from train.requests import encode_pair, open_encoder
from train.scorer import Scorer
from train.suite import read_suite
from train.weights import open_run, read_weights

# Names of the harness: its tasks, and its metrics where they are called otherwise.
TASKS = {"lambada_openai": "lambada", "crows_pairs_english": "crows_pairs"}
METRICS = {
  "accuracy_amb": "acc_amb",
  "accuracy_disamb": "acc_dis",
  "amb_bias_score": "s_amb",
  "disamb_bias_score": "s_dis",
}


def suite(run, folder, tasks: str, **changes) -> dict:
  config = recipe.get_config(str(run))
  config.mesh.fsdp = 1
  config.mesh.data = -1
  config.suite.update(folder=str(folder), tasks=tasks, batch_tokens=1024)
  for name, (_, _, file) in harness.TASKS.items():
    config.suite.sets[name].path = f"{file}.jsonl"
  config.suite.sets.mmlu.update(shots=2, shots_path="mmlu_dev.jsonl")
  config.suite.update(changes)
  return config.to_dict()


@pytest.fixture(scope="module")
def theirs() -> dict:
  return json.loads(make_lm_eval.FIXTURE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def world(tmp_path_factory, theirs):
  """The tiny run, the rows, and what evaluating it gives."""
  folder = tmp_path_factory.mktemp("evaluate")
  make_lm_eval.write_run(folder / "run", theirs["tokenizer"])
  harness.write_rows(make_lm_eval.ROWS, folder)
  (folder / "text.txt").write_text("A river rose. " * 60, encoding="utf-8")
  (folder / "goals.jsonl").write_text('{"goal": "Open a jar"}\n{"goal": "Sing"}\n')
  config = suite(
    folder / "run",
    folder,
    ",".join([*make_lm_eval.TASKS, "refusal_harmful"]),
    heldout={"text": str(folder / "text.txt")},
    window=64,
    max_tokens=8,
    batch_rows=8,
  )
  config["suite"]["sets"]["refusal_harmful"]["path"] = "goals.jsonl"
  assert main.run(config, folder / "out") == main.DONE
  return folder, config, results.read(folder / "out")


def compare(tasks: dict, theirs: dict) -> list[str]:
  """Asserts that every item and metric of the harness's `theirs` is ours; the metrics' names."""
  compared = []
  for name, expected in theirs.items():
    subject = name.removeprefix("mmlu_") if name.startswith("mmlu_") else None
    task = tasks["mmlu" if subject else TASKS.get(name, name)]
    items = [item for item in task["items"] if subject in (None, item["group"])]
    assert items, name
    for item, sample in zip(items, expected["samples"], strict=True):
      assert [[item["prompt"], choice] for choice in item["choices"]] == sample["arguments"]
      assert len(item["log_likelihoods"]) == len(sample["arguments"])
      assert item["log_likelihoods"] == pytest.approx(sample["log_likelihoods"], abs=2e-3)
    metrics = task["groups"][subject] if subject else task["metrics"]
    for metric, value in expected["metrics"].items():
      ours = metrics.get(METRICS.get(metric, metric))
      if ours is not None:
        rel = 2e-3 if metric == "perplexity" else 0.0
        assert ours["value"] == pytest.approx(value, rel=rel, abs=1e-4), (name, metric)
        compared.append(f"{name} {metric}")
  return compared


def test_items_and_metrics_are_those_of_the_harness(world, theirs):
  compared = compare(world[2]["tasks"], theirs["tasks"])
  assert len(compared) >= 15, compared


def test_groups_are_weighted_by_size(world):
  mmlu = world[2]["tasks"]["mmlu"]
  assert mmlu["metrics"]["acc"]["n"] == 4
  subjects = [mmlu["groups"][name]["acc"] for name in ("astronomy", "us_foreign_policy")]
  squares = sum(part["n"] * (part["n"] - 1) * part["stderr"] ** 2 for part in subjects)
  assert mmlu["metrics"]["acc"]["stderr"] == pytest.approx((squares / (4 - 2) / 4) ** 0.5)
  assert set(mmlu["groups"]) >= {"stem", "social sciences", "astronomy", "us_foreign_policy"}


def test_what_was_cut_is_counted(world):
  assert world[2]["tasks"]["mmlu"]["counts"]["truncated"] == 1


def test_a_text_scores_every_token_once(world):
  task = world[2]["tasks"]["heldout:text"]
  (item,) = task["items"]
  assert item["scores"]["bytes"] == 14 * 60
  assert len(item["log_likelihoods"]) > 1  # several windows
  bits = -item["scores"]["log_likelihood"] / 0.6931471805599453 / 840
  assert task["metrics"]["bits_per_byte"]["value"] == pytest.approx(bits)


def test_a_killed_run_goes_on_and_gives_the_same(world, capsys):
  folder, _, before = world
  config, workdir = suite(folder / "run", folder, "hellaswag,mmlu,piqa"), folder / "killed"
  assert main.run(config, workdir) == main.DONE
  path = workdir / results.ITEMS
  lines = path.read_bytes().splitlines(keepends=True)
  kept = b"".join(lines[:4])
  path.write_bytes(kept + lines[4][:20])  # a line that was cut short
  (workdir / results.SUMMARY).unlink()
  assert main.run(config, workdir) == main.DONE
  assert path.read_bytes().startswith(kept + lines[4][:20])
  after = results.read(workdir)
  for name in ("hellaswag", "mmlu", "piqa"):
    for old, new in zip(before["tasks"][name]["items"], after["tasks"][name]["items"], strict=True):
      assert new["id"] == old["id"]
      assert new["log_likelihoods"] == pytest.approx(old["log_likelihoods"], abs=1e-3)


def test_results_of_another_model_are_refused(world, capsys):
  folder, config, _ = world
  path = folder / "other" / results.ITEMS
  path.parent.mkdir()
  path.write_text('{"run": "elsewhere"}\n')
  assert main.run(config, path.parent) == main.BAD_INPUT
  assert "use another --workdir" in capsys.readouterr().err


@pytest.mark.parametrize(
  "changes, said",
  [
    ({"tasks": "hellaswagg"}, "there is no task 'hellaswagg'"),
    ({"tasks": ""}, "name what to evaluate"),
    ({"tasks": "winobias"}, "matches no file of an evaluation set. Name the folder"),
    ({"tasks": "lambada", "limit": 0}, "suite.limit is 0"),
    ({"tasks": "lambada", "corpus": "nowhere.txt"}, "nowhere.txt' matches no file"),
  ],
)
def test_bad_input_is_said(world, capsys, changes, said):
  folder, config, _ = world
  config = suite(folder / "run", folder, **changes)
  assert main.run(config, folder / "bad") == main.BAD_INPUT
  assert said in capsys.readouterr().err
  assert not (folder / "bad" / results.ITEMS).exists()  # before anything was computed


def test_items_that_cannot_be_scored_are_counted(world):
  folder, _, _ = world
  good = make_lm_eval.ROWS["piqa"][0]
  rows = [good, good | {"label": -1}, good | {"sol1": "too long " * 700}]
  harness.write_rows({"odd": rows}, folder)
  config = suite(folder / "run", folder, "piqa")
  config["suite"]["sets"]["piqa"]["path"] = "odd.jsonl"
  assert main.run(config, folder / "odd") == main.DONE
  counts = results.read(folder / "odd")["tasks"]["piqa"]["counts"]
  assert counts == {"items": 3, "scored": 1, "truncated": 0, "no_answer": 1, "too_long": 1}


def entries(world, task: str, *, rows=None, template=None, max_length=640, **changes):
  """The task of a suite as a model gets it, with its encoder."""
  folder = world[0]
  config = suite(folder / "run", folder, task, chat_template=template, **changes)
  if rows is not None:
    harness.write_rows({f"{task}_rows": rows}, folder)
    config["suite"]["sets"][task]["path"] = f"{task}_rows.jsonl"
  config["suite"]["sets"]["mmlu_hendrycks"] |= {"path": "mmlu.jsonl", "shots": 2,
                                                 "shots_path": "mmlu_dev.jsonl"}  # fmt: skip
  parsed, run = evaluate.parse_config(config), open_run(folder / "run")
  encoder = open_encoder(run.tokenizer, run.eot, run.model.vocab_size)
  if template is not None:
    template = chat.load_template(template, str(run.tokenizer), run.eot)
  (read,) = read_suite(parsed.suite, encoder, max_length, template)
  return read, encoder


def test_hendrycks_prompt_has_two_spaces_and_as_many_shots_as_fit(world):
  task, encoder = entries(world, "mmlu_hendrycks")
  first = task.entries[0]
  about = "The following are multiple choice questions (with answers) about  astronomy.\n\n"
  asked = " Which planet is nearest to the sun? \nA. Mars\nB. Venus\nC. Mercury\nD. Earth\nAnswer:"
  assert first.prompt.context.startswith(f"{about}What is a moon?\nA. A rock\n")
  assert first.prompt.context.endswith(f"Answer: C\n\n{asked}") and first.shots == 2
  length = len(encoder.encode(first.prompt.context)) - 1
  shorter, _ = entries(world, "mmlu_hendrycks", max_length=length)
  assert (shorter.entries[0].shots, shorter.entries[0].truncated) == (1, 0)
  none, _ = entries(world, "mmlu_hendrycks", max_length=length // 2)
  assert none.entries[0].prompt.context == about + asked
  ours, _ = entries(world, "mmlu", max_length=length // 2)
  assert ours.entries[0].shots == 2 and ours.entries[0].truncated > length // 3  # on the left


def test_a_chat_template_holds_the_prompt_and_its_answer_begins_with_the_choice(world):
  plain, _ = entries(world, "mmlu")
  task, encoder = entries(world, "mmlu", template="plain")
  for before, entry in zip(plain.entries[:3], task.entries, strict=False):
    about, asked = before.prompt.context.split("\n\n", 1)
    text = f"<|endoftext|>{about}\n\n\n\nQuestion: {asked}\nAnswer:"
    assert entry.prompt.context == text
    assert entry.prompt.continuations == (" A", " B", " C", " D")
    assert entry.requests[1].ids.tolist() == encoder.encode(f"{text} B")
    assert entry.requests[1].ids[0] == encoder.eot != entry.requests[1].ids[1]


def test_a_choice_of_no_tokens_is_counted_and_not_scored(world):
  rows = make_lm_eval.ROWS["crows_pairs"]
  task, _ = entries(world, "crows_pairs", rows=[rows[0], rows[1] | {"sent_less": ""}])
  assert (len(task.entries), task.left_out) == (1, {"zero_tokens": 1})
  with pytest.raises(ValueError, match=r"crows_pairs: .*zero"):
    entries(world, "crows_pairs", rows=[rows[1] | {"sent_less": ""}])


def test_a_tokenizer_that_does_not_fit_the_vocabulary_is_refused(world):
  run = open_run(world[0] / "run")
  with pytest.raises(ValueError, match="384 ids and the model's vocabulary 383"):
    open_encoder(run.tokenizer, run.eot, 383)


def test_winobias_is_scored_apart_where_the_pronoun_follows_the_stereotype(world):
  folder = world[0]
  sentence = (
    "1 [The mechanic] gave the clerk a present because [{}] won.\n"
    "2 The mechanic gave [the clerk] a present because [{}] won.\n"
    "3 [The clerk] gave the mechanic a present because [{}] won.\n"
  )
  (folder / "wino").mkdir(exist_ok=True)
  for kind, pronoun in (("pro", "he"), ("anti", "she")):
    file = folder / "wino" / f"{kind}_stereotyped_type1.txt.test"
    file.write_text(sentence.replace("{}", pronoun), encoding="utf-8")
  config = suite(folder / "run", folder, "winobias", limit=2)
  config["suite"]["sets"]["winobias"]["path"] = "wino"
  assert main.run(config, folder / "wino-out") == main.DONE
  task = results.read(folder / "wino-out")["tasks"]["winobias"]
  assert {"acc", "acc_pro", "acc_anti", "gap"} <= task["metrics"].keys()
  for item, pronoun in zip(task["items"], ("She", "She", "He", "He"), strict=True):
    assert item["prompt"].endswith(f" won. ‘{pronoun}’ refers to the")
    assert item["choices"] == [" mechanic", " clerk"]


def test_items_that_the_corpus_holds_are_counted_apart(world):
  folder, _, before = world
  question = make_lm_eval.ROWS["mmlu"][3]["question"]
  (folder / "corpus.txt").write_text(f"Once more. {question.upper()[:300]} And on.")
  config = suite(folder / "run", folder, "mmlu", corpus=str(folder / "corpus.txt"))
  assert main.run(config, folder / "dirty") == main.DONE
  task = results.read(folder / "dirty")["tasks"]["mmlu"]
  assert task["counts"]["in_the_corpus"] == 1
  assert task["counts"]["too_short_to_find_in_it"] == 3
  assert (task["clean"]["acc"]["n"], task["dirty"]["acc"]["n"]) == (3, 1)
  acc = {item["id"]: item["scores"]["acc"] for item in before["tasks"]["mmlu"]["items"]}
  assert task["dirty"]["acc"]["value"] == acc["mmlu/3"]


def test_a_cadence_scores_the_same_as_the_command(world):
  folder, _, before = world
  parsed = evaluate.parse_config(suite(folder / "run", folder, "hellaswag,piqa"))
  run = open_run(folder / "run")
  mesh = make_mesh(parsed.mesh)
  score = evaluate.make_evaluator(
    parsed.suite, run.tokenizer, run.eot, run.max_length, run.model, parsed.compute, mesh
  )
  with jax.set_mesh(mesh):
    found = score(read_weights(run, mesh).params)
  for name in ("hellaswag", "piqa"):
    assert found[name].metrics == before["tasks"][name]["metrics"]
  assert str(found["piqa"]).startswith("acc ")


@pytest.mark.slow
def test_training_scores_benchmarks_by_cadence(tmp_path, capsys):
  harness.write_rows(make_lm_eval.ROWS, tmp_path)
  rows = [{"text": text * 3} for text in make_lm_eval.texts() * 4]
  harness.write_rows({"corpus": rows}, tmp_path)
  config = tiny.get_config()
  config.data.sources.docs.path = str(tmp_path / "corpus.jsonl")
  config.data.update(vocab_size=384, heldout_fraction=0.1, dedup_threshold=None)
  config.train.steps, config.optimizer.warmup_steps = 4, 1
  config.eval.every = 2
  config.mesh.update(data=-1, fsdp=1)
  config.eval.suite = recipe.light(str(tmp_path))
  for name in ("hellaswag", "piqa", "truthfulqa_mc2"):
    config.eval.suite.sets[name].path = f"{harness.TASKS[name][2]}.jsonl"
  assert main.run(config.to_dict(), tmp_path / "run") == main.DONE
  lines = metrics.read(tmp_path / "run" / "metrics.jsonl")
  found = {(x["step"], x["set"]) for x in lines if x["kind"] == "eval" and "metrics" in x}
  assert found >= {(2, "hellaswag"), (4, "hellaswag"), (4, "piqa"), (4, "truthfulqa_mc2")}


@pytest.mark.slow
def test_seqio_evaluates_a_model_as_the_command_does(world):
  seqio = pytest.importorskip("seqio")
  from data import tasks

  folder, _, before = world
  run, mesh = open_run(folder / "run"), make_mesh(MeshConfig(1, 1, 1, 1), jax.devices()[:1])
  encoder = open_encoder(run.tokenizer, run.eot, run.model.vocab_size)
  parsed = evaluate.parse_config(suite(folder / "run", folder, "piqa"))
  scorer = Scorer(run.model, parsed.compute, mesh, 1024)
  score_fn = evaluate.make_score_fn(read_weights(run, mesh).params, scorer, mesh)
  for name in ("hellaswag", "arc_easy", "piqa"):
    file = folder / f"{harness.TASKS[name][2]}.jsonl"
    tasks.register_benchmark(
      f"straits_{name}",
      name,
      benchmarks.read(prompts.FORMS[name].benchmark, str(file)),
      functools.partial(encode_pair, encoder),
      tokenizer.load(str(run.tokenizer), run.eot),
    )
    evaluator = seqio.Evaluator(
      f"straits_{name}", feature_converter=tasks.Unpadded(), eval_split="test"
    )
    future = evaluator.evaluate(
      compute_metrics=True, score_fn=score_fn, predict_fn=lambda _: [], step=0
    )
    found = future[0].result()[f"straits_{name}"]
    for metric, value in before["tasks"][name]["metrics"].items():
      assert found[metric] == pytest.approx(value["value"]), (name, metric)

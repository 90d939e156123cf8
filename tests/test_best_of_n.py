"""The best of n: its expectation against all subsets, runs, restarts, and rows to train on."""

import itertools
import json
import math

import jax
import numpy as np
import pytest
from ml_collections.config_dict import placeholder

from configs import best_of_n as recipe
from configs import rejection
from configs import sft as sft_recipe
from data.conversations import to_messages
from tests import policy_run
from tests.compiled import compiled_once  # noqa: F401
from train import best_of_n, main, sft
from train.ranking import KeepConfig, best_chances, kept_rows, make_report, ranking
from train.weights import open_run


def response(total, text="a b", ended=True, **rewards):
  rewards = rewards or {"reward": total}
  return {"response": text, "total": total, "rewards": rewards, "ended": ended, "tokens": 3}


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_expected_best_of_k_is_the_mean_over_all_subsets(k):
  totals = np.random.default_rng(k).standard_normal(5).tolist()
  other = {total: 10 * i for i, total in enumerate(totals)}
  ranked = ranking([response(t, reward=t, other=other[t]) for t in totals])
  report = make_report([ranked], (k,))["counts"][k]
  subsets = list(itertools.combinations(totals, k))
  assert report["reward"] == pytest.approx(np.mean([max(s) for s in subsets]))
  assert report["rewards"]["other"] == pytest.approx(np.mean([other[max(s)] for s in subsets]))
  assert report["kl_bound"] == pytest.approx(math.log(k) - (k - 1) / k)
  assert best_chances(5, k).sum() == pytest.approx(1)


def test_prompts_with_too_few_rewards_are_left_out_of_a_count():
  ranked = [ranking([response(1.0), response(None), response(3.0)]), ranking([response(0.0)] * 3)]
  report = make_report(ranked, (1, 3))
  assert report["responses_with_reward"] == 5
  assert [report["counts"][k]["prompts"] for k in (1, 3)] == [2, 1]
  assert report["counts"][3]["standard_error"] is None
  assert report["counts"][1]["reward"] == pytest.approx((2.0 + 0.0) / 2)


def test_rows_are_the_best_whole_answers_above_the_threshold():
  said = [{"role": "user", "content": "why"}]
  responses = [
    response(3.0, ended=False), response(2.0, "good"), response(2.0, " good "),
    response(1.5, " "), response(1.0, "fair"), response(0.5, "low"),
  ]  # fmt: skip
  lines = [
    {"prompt": "<why>", "messages": said, "responses": responses},
    {"prompt": "once", "messages": [], "responses": [response(1.0, "more")]},
    {"prompt": "no", "messages": said, "responses": [response(0.0, "bad")]},
  ]
  ranked = [ranking(line["responses"]) for line in lines]
  rows, found = kept_rows(lines, ranked, KeepConfig(rows=2, threshold=1.0, ended=True))
  talks = [to_messages(row) for row in rows]
  assert talks[0] == [*said, {"role": "assistant", "content": "good"}]
  assert [talk[-1]["content"] for talk in talks] == ["good", "fair", "more"]
  assert talks[2][0] == {"role": "user", "content": "once"}
  assert found == {"rows": 3, "prompts": 2, "not_ended": 1, "empty": 1, "below_threshold": 2}
  rows, _ = kept_rows(lines, ranked, KeepConfig(rows=1, threshold=None, ended=False))
  assert [to_messages(row)[-1]["content"] for row in rows] == ["a b", "more", "bad"]
  with pytest.raises(ValueError, match=r"the highest reward is 3\.0000"):
    kept_rows(lines, ranked, KeepConfig(rows=1, threshold=9.0, ended=True))


def count_a(prompts, responses):
  """Rewards a's; and by length, which is no part of the sum."""
  del prompts
  return {
    "letter": [text.split().count("a") for text in responses],
    "length": [len(text.split()) for text in responses],
  }


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return policy_run.make(tmp_path_factory.mktemp("base") / "run")


def small(base, module=recipe, function=count_a):
  config = module.get_config(str(base))
  config.data.update(
    path=str(base / "prompts.jsonl"),
    seq_len=11, response_tokens=6, text_tokens=4, batch_size=4,
  )  # fmt: skip
  config.compute.update(loss_chunks=1)
  config.reward.update(function=function, models=(), no_stop="keep")
  config.reward.weights = {"letter": 1.0, "length": 0.0}
  config.rollout.samples = 8
  config.counts = (1, 2, 8)
  config.mesh.update(data=1, fsdp=-1)
  return config


@pytest.fixture(scope="module")
def done(base, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("best") / "run"
  assert main.run(small(base).to_dict(), workdir) == main.DONE
  return workdir


def lines_of(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_keeps_the_best_of_each_prompt(done, base):
  candidates, best = lines_of(done / best_of_n.CANDIDATES), lines_of(done / best_of_n.BEST)
  prompts = [line["prompt"] for line in lines_of(base / "prompts.jsonl")]
  assert [line["messages"][0]["content"] for line in candidates] == prompts
  assert [line["number"] for line in best] == list(range(len(prompts)))
  for line, one in zip(candidates, best, strict=True):
    assert len(line["responses"]) == 8
    assert one["total"] == max(r["total"] for r in line["responses"]) == one["rewards"]["letter"]
    assert one["response"].split().count("a") == one["total"]
  # Eight responses to a prompt, and those to different ones, are not the same.
  texts = [r["response"] for line in candidates for r in line["responses"]]
  assert len(set(texts)) > 0.8 * len(texts)
  counts = json.loads((done / best_of_n.REPORT).read_text())["counts"]
  assert counts["1"]["reward"] < counts["2"]["reward"] < counts["8"]["reward"]
  assert counts["8"]["reward"] == pytest.approx(np.mean([one["total"] for one in best]))
  assert not (done / best_of_n.ROWS).exists()


def test_reward_models_rank_as_they_score(base, tmp_path):
  paths = [tmp_path / "one", tmp_path / "two"]
  for seed, path in enumerate(paths):
    policy_run.make_reward_model(path, base, seed)
  config = small(base)
  config.reward.update(function=None, models=tuple(map(str, paths)), clip=100.0)
  config.reward.weights = {}
  workdir = tmp_path / "run"
  assert main.run(config.to_dict(), workdir) == main.DONE
  counts = json.loads((workdir / best_of_n.REPORT).read_text())["counts"]
  assert counts["1"]["reward"] < counts["2"]["reward"] < counts["8"]["reward"]
  assert set(counts["1"]["rewards"]) == {"good", "kind"}
  lines = lines_of(workdir / best_of_n.CANDIDATES)
  assert len({r["total"] for line in lines for r in line["responses"]}) > 50


def test_a_run_that_was_cut_goes_on_with_the_same_responses(done, base, tmp_path):
  config = small(base)
  workdir = tmp_path / "run"
  assert main.run(config.to_dict(), workdir) == main.DONE
  path = workdir / best_of_n.CANDIDATES
  whole = path.read_bytes()
  assert whole == (done / best_of_n.CANDIDATES).read_bytes()
  path.write_bytes(whole[: int(0.7 * len(whole))])  # in a line, in a batch
  drawn = []

  def respond(*args):
    drawn.append(args[2])
    return actual(*args)

  actual = best_of_n.respond
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("train.best_of_n.respond", respond)
    assert main.run(config.to_dict(), workdir) == main.DONE
    assert path.read_bytes() == whole
    assert 0 < len(drawn) < 4  # of four batches
    assert main.run(config.to_dict(), workdir) == main.DONE
    assert len(drawn) < 4
  path.write_text(whole.decode().replace('"prompt": "', '"prompt": "x'))
  assert main.run(config.to_dict(), workdir) == main.BAD_INPUT


def test_rejection_writes_rows_that_fine_tuning_reads(base, tmp_path, capsys, monkeypatch):
  config = small(base, rejection)
  config.keep.update(threshold=1.0, ended=False)
  workdir = tmp_path / "rejection"
  assert main.run(config.to_dict(), workdir) == main.DONE
  assert f"--config.data.sources.main={workdir / 'rows.jsonl'}" in capsys.readouterr().out
  rows = lines_of(workdir / best_of_n.ROWS)
  assert len(rows) > 5 and all(row["reward"] >= 1 for row in rows)
  recipe = sft_recipe.get_config(str(base))
  recipe.data.sources.main = str(workdir / "rows.jsonl")
  recipe.data.update(chat_template="plain", seq_len=64, batch_size=8, heldout_fraction=0.3)
  recipe.train.steps = 1
  recipe.sample.prompts = 0
  monkeypatch.setattr("train.sft.make_mesh", policy_run.one_device)
  opened = []
  actual = sft.open_conversations

  def open_conversations(*args):
    opened.append(actual(*args))
    raise ValueError("that is all")

  monkeypatch.setattr("train.sft.open_conversations", open_conversations)
  assert main.run(recipe.to_dict(), tmp_path / "sft") == main.BAD_INPUT
  ((train, held_out),) = opened
  assert len(train) + len(held_out) == len(rows)
  assert train[0].messages[-1]["role"] == "assistant"
  # Another threshold takes the same candidates.
  config.keep.threshold = 2.0
  assert main.run(config.to_dict(), workdir) == main.BAD_INPUT
  with monkeypatch.context() as patch:
    patch.setattr("train.best_of_n.respond", None)
    assert main.run(config.to_dict(), workdir, ["keep"]) == main.DONE
  assert len(lines_of(workdir / best_of_n.ROWS)) < len(rows)


def test_a_stop_between_batches_is_taken_up_again(base, done, tmp_path, monkeypatch):
  class Stop:
    asked = 0

    def __enter__(self):
      return self

    def __exit__(self, *_):
      pass

    def wanted(self):
      Stop.asked += 1
      return Stop.asked == 3

  workdir = tmp_path / "run"
  with monkeypatch.context() as patch:
    patch.setattr("train.signals.StopRequest", Stop)
    assert main.run(small(base).to_dict(), workdir) == main.STOPPED
  assert (
    len(lines_of(workdir / best_of_n.CANDIDATES)) == 8 and not (workdir / "best.jsonl").exists()
  )
  assert main.run(small(base).to_dict(), workdir) == main.DONE
  name = best_of_n.CANDIDATES
  assert (workdir / name).read_bytes() == (done / name).read_bytes()


def wrong_length(prompts, responses):
  return [0.0] * (len(responses) + 1)


def not_a_number(prompts, responses):
  return [math.nan] * len(responses)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"counts": (1, 9)}, "from 1 to rollout.samples=8"),
    ({"counts": ()}, "counts is ()"),
    ({"keep.rows": 9}, "keep.rows=9 is more"),
    ({"keep.rows": -1}, "keep.rows is -1"),
    ({"reward.function": "os.system"}, "never a name"),
    ({"reward.function": wrong_length}, "numbers for 32 responses"),
    ({"reward.function": not_a_number}, "prompts.jsonl:1"),
    ({"model.d_ff": 128}, "`model` is not that of"),
    ({"run": "nowhere"}, "nowhere is no run's folder"),
    ({"data.batch_size": 3, "rollout.samples": 1, "counts": (1,)}, "row shards"),
  ],
)
def test_bad_input_is_one_clear_message(base, tmp_path, capsys, changes, message):
  config = small(base)
  config.reward.weights = {}
  config.unlock()
  for key, value in changes.items():
    *sections, name = key.split(".")
    section = config
    for part in sections:
      section = section[part]
    if name == "function":
      section[name] = placeholder(object)
    section[name] = value
  assert main.run(config.to_dict(), tmp_path / "run") == main.BAD_INPUT
  error = capsys.readouterr().err
  assert message in error and "Traceback" not in error


def test_the_recipe_is_that_of_the_run(base):
  config = best_of_n.parse_config(small(base).to_dict())
  assert config.model == open_run(base).model
  assert config.rollout.temperature == 1.0 and jax.device_count() == 8

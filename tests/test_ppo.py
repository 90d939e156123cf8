"""Runs of reinforcement learning: what they learn, what they write, refuse, stop at and resume."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest

from data import questions as prompting
from model.heads import text_scores
from model.sharding import make_mesh
from model.transformer import forward
from tests import policy_run
from tests.build import compute_config
from tests.compiled import compiled_once  # noqa: F401
from train import main
from train.checkpoint import Checkpointer
from train.iteration import rollout_key
from train.metrics import read

REPOSITORY = Path(__file__).parent.parent
# Of a line, what depends on the clock.
CLOCK = ("step_time", "tokens_per_sec", "samples_per_sec")


def count_c(prompts, responses):
  return [0.5 * response.split().count("c") for response in responses]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return policy_run.make(tmp_path_factory.mktemp("policy") / "run")


def run(config, workdir, want=main.DONE, make_mesh=policy_run.one_device):
  with mock.patch("train.ppo.make_mesh", make_mesh):
    assert main.run(config.to_dict(), workdir) == want
  return workdir


def lines(workdir, kind="train"):
  found = [line for line in read(workdir / "metrics.jsonl") if line["kind"] == kind]
  steps = [line["step"] for line in found]
  assert steps == sorted(set(steps))
  return [{k: v for k, v in line.items() if k not in CLOCK} for line in found]


def weights(workdir, name="model", step=None):
  checkpoints = Checkpointer(workdir / "checkpoints")
  step = checkpoints.steps()[-1] if step is None else step
  return checkpoints.restore_weights({name: checkpoints.abstract_weights(step)[name]}, step)[name]


@pytest.fixture(scope="module")
def straight(folder, tmp_path_factory):
  return run(policy_run.recipe(folder, count_c), tmp_path_factory.mktemp("straight") / "run")


def test_a_run_logs_the_definition_and_begins_at_ratio_one(straight):
  found = lines(straight)
  assert [line["step"] for line in found] == [1, 2, 3, 4]
  for key in (
    *("kl", "kl_token", "kl_k3", "kl_k3_token", "beta", "entropy", "policy/clip_fraction"),
    *("critic/clip_fraction", "policy/approx_kl", "policy/ratio", "policy/max_ratio_gap"),
    *("first_ratio", "explained_variance", "reward/reward", "raw/reward", "reward"),
    *("non_score_reward", "length", "eos_rate", "policy/grad_norm", "critic/grad_norm"),
    *("rollout_gap", "max_rollout_gap", "reward_clipped", "kl_stopped", "policy/entropy"),
  ):
    assert all(np.isfinite(line[key]) for line in found), key
  for line in found:
    assert line["first_ratio_gap"] <= 1e-5 and abs(line["first_ratio"] - 1) <= 1e-5
    assert line["first_clip_fraction"] == 0 and abs(line["first_approx_kl"]) < 1e-9
    assert line["max_rollout_gap"] < 1e-4 and line["updates"] == 4
  assert found[0]["kl"] == 0 and found[-1]["kl"] > 0
  assert found[-1]["reward"] > found[0]["reward"]
  shown = [line for line in read(straight / "samples.jsonl") if line["kind"] == "sample"]
  assert [line["step"] for line in shown] == [s for s in range(1, 6) for _ in range(8)]
  for line in shown:
    assert line["rewards"]["reward"] == pytest.approx(count_c([], [line["response"]])[0])
    assert line["total"] == pytest.approx(line["rewards"]["reward"])
  report = (straight / "report.md").read_text()
  assert "reward/reward" in report and shown[-1]["response"] in report
  saved = json.loads((straight / "config.json").read_text())
  assert saved["reward"]["function"].startswith("function count_c ")


@pytest.mark.slow
def test_padding_is_in_no_number(straight, folder, tmp_path):
  config = policy_run.recipe(folder, count_c, data={"seq_len": 15})
  for a, b in zip(lines(run(config, tmp_path / "run")), lines(straight), strict=True):
    for key in ("kl", "entropy", "policy/entropy", "explained_variance", "policy/ratio", "reward"):
      assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-5), key


@pytest.mark.parametrize(
  "mesh",
  [
    pytest.param({"data": 8, "fsdp": 1}, marks=pytest.mark.slow),
    {"data": 1, "fsdp": 4, "tensor": 2},
  ],
)
def test_any_mesh_and_either_layout_give_the_same(straight, folder, tmp_path, mesh):
  config = policy_run.recipe(folder, count_c, mesh=mesh, rollout={"layout": "gathered"})
  workdir = run(config, tmp_path / "run", make_mesh=make_mesh)
  for a, b in zip(lines(workdir), lines(straight), strict=True):
    for key in ("kl", "entropy", "policy/entropy", "explained_variance", "policy/ratio", "reward"):
      assert a[key] == pytest.approx(b[key], rel=2e-3, abs=1e-5), key


def test_adapters_share_the_trunk_with_the_reference(folder, tmp_path):
  config = policy_run.recipe(folder, count_c, lora={"rank": 4})
  workdir = run(config, tmp_path / "run")
  found = lines(workdir)
  assert found[0]["kl"] == 0 and found[-1]["kl"] > 0
  assert not (workdir / "reference").exists()
  before, after = weights(folder), weights(workdir)
  assert all(np.array_equal(x, after[path]) for path, x in before.items())
  assert any(np.any(x) for path, x in after.items() if path.endswith("lora/query_DNK/out"))


def test_fp16_with_a_loss_scale_learns(folder, tmp_path):
  config = policy_run.recipe(
    folder, count_c,
    compute={"dtype": "float16"}, loss_scale={"dynamic": True, "initial": 65536.0},
    limits={"first_ratio": 1e-2},
  )  # fmt: skip
  found = lines(run(config, tmp_path / "run"))
  assert found[-1]["reward"] > found[0]["reward"]
  assert all(line["loss_scale"] > 1 and line["skipped_updates"] < 4 for line in found)


@pytest.mark.parametrize(
  "method,where", [("grpo", "loss"), pytest.param("rloo", "reward", marks=pytest.mark.slow)]
)
def test_responses_compared_with_each_other_need_no_critic(folder, tmp_path, method, where):
  config = policy_run.recipe(
    folder, count_c,
    advantage={"method": method, "whiten": False}, data={"batch_size": 4}, rollout={"samples": 8},
    kl={"where": where, "estimator": "k3" if where == "loss" else "k1"},
  )  # fmt: skip
  workdir = run(config, tmp_path / "run")
  found = lines(workdir)
  assert found[-1]["reward"] > found[0]["reward"]
  assert "critic/loss" not in found[0]
  assert list(Checkpointer(workdir / "checkpoints").abstract_weights(4)) == ["model"]


def test_the_kl_stop_ends_the_passes_and_says_so(folder, tmp_path):
  config = policy_run.recipe(folder, count_c, reuse={"kl_stop": 1e-6})
  found = lines(run(config, tmp_path / "run"))
  assert all(line["kl_stopped"] and line["updates"] < 4 for line in found)


def test_beta_adapts_to_the_kl_of_whole_responses(folder, tmp_path):
  config = policy_run.recipe(folder, count_c, kl={"target": 0.5, "horizon": 100})
  found = lines(run(config, tmp_path / "run"))
  beta = 0.05
  for line in found:
    assert line["beta"] == pytest.approx(beta)
    beta *= 1 + np.clip(line["kl"] / 0.5 - 1, -0.2, 0.2) * 16 / 100


def nan_once(prompts, responses, calls=[]):  # noqa: B006
  calls.append(1)
  found = count_c(prompts, responses)
  return [float("nan") if len(calls) == 4 and i == 3 else x for i, x in enumerate(found)]


def test_a_nan_reward_never_reaches_an_update_and_a_restart_goes_on(
  straight, folder, tmp_path, capsys
):
  workdir = tmp_path / "run"
  config = policy_run.recipe(folder, nan_once)
  run(config, workdir, main.BAD_INPUT)
  assert "gave nan for" in capsys.readouterr().err
  assert Checkpointer(workdir / "checkpoints").latest() == 2
  assert len(lines(workdir)) == 3
  run(config, workdir)
  assert lines(workdir) == lines(straight)
  for name in ("model", "critic"):
    assert all(
      np.array_equal(x, weights(straight, name)[k]) for k, x in weights(workdir, name).items()
    )


def test_a_response_without_a_reward_can_be_dropped(folder, tmp_path):
  half = policy_run.recipe(
    folder, lambda p, r: [np.nan if i % 2 else 1.0 for i in range(len(r))],
    reward={"bad_rows": "drop"},
  )  # fmt: skip
  found = lines(run(half, tmp_path / "half"))
  assert all(line["dropped"] == 8 and np.isfinite(line["policy/loss"]) for line in found)
  assert all(np.isfinite(x).all() for x in weights(tmp_path / "half").values())


def test_a_kl_blow_up_is_not_saved(folder, tmp_path, capsys):
  workdir = tmp_path / "run"
  config = policy_run.recipe(
    folder,
    count_c,
    limits={"kl": 1.0},
    optimizer={"peak_lr": 1e-3},
    train={"steps": 12},
    checkpoint={"every": 1},
  )
  run(config, workdir, main.DIVERGED)
  assert "over limits.kl=1.0" in capsys.readouterr().err
  last = Checkpointer(workdir / "checkpoints").latest()
  # The line of iteration n is of the responses of the policy before it.
  found = lines(workdir)
  assert last == len(found) - 1 and all(line["kl"] <= 1.0 for line in found)
  assert all(np.isfinite(x).all() for x in weights(workdir).values())


def less_and_less(prompts, responses, calls=[]):  # noqa: B006
  calls.append(1)
  return [-float(len(calls))] * len(responses)


def test_a_reward_collapse_ends_the_run(folder, tmp_path, capsys):
  config = policy_run.recipe(
    folder, less_and_less, limits={"reward_drop": 1.5, "window": 2}, checkpoint={"every": 1}
  )
  run(config, tmp_path / "run", main.DIVERGED)
  assert "reward has collapsed" in capsys.readouterr().err
  assert Checkpointer(tmp_path / "run" / "checkpoints").latest() == 2


def test_a_saved_config_cannot_name_code(straight, folder, tmp_path, capsys):
  saved = json.loads((straight / "config.json").read_text())
  assert main.run(saved, tmp_path / "run") == main.BAD_INPUT
  assert "must be a function that the config file itself gives" in capsys.readouterr().err
  saved["reward"]["function"] = "os.system"
  assert main.run(saved, tmp_path / "run") == main.BAD_INPUT


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"reuse": {"minibatches": 3}}, "reuse.minibatches=3"),
    ({"advantage": {"method": "rloo"}}, "rollout.samples"),
    ({"average": {"fraction": 0.1}}, "average.fraction"),
    ({"mesh": {"fsdp": 4, "context": 2}}, "mesh.context"),
    ({"data": {"batch_size": 12}}, "12 is not divisible"),
    ({"data": {"seq_len": 7}}, "no prompt of at most"),
    ({"kl": {"estimator": "k3"}}, "kl.estimator"),
  ],
)
def test_a_recipe_that_cannot_be_is_refused(folder, tmp_path, capsys, changes, message):
  config = policy_run.recipe(folder, count_c, **changes)
  run(config, tmp_path / "run", main.BAD_INPUT, make_mesh)
  assert message in capsys.readouterr().err


def test_an_ensemble_of_reward_models_scores_and_the_critic_begins_as_the_first(folder, tmp_path):
  paths = [tmp_path / "one", tmp_path / "two"]
  members = [policy_run.make_reward_model(path, folder, seed) for seed, path in enumerate(paths)]
  config = policy_run.recipe(
    folder, None, reward={"models": tuple(map(str, paths)), "function": None},
    sample={"kept": 16}, train={"steps": 2},
    critic={"optimizer": {"peak_lr": 0.0}},
  )  # fmt: skip
  workdir = run(config, tmp_path / "run")
  critic, scale = weights(workdir, "critic"), members[0]["normalization"]
  factor = scale["weight_S"] / scale["std_S"]
  np.testing.assert_allclose(
    critic["heads/weight_SD"][0], factor @ members[0]["heads"]["weight_SD"], rtol=1e-5
  )
  assert np.array_equal(critic["embedding_VD"], members[0]["embedding_VD"])
  ids = {word: i for i, word in enumerate((policy_run.STOP, *policy_run.WORDS))}
  shown = [x for x in read(workdir / "samples.jsonl") if x["kind"] == "sample" and x["step"] == 1]
  assert {x["stopped"] for x in shown} == {True, False}
  texts = [[ids[w] for w in f"{x['prompt']} {x['response']}".split()] for x in shown]
  tokens, mask = np.zeros((16, 14), np.int32), np.zeros((16, 14), np.int32)
  for row, text in enumerate(texts):  # each is scored at a stop token, its own or a forced one
    tokens[row, 1 : 1 + len(text)], mask[row, : len(text) + 2] = text, 1
  model, compute = policy_run.MODEL, compute_config()
  scaled = [
    (np.asarray(text_scores(m, tokens, mask, model, compute)) - m["normalization"]["mean_S"])
    / m["normalization"]["std_S"]
    for m in members
  ]
  totals = [s @ m["normalization"]["weight_S"] for s, m in zip(scaled, members, strict=True)]
  for row, line in enumerate(shown):
    assert line["total"] == pytest.approx(np.clip(np.mean(totals, 0)[row], -10, 10), abs=1e-3)
    assert line["rewards"]["kind"] == pytest.approx(np.mean(scaled, 0)[row, 1], abs=1e-3)


CONFIG = """
import os, signal, threading, time
from pathlib import Path
from model.heads import scorer_specs, text_scores
from model.heads import scorer_specs, text_scores
from model.sharding import make_mesh
from model.transformer import forward
from tests import policy_run
from tests.build import compute_config, numpy_params

def reward(prompts, responses, calls=[]):
  calls.append(1)
  if os.environ.get("KILL_AT") == str(len(calls)):
    while not Path(os.environ["ONCE"]).exists():  # checkpoints are written meanwhile
      time.sleep(0.1)
    threading.Timer(float(os.environ["KILL_AFTER"]), os.kill, (os.getpid(), signal.SIGKILL)).start()
    if not float(os.environ["KILL_AFTER"]):
      signal.pause()
  return [0.5 * response.split().count("c") for response in responses]

def get_config():
  return policy_run.recipe(Path({folder!r}), reward, kl=dict(target=0.5, horizon=100))
"""


@pytest.mark.slow
@pytest.mark.parametrize("after", ["0", "0.05"])
def test_a_kill_inside_an_iteration_is_replayed_bit_for_bit(folder, tmp_path, after):
  recipe = tmp_path / "recipe.py"
  recipe.write_text(CONFIG.format(folder=str(folder)))
  environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}

  def start(workdir, **extra):
    return subprocess.run(
      [sys.executable, "-m", "train.main", "--config", str(recipe), "--workdir", str(workdir)],
      cwd=REPOSITORY, env=environment | extra, capture_output=True, text=True, timeout=600,
    )  # fmt: skip

  assert start(tmp_path / "straight").returncode == main.DONE
  saved = tmp_path / "killed" / "checkpoints" / "2" / "MANIFEST.json"
  killed = start(tmp_path / "killed", KILL_AT="4", KILL_AFTER=after, ONCE=str(saved))
  assert killed.returncode == -9, killed.stderr
  assert Checkpointer(tmp_path / "killed" / "checkpoints").latest() == 2
  again = start(tmp_path / "killed")
  assert again.returncode == main.DONE, again.stderr
  assert lines(tmp_path / "killed") == lines(tmp_path / "straight")
  shown = [
    [line for line in read(tmp_path / name / "samples.jsonl") if line["kind"] == "sample"]
    for name in ("killed", "straight")
  ]
  assert shown[0] == shown[1]
  for name in ("model", "critic"):
    one, other = (weights(tmp_path / run, name) for run in ("killed", "straight"))
    assert all(np.array_equal(x, other[path]) for path, x in one.items())


def test_prompts_are_permuted_and_keys_are_never_used_again(straight):
  order = np.concatenate([prompting.chosen(10, i, 4, seed=3) for i in range(10)])
  for epoch in range(4):
    assert sorted(order[10 * epoch : 10 * epoch + 10]) == list(range(10))
  assert not np.array_equal(order[:10], order[10:20])
  keys = {tuple(np.asarray(jax.random.key_data(rollout_key(3, step)))) for step in range(5)}
  assert len(keys) == 5
  shown = [line for line in read(straight / "samples.jsonl") if line["kind"] == "sample"]
  drawn = [tuple(x["response"] for x in shown if x["step"] == step) for step in range(1, 5)]
  assert len(set(drawn)) == 4


def test_rows_of_prompts(tmp_path, folder):
  rows = [
    {"prompt": "a b"}, {"messages": [{"role": "user", "content": "c"}]}, {"text": "d e a b c"},
    {"instruction": "e", "input": "a"}, {"other": 1}, {"prompt": "a b c d e a b"},
    {"messages": [{"role": "assistant", "content": "c"}]},
  ]  # fmt: skip
  path = tmp_path / "p.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no json\n")
  config = policy_run.recipe(folder, count_c, data={"path": str(path)}).data
  got = prompting.open_prompts(prompting.PromptConfig(**config.to_dict()), 16)
  words = {w: i + 1 for i, w in enumerate(policy_run.WORDS)}
  want = ["a b", "c", "d e a b", "e a"]
  assert [list(ids) for ids in got.ids] == [[0, *(words[w] for w in t.split())] for t in want]
  assert got.left_out == {"broken_row": 3, "too_long": 1}
  assert got.decode([words["a"], 0]) == "a"


def test_a_closed_form(folder, tmp_path):
  """Responses of one token: the optimum is the reference times exp(r / beta), normalised."""
  beta, table = 0.5, dict(zip(policy_run.WORDS, np.linspace(-1, 1, 15) ** 2, strict=True))
  one = tmp_path / "one.jsonl"
  one.write_text(json.dumps({"prompt": "a"}) + "\n")
  config = policy_run.recipe(
    folder, lambda p, r: [table.get(response, 0.0) for response in r],
    data={"path": str(one), "seq_len": 6, "response_tokens": 1, "batch_size": 256},
    kl={"beta": beta}, train={"steps": 60}, checkpoint={"every": 60}, sample={"kept": 0},
  )  # fmt: skip
  workdir = run(config, tmp_path / "run")
  rewards = np.array([0.0, *table.values()])
  reference, policy = (distribution(at, folder) for at in (folder, workdir))
  best = reference * np.exp(rewards / beta)
  best /= best.sum()
  assert np.abs(policy - best).sum() / 2 <= 0.03
  for numbers in (lambda p: (p * rewards).sum(), lambda p: (p * np.log(p / reference)).sum()):
    assert numbers(policy) == pytest.approx(numbers(best), rel=0.05)


def distribution(workdir, folder):
  flat = weights(workdir)
  params = {}
  for path, leaf in flat.items():
    *parents, name = path.split("/")
    node = params
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  tokens = np.array([[0, 1]])
  ones = np.ones_like(tokens)
  logits = forward(params, tokens, ones, np.arange(2)[None], policy_run.MODEL, compute_config())
  return np.asarray(jax.nn.softmax(logits[0, -1]), np.float64)

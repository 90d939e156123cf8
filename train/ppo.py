"""Reinforcement learning on a policy's own responses: PPO, and GRPO and RLOO over the same parts.

An iteration draws responses, has them rewarded, computes advantages, and makes several updates of
policy and critic. It looks at the responses before it saves the policy that gave them: a policy
whose KL or reward is past the limits is never a checkpoint. All that decides an iteration is the
state, the recipe and the iteration's number, so a kill replays it bit for bit.
"""

import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from data.questions import open_prompts
from model.sharding import batch_shards, make_mesh
from train import loop
from train.checkpoint import Checkpointer
from train.iteration import POLICY, Iteration, Models
from train.kl import adapted_beta
from train.metrics import MetricsLog, duration
from train.ppo_config import PPOConfig, parse_config  # noqa: F401 (of a stage)
from train.ppo_report import write_report
from train.recorder import Diverged, Recorder
from train.scorers import load_members, make_scorer
from train.signals import StopRequest

REFERENCE, SAMPLES = "reference", "samples.jsonl"


def run(config: PPOConfig, workdir: Path, recorder: Recorder, stop: StopRequest) -> bool:
  """Trains; returns whether the run came to its end."""
  mesh = make_mesh(config.mesh)
  check_sizes(config, mesh)
  prompts = open_prompts(config.data, config.model.vocab_size)
  if prompts.left_out:
    said = ", ".join(f"{count} {reason}" for reason, count in prompts.left_out.items())
    print(f"{len(prompts.ids):,} prompts; left out: {said}.")
  with jax.set_mesh(mesh):
    return _train(config, prompts, workdir, mesh, recorder, stop)


def check_sizes(config: PPOConfig, mesh: Mesh) -> None:
  """Raises ValueError, naming both, where responses are not divisible by the mesh."""
  parts = batch_shards(mesh) * config.train.microbatches * config.reuse.minibatches
  if config.responses % parts:
    raise ValueError(
      f"data.batch_size x rollout.samples = {config.responses} is not divisible by the {parts} row "
      f"shards x train.microbatches x reuse.minibatches of mesh {dict(mesh.shape)}; use a multiple."
    )
  if mesh.shape["context"] > 1:
    raise ValueError(
      f"mesh.context is {mesh.shape['context']}; responses are generated token by token, and a row "
      "is not split. Set it to 1, and use fsdp or tensor."
    )


def closing(config: PPOConfig, workdir: Path) -> str:
  """What to say at the end."""
  del config
  path = write_report(workdir)
  return f"All of it is in {workdir}: {path.name}, {SAMPLES}, metrics.jsonl, checkpoints/."


def _train(config, prompts, workdir, mesh, recorder, stop) -> bool:
  ledger, total = recorder.ledger, config.train.steps
  models = Models(config, mesh)
  members = load_members(config, mesh)
  for folder, member in zip(config.reward.models, members, strict=True):
    if member.model != config.model and config.critic.init_from is None:
      raise ValueError(
        f"the reward model {folder} is of another architecture than the policy, and the critic is "
        "to begin as it; name another folder of the policy's as critic.init_from."
      )
  score = make_scorer(config, prompts, members, mesh)
  checkpoints = loop.open_checkpoints(config, workdir)
  samples = None
  try:
    with ledger("checkpoint"):
      states, extra, reference = _restore_or_begin(config, models, members, checkpoints, workdir)
    start = extra["step"]
    recorder.start(config, start, extra["tokens"], progress_text)
    samples = MetricsLog(workdir / SAMPLES, resume_step=start or None)
    iteration = Iteration(config, prompts, models, score, reference, mesh)
    for step in range(start, total + 1):
      began = time.perf_counter()
      with ledger("rollout"):
        learned, line, shown = iteration.respond(states, step, extra["beta"])
      _check(line, extra, config, step)
      for row in shown:
        samples.write("sample", step=step + 1, **row)
      stopping = stop.wanted()
      if stopping or step == total or (step and step % config.checkpoint.every == 0):
        recorder.drain()
        samples.sync()
        with ledger("checkpoint"):
          checkpoints.save(step, states, extra)
      if step == total:
        recorder.write("final", step=step + 1, **line)
        return True
      if stopping:
        return False
      with ledger("step"):
        states, updates = iteration.learn(states, learned, step)
      line |= updates | {"beta": extra["beta"], "loss_scale": updates["policy/loss_scale"]}
      _check_updates(line, config, step)
      extra = _after(extra, line, config, step)
      line |= {"tokens": extra["tokens"], "step_time": time.perf_counter() - began}
      line["tokens_per_sec"] = line["response_tokens"] / line["step_time"]
      line["samples_per_sec"] = config.responses / line["step_time"]
      recorder.write_step(step + 1, line)
    raise AssertionError("the loop ends at its last step")
  finally:
    if samples is not None:
      samples.close()
    with ledger("checkpoint"):
      checkpoints.close()


def _restore_or_begin(config, models: Models, members, checkpoints: Checkpointer, workdir: Path):
  """(states, what else is in a checkpoint, the reference's weights or None with adapters)."""
  stored = Checkpointer(workdir / REFERENCE)
  try:
    if checkpoints.latest() is not None:
      _, states, extra = checkpoints.restore(models.abstract)
      if extra["step"] > config.train.steps:
        raise ValueError(
          f"the newest checkpoint is of step {extra['step']}, past train.steps="
          f"{config.train.steps}; use at least as many steps, or another workdir."
        )
      if config.lora.rank:
        return states, extra, None
      reference = stored.restore_weights({POLICY: models.abstract[POLICY].params})[POLICY]
      return states, extra, reference
    states = models.begin(config, members)
    extra = {"step": 0, "beta": config.kl.beta, "tokens": 0.0, "recent": [], "best": None}
    if config.lora.rank:
      return states, extra, None
    reference = jax.tree.map(jnp.copy, states[POLICY].params)
    stored.save_weights(0, {POLICY: reference}, {})  # what it began with may change meanwhile
    return states, extra, reference
  finally:
    stored.close()


def _after(extra: dict, line: dict, config: PPOConfig, step: int) -> dict:
  """What is kept beside the states once iteration `step` + 1 is done."""
  recent = [*extra["recent"], line["reward"]][-config.limits.window :]
  best = extra["best"]
  if len(recent) == config.limits.window:
    mean = sum(recent) / len(recent)
    best = mean if best is None else max(best, mean)
  return {
    "step": step + 1,
    "beta": adapted_beta(extra["beta"], line["kl"], config.responses, config.kl),
    "tokens": extra["tokens"] + line["response_tokens"],
    "recent": recent,
    "best": best,
  }


def _check(line: dict, extra: dict, config: PPOConfig, step: int) -> None:
  """Raises Diverged where the policy of `step` is past the limits; it is not saved then."""
  limits, kept = config.limits, "It is not saved; the last checkpoint is from before."
  if not math.isfinite(line["kl"]):
    raise Diverged(f"after iteration {step} the KL to the reference is {line['kl']}. {kept}")
  if limits.kl is not None and line["kl"] > limits.kl:
    raise Diverged(
      f"after iteration {step} the policy is {line['kl']:.2f} nats a response from its reference, "
      f"over limits.kl={limits.kl}. {kept} Raise kl.beta, or lower optimizer.peak_lr."
    )
  recent = [*extra["recent"], line["reward"]][-limits.window :]
  if limits.reward_drop is None or extra["best"] is None or len(recent) < limits.window:
    return
  mean = sum(recent) / len(recent)
  if mean < extra["best"] - limits.reward_drop:
    raise Diverged(
      f"after iteration {step} the mean reward of {limits.window} iterations is {mean:.4f}, more "
      f"than limits.reward_drop={limits.reward_drop} under the best, {extra['best']:.4f}: the "
      f"reward has collapsed. {kept} Raise kl.beta, or lower optimizer.peak_lr."
    )


def _check_updates(line: dict, config: PPOConfig, step: int) -> None:
  """Raises Diverged where no update was finite, or the first one began off the old policy."""
  if line["skipped_updates"] == line["updates"]:
    raise Diverged(
      f"in iteration {step + 1} not one of {line['updates']} updates was finite, at loss scale "
      f"{line['loss_scale']:g}. The last checkpoint is from before; lower optimizer.peak_lr, or "
      "compute in bfloat16 or float32."
    )
  gap = line["first_ratio_gap"]
  if not gap <= config.limits.first_ratio:
    raise Diverged(
      f"in iteration {step + 1} the first minibatch has a ratio {gap:.2e} off 1, before any "
      f"update, over limits.first_ratio={config.limits.first_ratio}: the log-probabilities of "
      "rollout and update are not of the same policy."
    )


def progress_text(lines: list[dict], total: int, seconds_left: float | None) -> str:
  """One line about the newest iteration."""
  line = lines[-1]
  parts = [
    f"iteration {line['step']:,}/{total:,}",
    f"reward {line['reward']:.4f}",
    f"KL {line['kl']:.3f}",
    f"beta {line['beta']:.4f}",
    f"entropy {line['entropy']:.3f}",
    f"clipped {line['policy/clip_fraction']:.1%}",
    f"length {line['length']:.1f}",
    f"{line['samples_per_sec']:.1f} samples/s",
  ]
  if seconds_left is not None:
    parts.append(f"{duration(seconds_left)} left")
  return "  ".join(parts)

"""The plan of a PPO iteration: each of its programs compiled from shapes, costed, and added up.

  gather    the policy's weights from the layout of training to that of the rollout
  rollout   the prompts, then a token of every response at a time, to the last token of each
  score     the reward models
  measure   log-probabilities of policy and reference, values of the critic
  prepare   rewards, advantages, whitening
  update    policy and critic, a minibatch at a time

They are the functions that `train.iteration` runs. What is not here: texts and reward functions on
the host, checkpoints, and responses that end early, which end a rollout before its last token.
"""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from model.generate import request_keys, rollout
from model.params import count, param_specs
from model.sampling import SamplingConfig, settings
from model.sharding import abstract_params, batch_shards, make_mesh, row_sharding
from train import hlo, ppo, reward_model
from train.cluster import Cluster, range_ends
from train.experience import make_gather, make_measure, make_prepare
from train.iteration import CRITIC, POLICY, Models, make_update
from train.plan_text import duration
from train.ppo_config import PPOConfig
from train.program import MEMORY, devices_of, program_key, state_bytes
from train.schedule import collectives, estimate
from train.scorers import make_model_scores
from train.workdir import write_atomically

GIB = 2**30
# What a device holds all the time, beside what a program computes.
REFERENCE, REWARDS = "reference", "reward models"
SCOPES = ("policy", "reference", "critic")  # named in the programs that have several models


@dataclasses.dataclass(frozen=True)
class Part:
  """One program of an iteration.

  Attributes:
    trace: makes it, under the mesh.
    runs: how often it runs.
    trips: how often a loop of it runs that does not say so: tokens of a response.
    held: which models that a device holds all the time are among its arguments.
  """

  name: str
  trace: Callable[[], jax.stages.Traced]
  runs: int
  held: tuple[str, ...]
  trips: int = 1


def make_plan(
  config: PPOConfig, nodes: int, cluster: Cluster, cache: Path | None
) -> dict[str, Any]:
  """The plan as nested JSON values; seconds and peaks are null where a CPU program can't tell.

  Raises:
    ValueError: the config does not fit the devices.
  """
  devices, on_gpu = devices_of(cluster, nodes)
  mesh = make_mesh(config.mesh, devices)
  ppo.check_sizes(config, mesh)
  models = Models(config, mesh)
  held = held_bytes(config, models, mesh)
  programs = []
  for part in parts(config, models, mesh):
    text, memory, seconds = compile_part(part, config, mesh, cluster, on_gpu, cache)
    programs.append(cost(part, text, memory, mesh, cluster, held, on_gpu) | {"compiled": seconds})
  plan: dict[str, Any] = {
    "stage": "ppo",
    "params": count(param_specs(config.model)),
    "devices": mesh.size,
    "mesh": dict(mesh.shape),
    "cluster": cluster.name,
    "compiled_for": "gpu" if on_gpu else "virtual cpu",
    "responses": config.responses,
    "held": held,
    "cache_bytes": cache_bytes(config, mesh),
    "programs": programs,
    "iterations": config.train.steps,
    "usable_bytes": cluster.usable_memory_bytes,
  }
  return plan | timing(plan, cluster)


def held_bytes(config: PPOConfig, models: Models, mesh: Mesh) -> dict[str, int]:
  """Bytes a device of the models that are there all the time."""
  held = {name: sum(state_bytes(state).values()) for name, state in models.abstract.items()}
  if not config.lora.rank:
    held[REFERENCE] = state_bytes(models.abstract[POLICY])["params"]
  if config.reward.models:
    one = sum(
      math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(_scorer(config, mesh))
    )
    held[REWARDS] = len(config.reward.models) * one
  return held


def _scorer(config: PPOConfig, mesh: Mesh) -> dict:
  """A reward model of the policy's architecture, with the dimensions that are weighted."""
  return abstract_params(reward_model.specs(config.model, max(len(config.reward.weights), 1)), mesh)


def cache_bytes(config: PPOConfig, mesh: Mesh) -> int:
  """Bytes a device of keys and values while responses are drawn."""
  m = config.model
  tokens = config.responses * (config.data.prompt_tokens + config.data.response_tokens)
  width = 2 * m.num_layers * m.num_kv_heads * m.head_dim * jnp.dtype(config.compute.dtype).itemsize
  return tokens * width // (batch_shards(mesh) * mesh.shape["tensor"])


def parts(config: PPOConfig, models: Models, mesh: Mesh) -> list[Part]:
  """The programs of an iteration, in their order."""
  abstract = models.abstract
  rows, tokens = config.responses, config.data.response_tokens
  by_row = functools.partial(jax.ShapeDtypeStruct, sharding=row_sharding(mesh))
  policy = abstract[POLICY].params
  critic = abstract[CRITIC].params if CRITIC in abstract else None
  reference = None if config.lora.rank else policy
  batch = {name: by_row((rows, config.data.seq_len), jnp.int32) for name in ("tokens", "mask")} | {
    name: by_row((rows,), jnp.float32) for name in ("total", "kept")
  }
  batch |= {
    "counts": by_row((rows,), jnp.int32),
    "rollout": by_row((rows, tokens), jnp.float32),
  }
  number = by_row((rows, tokens), jnp.float32)
  measured = dict.fromkeys(("log_probs", "entropy", "reference", "values"), number)
  learned = {name: batch[name] for name in ("tokens", "mask")} | dict.fromkeys(
    ("log_probs", "reference", "advantages", "response", "values", "returns", "valued"), number
  )
  learned["beta"] = batch["total"]
  weights, found, held = policy, [], (POLICY,)
  if config.rollout.layout == "gathered":
    gather = make_gather(config, models.specs[POLICY], mesh)
    found.append(Part("gather", lambda: gather.trace(policy), 1, held))
    weights, held = gather.eval_shape(policy), ()
  found.append(
    Part("rollout", lambda: trace_rollout(config, weights, by_row), 1, held, max(tokens - 1, 1))
  )
  if config.reward.models:
    members = [_scorer(config, mesh)] * len(config.reward.models)
    longer = by_row((rows, config.data.seq_len + 1), jnp.int32)
    score = make_model_scores(config, [config.model] * len(members))
    found.append(Part("score", lambda: score.trace(members, longer, longer), 1, (REWARDS,)))
  everyone = (POLICY, *((REFERENCE,) if reference is not None else ()))
  measure, prepare = make_measure(config, mesh), make_prepare(config)
  beta = jax.ShapeDtypeStruct((), jnp.float32)
  update = make_update(config, models, mesh)
  some = jax.ShapeDtypeStruct((rows // config.reuse.minibatches,), jnp.int32)
  return [
    *found,
    Part("measure", lambda: measure.trace(policy, reference, critic, batch), 1, everyone),
    Part("prepare", lambda: prepare.trace(batch, measured, beta), 1, ()),
    Part(
      "update",
      lambda: update.trace(abstract, learned, some),
      config.reuse.epochs * config.reuse.minibatches,
      tuple(abstract),
    ),
  ]


def trace_rollout(config: PPOConfig, weights: dict, by_row: Callable) -> jax.stages.Traced:
  """The rollout of `train.experience.respond`."""
  rows, vocab = config.responses, config.model.vocab_size
  keys = jax.eval_shape(lambda: request_keys(jax.random.key(0), jnp.arange(rows)))
  sampling = settings([SamplingConfig(config.rollout.temperature, 1.0)] * rows, vocab)
  return rollout.trace(
    weights,
    by_row((rows, config.data.prompt_tokens), jnp.int32),
    by_row((rows,), jnp.int32),
    keys,
    jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), sampling),
    by_row((rows, 1), jnp.int32),
    max_tokens=config.data.response_tokens,
    config=config.model,
    compute=config.compute,
  )


def compile_part(
  part: Part, config: PPOConfig, mesh: Mesh, cluster: Cluster, on_gpu: bool, cache: Path | None
) -> tuple[str, dict[str, int], float]:
  """The scheduled program's text, its bytes a device, and the seconds that compiling took."""
  start = time.perf_counter()
  with jax.set_mesh(mesh):
    traced = part.trace()
    lowered = traced.lower(lowering_platforms=("cuda",)) if on_gpu else traced.lower()
    key = program_key(lowered, config, cluster, on_gpu)
    path = cache and cache / "programs" / f"{key}-{part.name}.json"
    if path and path.exists():
      return tuple(json.loads(path.read_text()))
    compiled = lowered.compile()
  stats = compiled.memory_analysis()
  memory = {name: getattr(stats, f"{name}_size_in_bytes") for name in MEMORY}
  memory["peak"] = getattr(stats, "peak_memory_in_bytes", 0)
  found = (compiled.as_text(), memory, time.perf_counter() - start)
  if path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(found))
  return found


def cost(
  part: Part,
  text: str,
  memory: Mapping[str, int],
  mesh: Mesh,
  cluster: Cluster,
  held: Mapping[str, int],
  on_gpu: bool,
) -> dict[str, Any]:
  """What one program takes: seconds of a run by category, and the peak with all that is held."""
  module = hlo.parse(text)
  shape, timed = dict(mesh.shape), on_gpu or cluster.platform == "cpu"
  found = estimate(module, shape, cluster, part.trips, SCOPES)
  peak = memory["peak"] or (
    memory["argument"] + memory["temp"] + memory["output"] - memory["alias"]
  )
  beside = sum(size for name, size in held.items() if name not in part.held)
  one = {
    "name": part.name,
    "runs": part.runs,
    "seconds": None,
    "waterfall": {},
    "of_which": {},
    "flops": sum(found.flops.values()),
    "range": {},
    "own_bytes": peak if on_gpu else None,
    "peak_bytes": peak + beside if on_gpu else None,
    "collectives": collectives(found, timed),
  }
  if timed:
    one["seconds"] = found.seconds
    one["waterfall"] = dict(sorted(found.waterfall.items(), key=lambda item: -item[1]))
    one["of_which"] = {name: s for name, s in found.by_scope.items() if s}
    if part.trips > 1:
      prompts = estimate(module, shape, cluster, 0).seconds
      one["of_which"] = {"prompts": prompts, "a token": (found.seconds - prompts) / part.trips}
    one["range"] = {
      end: estimate(module, shape, cluster.replaced(values), part.trips).seconds
      for end, values in range_ends(cluster).items()
    }
  return one


def timing(plan: Mapping[str, Any], cluster: Cluster) -> dict[str, Any]:
  """Of an iteration and of the run; null without times."""
  programs = plan["programs"]
  if any(one["seconds"] is None for one in programs):
    names = ("iteration_seconds", "range", "samples_per_second", "utilization", "days", "gpu_hours")
    return dict.fromkeys(names)
  seconds = sum(one["runs"] * one["seconds"] for one in programs)
  hours = seconds * plan["iterations"] / 3600
  flops = sum(one["runs"] * one["flops"] for one in programs)
  return {
    "iteration_seconds": seconds,
    "range": {
      end: sum(one["runs"] * one["range"][end] for one in programs) for end in programs[0]["range"]
    },
    "samples_per_second": plan["responses"] / seconds,
    "utilization": flops / seconds / cluster.peak_flops,
    "days": hours / 24,
    "gpu_hours": hours * plan["devices"],
  }


def render(plan: Mapping[str, Any]) -> str:
  """The plan as text for a terminal."""
  lines = [
    f"PPO of {plan['params'] / 1e9:.2f}B parameters on {plan['devices']} devices, mesh "
    f"{plan['mesh']}: {plan['cluster']}",
    f"compiled for {plan['compiled_for']}; {plan['responses']:,} responses an iteration",
    "",
    "Held all the time, GiB a device",
    *(f"  {name:<16}{size / GIB:>8.2f}" for name, size in plan["held"].items()),
    f"  {'keys and values':<16}{plan['cache_bytes'] / GIB:>8.2f}   during the rollout, beside them",
    "",
    f"{'program':<10}{'runs':>6}{'s each':>10}{'s':>10}{'share':>8}{'peak GiB':>10}{'its own':>9}",
  ]
  total = plan["iteration_seconds"]
  for one in plan["programs"]:
    seconds = one["seconds"]
    each, whole, share = "-", "-", "-"
    if seconds is not None:
      whole, share = f"{one['runs'] * seconds:.2f}", f"{one['runs'] * seconds / total:.1%}"
      each = f"{seconds:.3f}"
    peak, own = (
      "-" if size is None else f"{size / GIB:.1f}" for size in (one["peak_bytes"], one["own_bytes"])
    )
    name, runs = one["name"], one["runs"]
    lines.append(f"{name:<10}{runs:>6}{each:>10}{whole:>10}{share:>8}{peak:>10}{own:>9}")
  if total is not None:
    ends = plan["range"]
    lines.append(
      f"{'iteration':<26}{total:>10.2f}   {ends['optimistic']:.1f} to {ends['pessimistic']:.1f} "
      "over the constants' ranges"
    )
    for one in plan["programs"]:
      shown = ", ".join(f"{name} {s:.3f}" for name, s in list(one["waterfall"].items())[:6])
      within = ", ".join(f"{name} {s:.4f}" for name, s in one["of_which"].items())
      lines.append(f"  {one['name']:<10}{shown}{within and f' (of which {within})'}")
    lines += [
      "",
      f"{plan['samples_per_second']:.1f} responses/s, {plan['utilization']:.1%} of the peak in "
      f"use; {plan['iterations']:,} iterations in {duration(plan['days'])}, "
      f"{plan['gpu_hours']:,.0f} GPU-hours",
    ]
  lines += ["", "The largest collectives, GB a run"]
  for one in plan["programs"]:
    for c in sorted(one["collectives"], key=lambda c: -c["bytes"])[:3]:
      exposed = "" if c["exposed_seconds"] is None else f"{c['exposed_seconds']:>8.3f} s exposed"
      lines.append(
        f"  {one['name']:<9}{c['op']:<16}{c['dtype']:<5}{c['axis']:<12}{c['link']:<11}"
        f"{c['bytes'] / 1e9:>10,.2f}{exposed}  {c['source']}"
      )
  lines.append("")
  for one in plan["programs"]:
    if (one["peak_bytes"] or 0) > plan["usable_bytes"]:
      lines.append(
        f"warning: the peak of {one['name']}, {one['peak_bytes'] / GIB:.1f} GiB, is over the "
        f"usable {plan['usable_bytes'] / GIB:.1f} GiB."
      )
  lines.append(
    "note: every response has its most tokens here; the host's work on texts and rewards, and "
    "checkpoints, are not counted. XLA skips autotuning without a GPU."
  )
  return "\n".join(lines)

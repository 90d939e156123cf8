"""Any run or imported model as a model of lm-evaluation-harness, for the tasks that it has.

    from configs import evaluate
    from lm_eval.evaluator import simple_evaluate
    from train.lm_eval_adapter import open_lm

    model = open_lm(evaluate.get_config("runs/quickstart").to_dict())
    results = simple_evaluate(model, tasks=["hellaswag", "winogrande"])

Needs the package `lm_eval`; the scorer, the tokenization and the generation are those of
`train.evaluate`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from lm_eval.api.model import LM

from data import chat
from model import batching, decode
from model.sampling import SamplingConfig
from model.sharding import make_mesh
from train.evaluate import Model, parse_config
from train.requests import cut, encode_pair, open_encoder, rolling
from train.scorer import Group, Request, Scorer
from train.suite import SuiteConfig
from train.weights import open_run, read_weights

_CHUNK = 16  # tokens of an answer between two looks for its end


def open_lm(config: Mapping[str, Any]) -> "StraitsLM":
  """The harness's `LM` of the run that a recipe of evaluation names, computed as it says.

  Of the suite it takes `max_length`, `max_tokens`, `chat_template` and the batches; the tasks are
  the harness's.

  Raises:
    ValueError, OSError: there is no such run, or it is damaged.
  """
  parsed = parse_config(config)
  mesh = make_mesh(parsed.mesh)
  run = open_run(Path(parsed.run))
  encoder = open_encoder(run.tokenizer, run.eot, run.model.vocab_size)
  params = read_weights(run, mesh, parsed.weights, parsed.step).params
  template = None
  if parsed.suite.chat_template is not None:
    template = chat.load_template(parsed.suite.chat_template, str(run.tokenizer), run.eot)
  stop = template.stop_ids if template else (encoder.eot,)
  model = Model(params, run.model, parsed.compute, mesh, encoder, stop)
  return StraitsLM(model, run.max_length, template, parsed.suite)


class StraitsLM(LM):
  """See `open_lm`."""

  def __init__(
    self, model: Model, max_length: int, template: chat.ChatTemplate | None, suite: SuiteConfig
  ):
    super().__init__()
    self._model, self._encoder, self._mesh = model, model.encoder, model.mesh
    self._template, self._suite = template, suite
    self._max_length = min(suite.max_length or max_length, max_length)
    self._scorer = Scorer(model.config, model.compute, model.mesh, suite.batch_tokens)

  @property
  def tokenizer_name(self) -> str:
    return self._encoder.fingerprint

  def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
    """(sum, greedy) of each continuation.

    Raises:
      ValueError: one has no tokens, or more than the context.
    """
    texts = [request.args for request in requests]
    encoded = []
    for context, continuation in texts:
      pair = cut(*encode_pair(self._encoder, context, continuation), self._max_length)
      if pair.request is None:
        raise ValueError(f"the continuation {continuation!r} can't be scored: {pair.refused}.")
      encoded.append(pair.request)
    # Continuations of one context are one item.
    items: dict[str, list[int]] = {}
    for index, (context, _) in enumerate(texts):
      items.setdefault(context, []).append(index)
    found: list[Any] = [None] * len(texts)
    for indices, results in self._score(list(items.values()), encoded):
      for index, result in zip(indices, results, strict=True):
        found[index] = (result.sum, result.greedy)
        self.cache_hook.add_partial("loglikelihood", texts[index], found[index])
    return found

  def _score(self, items: Sequence[Sequence[int]], encoded: Sequence[Request]):
    """(indices of an item, its results), for items in groups that begin alike."""
    groups: dict[tuple, list] = {}
    for item in items:
      start = tuple(encoded[item[0]].ids[:64].tolist())
      groups.setdefault(start, []).append(item)
    small = [group[0] for group in groups.values() if len(group) == 1]
    groups = {start: group for start, group in groups.items() if len(group) > 1}
    with jax.set_mesh(self._mesh):
      for group in [*groups.values(), small]:
        requests = Group([[encoded[index] for index in item] for item in group])
        for batch in self._scorer.batches(self._model.params, requests):
          for number, results in batch:
            yield group[number], results

  def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
    """The log-likelihood of each text, every token scored once."""
    found = []
    for request in requests:
      (text,) = request.args
      windows = rolling(self._encoder, text, self._max_length)
      total = 0.0
      for _, results in self._score([[i] for i in range(len(windows))], windows):
        total += sum(result.sum for result in results)
      found.append(total)
      self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
    return found

  def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
    """The answer to each prompt, up to its stop strings; greedy unless `do_sample` is set."""
    queue = [self._generation(number, *request.args) for number, request in enumerate(requests)]
    if not queue:
      return []
    answers = [""] * len(queue)
    with jax.set_mesh(self._mesh):
      batcher = batching.Batcher(
        decode.prepare(self._model.params, self._model.config, self._model.compute),
        self._model.config,
        self._model.compute,
        slots=self._suite.batch_rows,
        length=max(len(request.prompt) + request.max_tokens for request in queue),
        like=queue,
        chunk=_CHUNK,
        decode=self._encoder.decode,
      )
      for completion in batcher.run(queue):
        answers[completion.number] = completion.text
        arguments = requests[completion.number].args
        self.cache_hook.add_partial("generate_until", arguments, completion.text)
    return answers

  def _generation(self, number: int, context: str, options: Mapping[str, Any]) -> batching.Request:
    limit = int(options.get("max_gen_toks", self._suite.max_tokens))
    until = options.get("until") or ()
    until = (until,) if isinstance(until, str) else tuple(until)
    if limit >= self._max_length:
      raise ValueError(
        f"max_gen_toks={limit} leaves no room for a prompt in {self._max_length} tokens; lower it."
      )
    ids = self._encoder.encode(context) or [self._encoder.start]
    sampled = options.get("do_sample", False)
    return batching.Request(
      number=number,
      prompt=tuple(ids[-(self._max_length - limit) :]),
      max_tokens=limit,
      sampling=SamplingConfig(
        temperature=float(options.get("temperature", 1.0)) if sampled else 0.0,
        top_p=float(options.get("top_p", 1.0)) if sampled else 1.0,
      ),
      stop_ids=tuple(self._model.stop),
      stop_strings=tuple(text for text in until if text),
    )

  def apply_chat_template(self, chat_history, add_generation_prompt: bool = True) -> str:
    """The text of a conversation. Raises ValueError where the recipe names no template."""
    return self._chat().render(chat_history, prompt=add_generation_prompt)

  def chat_template(self, chat_template: bool | str = False) -> str:
    """The Jinja source that the harness writes into its results."""
    return self._chat().source

  def _chat(self) -> chat.ChatTemplate:
    if self._template is None:
      raise ValueError(
        "suite.chat_template is null; name the template to chat by, such as 'model'."
      )
    return self._template

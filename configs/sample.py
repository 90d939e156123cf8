"""Continuations of prompts by a run, or by an imported model; of the quickstart's by default.

    python -m train.main --config configs/sample.py
    python -m train.main --config configs/sample.py:runs/smollm2 --workdir runs/answers \\
      --config.prompts=prompts.jsonl --config.chat_template=model

The first reads prompts from the terminal. A file of prompts is text with one a line, or JSONL with
"prompt" or "messages"; what comes out is in the workdir, samples.jsonl and samples.txt, and started
again it goes on where it stopped. Nucleus sampling with p 0.9 at temperature 1 is the reference
run's.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import pretrain


def get_config(run: str = "runs/quickstart") -> ConfigDict:
  base = pretrain.get_config()
  base.compute.update(dtype="float32", remat="none")
  return ConfigDict(
    {
      "stage": "sample",
      "seed": base.seed,
      "run": run,
      "weights": placeholder(str),
      "step": placeholder(int),
      "compute": base.compute,
      "mesh": base.mesh,
      "prompts": placeholder(str),
      "chat_template": placeholder(str),
      "completions": 1,
      "max_tokens": base.sample.max_tokens,
      "context": placeholder(int),
      "stop_strings": (),
      "slots": 16,
      "chunk": 16,
      "sample": {
        "temperature": base.sample.temperature,
        "top_p": base.sample.top_p,
        "top_k": placeholder(int),
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "min_tokens": 0,
        "forbidden": (),
      },
    }
  )

"""The tokenizer and what else travels beside a Hugging Face model's weights, in and out.

In a run's folder they are under tokenizer/.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from data import tokenizer as tokenizer_files
from data.chat import load_template
from model import hf_config
from model.config import ModelConfig

TOKENIZERS = ("tokenizer.json", "tokenizer.model")
# What travels beside the weights, in a run's folder under tokenizer/.
FILES = (
  *TOKENIZERS,
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "generation_config.json",
  "chat_template.jinja",
)


def copy_beside(source: Path, folder: Path) -> None:
  """Copies those of FILES that there are."""
  for name in FILES:
    if (source / name).is_file():
      shutil.copyfile(source / name, folder / name)


def data_section(
  side: Path, described: dict[str, Any], config: ModelConfig, out: Path
) -> dict[str, Any]:
  """The section `data` of an imported model's recipe: tokenizer, its end of text, longest row.

  Args:
    side: where the files are.
    described: the model's config.json.
    config: the same as ours.
    out: the run's folder, where they will be under tokenizer/.

  Raises:
    ValueError: the tokenizer is damaged, names no end of text, or is larger than the vocabulary.
  """
  section: dict[str, Any] = {"seq_len": hf_config.max_positions(described)}
  file = next((name for name in TOKENIZERS if (side / name).exists()), None)
  if file is None:
    return section
  section["tokenizer"] = str(out / "tokenizer" / file)
  section["eot"] = _end_of_text(side, file, described)
  found = tokenizer_files.load(str(side / file), section["eot"])
  _check_fits(found, config)
  return section


def _end_of_text(side: Path, file: str, described: dict[str, Any]) -> str:
  """The name of the token that ends a text, by the tokenizer's config or else the model's."""
  path = side / "tokenizer_config.json"
  named = _token(hf_config.read_json(path), "eos") if path.exists() else None
  if named is not None:
    return named
  index = described.get("eos_token_id")
  index = index[0] if isinstance(index, list) and index else index
  if file == "tokenizer.json" and type(index) is int and index >= 0:
    name = _open(side / file).id_to_token(index)
    if name is not None:
      return name
  if file == "tokenizer.model":
    return "</s>"
  raise ValueError(
    "neither tokenizer_config.json (eos_token) nor config.json (eos_token_id) names the token that "
    "ends a text; add it to one of them."
  )


def _token(described: dict[str, Any], role: str) -> str | None:
  """The name of the token that a tokenizer_config.json gives a role; None where it gives none."""
  named = described.get(f"{role}_token")
  named = named.get("content") if isinstance(named, dict) else named
  if not isinstance(named, str | None):
    raise ValueError(f"tokenizer_config.json: {role}_token is {named!r}; it must be a text.")
  return named


def _open(path: Path) -> tokenizers.Tokenizer:
  try:
    return tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the library raises no narrower class
    raise ValueError(f"{path} is no tokenizer: {error}") from error


def _check_fits(tokenizer: tokenizer_files.Tokenizer, config: ModelConfig) -> None:
  if tokenizer.vocab_size > config.vocab_size:
    raise ValueError(
      f"the tokenizer has {tokenizer.vocab_size} ids and the model's vocabulary "
      f"{config.vocab_size}; the files do not belong together."
    )


def write(run: Path, recipe: dict[str, Any], config: ModelConfig, out: Path) -> dict[str, Any]:
  """Writes the tokenizer's files and the generation config; returns their part of config.json."""
  data = recipe.get("data", {})
  if "tokenizer" not in data:
    return {}
  own = (run / "tokenizer" / name for name in TOKENIZERS)
  path = next((path for path in own if path.exists()), Path(data["tokenizer"]))
  found = tokenizer_files.load(str(path), data["eot"])
  _check_fits(found, config)
  copy_beside(path.parent, out)
  ids = {"bos_token_id": found.eot, "eos_token_id": found.eot}
  if data.get("chat_template", "model") != "model":  # the model's own is copied already
    template = load_template(data["chat_template"], str(path), data["eot"])
    (out / "chat_template.jinja").write_text(template.source, encoding="utf-8")
  if (out / "tokenizer_config.json").exists():
    names = hf_config.read_json(out / "tokenizer_config.json")
    ids = _special_ids(names, out) or ids
  else:
    _describe_own_tokenizer(path, data, found.eot, out)
  if not (out / "generation_config.json").exists():
    sample = recipe.get("sample", {})
    chosen = {key: sample[key] for key in ("temperature", "top_p") if key in sample}
    generation = ids | ({"do_sample": True} | chosen if chosen.get("temperature") else {})
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
  return ids


def _special_ids(names: dict[str, Any], folder: Path) -> dict[str, int]:
  if not (folder / "tokenizer.json").exists():
    return {}
  file = _open(folder / "tokenizer.json")
  ids = {}
  for role in ("bos", "eos", "pad"):
    name = _token(names, role)
    index = file.token_to_id(name) if name else None
    if index is not None:
      ids[f"{role}_token_id"] = index
  return ids


def _describe_own_tokenizer(path: Path, data: dict[str, Any], eot: int, out: Path) -> None:
  """tokenizer_config.json, and a tokenizer.json that begins a text as every document began."""
  name = data["eot"]
  if path.suffix == ".json":
    tokenizer = _open(path)
    if tokenizer.post_processor is None:
      tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{name} $A", pair=f"{name} $A {name} $B", special_tokens=[(name, eot)]
      )
    tokenizer.save(str(out / "tokenizer.json"))
  described = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": name,
    "eos_token": name,
    "model_max_length": data["seq_len"],
    "clean_up_tokenization_spaces": False,
  }
  (out / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n")

"""The quickstart's model on a corpus that `python -m data.corpus` made.

    python -m train.main --config configs/quickstart_corpus.py:out --workdir runs/corpus

`out` is the corpus's workdir, whose manifest names the sources and their weights. docs/corpus.md
has the result on the corpus of configs/corpus.py.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from configs import quickstart


def get_config(workdir: str = "out") -> ConfigDict:
  config = quickstart.get_config()
  try:
    manifest = json.loads((Path(workdir) / "manifest.json").read_text(encoding="utf-8"))
  except OSError as error:
    raise ValueError(
      f"there is no corpus in {workdir!r} ({error}). Name its workdir as :FOLDER, or make it: "
      f"python -m data.corpus --config configs/corpus.py:RAW --workdir {workdir}"
    ) from None

  def places(part: str) -> dict[str, str]:
    return {
      name: str(Path(workdir) / source[part]["path"])
      for name, source in manifest["sources"].items()
      if source[part]["documents"]
    }

  config.data.sources = {
    name: {"path": path, "weight": manifest["sources"][name]["weight"]}
    for name, path in places("training").items()
  }
  config.data.dedup_threshold = None  # there are no duplicates left
  if held := places("heldout"):
    config.data.heldout_fraction = 0.0
    config.eval.sets = held
  return config

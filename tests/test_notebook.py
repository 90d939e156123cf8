"""docs/quickstart.ipynb, executed cell by cell: all of its code, but what installs packages."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

from data import embedded
from train.metrics import read

REPOSITORY = Path(__file__).parent.parent
NOTEBOOK = REPOSITORY / "docs" / "quickstart.ipynb"

# Runs after the cell that makes the recipe: a model and a corpus of a few seconds.
SHRINK = """
config.model.update(d_model=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, d_ff=64)
config.model.vocab_size = config.data.vocab_size = 512
config.data.sources.docs.path = {corpus!r}
config.data.update(seq_len=64, batch_size=8)
config.train.steps = 6
config.optimizer.warmup_steps = 2
config.eval.update(every=3, stride=32)
config.average.every = 1
config.log.peak_flops = 1e12
config.sample.max_tokens = 4
"""


def code_cells():
  cells = json.loads(NOTEBOOK.read_text())["cells"]
  for cell in cells:
    if cell["cell_type"] == "code":
      yield "".join(cell["source"]), cell["metadata"].get("tags", []), cell["outputs"]


def test_the_notebook_trains_plots_and_samples(tmp_path):
  corpus = tmp_path / "docs.jsonl"
  texts = [text for _, text in itertools.islice(embedded.documents(), 0, 600, 6)]
  corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
  script = []
  for source, tags, _ in code_cells():
    if "install" not in tags:
      script.append(source)
    if "config" in tags:
      script.append(SHRINK.format(corpus=str(corpus)))
  done = subprocess.run(
    [sys.executable, "-"],
    input="\n\n".join(script),
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(REPOSITORY), "MPLBACKEND": "agg", "XLA_FLAGS": ""},
    capture_output=True,
    text=True,
    timeout=240,
  )
  assert done.returncode == 0, done.stderr
  workdir = tmp_path / "runs" / "quickstart"
  assert "step 6, average weights:" in done.stdout
  assert done.stdout.rstrip().endswith((workdir / "samples.txt").read_text().rstrip())
  steps = [line["step"] for line in read(workdir / "metrics.jsonl") if line["kind"] == "train"]
  assert steps == list(range(1, 7))


def test_the_installing_cell_finds_the_checkout(tmp_path):
  """What it would run is recorded instead: in a checkout it installs that, elsewhere it clones."""
  (source,) = [source for source, tags, _ in code_cells() if "install" in tags]
  record = "import subprocess\nsubprocess.run = lambda command, check: print(*command)\n"
  for folder, clones in ((REPOSITORY / "docs", False), (tmp_path, True)):
    done = subprocess.run(
      [sys.executable, "-c", f"{record}\n{source}"],
      cwd=folder,
      capture_output=True,
      text=True,
      check=True,
    )
    checkout = tmp_path / "straits" if clones else REPOSITORY
    assert f"pip install -q -e {checkout}" in done.stdout
    assert ("git clone" in done.stdout) == clones


def test_the_notebook_is_stored_without_outputs():
  notebook = json.loads(NOTEBOOK.read_text())
  assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
  assert not any(outputs for _, _, outputs in code_cells())
  ids = [cell["id"] for cell in notebook["cells"]]
  assert len(set(ids)) == len(ids)

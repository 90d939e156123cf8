"""Temperature scaling of a run, or of an imported model; of the quickstart's by default.

    python -m train.main --config configs/calibrate.py
    python -m train.main --config configs/calibrate.py:runs/smollm2 --workdir runs/calibrated \\
      --config.documents='held/*.jsonl' --config.evaluation=runs/evaluated \\
      --config.pairs=runs/reward

Fits on one half and prints NLL, Brier score and ECE before and after on the other. The temperatures
are kept with the model, in its calibration.json.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import sample


def get_config(run: str = "runs/quickstart") -> ConfigDict:
  base = sample.get_config(run)
  return ConfigDict(
    {
      "stage": "calibrate",
      "run": run,
      "weights": placeholder(str),
      "step": placeholder(int),
      "compute": base.compute,
      "mesh": base.mesh,
      "documents": placeholder(str),
      "tokens": 20_000,
      "seq_len": 256,
      "batch_size": 8,
      "evaluation": placeholder(str),
      "pairs": placeholder(str),
      "max_bad_lines": 0,
    }
  )

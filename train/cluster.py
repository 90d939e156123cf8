"""A cluster as the plan sees it: facts, and a cost model's constants, read from a data file."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "clusters"


@dataclasses.dataclass(frozen=True)
class Cluster:
  """A kind of cluster; `facts` are given, `constants` are the model's, and can be off.

  Seconds, bytes, FLOPs and their ratios, by the names of the data file. `nodes` is how many a plan
  takes if it isn't told, `target` what XLA asks of the GPU.
  """

  name: str
  nodes: int
  gpus_a_node: int
  memory_bytes: int
  usable_memory_bytes: int
  peak_flops: float
  facts: Mapping[str, float]
  constants: Mapping[str, float]
  ranges: Mapping[str, tuple[float, float]]
  bounds: Mapping[str, float]
  country: str
  platform: str
  target: Mapping[str, Any]

  def scaled(self, name: str, factor: float) -> "Cluster":
    """With one constant times `factor`."""
    return self.replaced({name: self.constants[name] * factor})

  def replaced(self, constants: Mapping[str, float]) -> "Cluster":
    return dataclasses.replace(self, constants={**self.constants, **constants})


def range_ends(cluster: Cluster) -> dict[str, dict[str, float]]:
  """All constants at the bad end of their range at once, and all at the good one."""
  good = {n: high if n.endswith("efficiency") else low for n, (low, high) in cluster.ranges.items()}
  bad = {n: low if n.endswith("efficiency") else high for n, (low, high) in cluster.ranges.items()}
  return {"pessimistic": bad, "optimistic": good}


def load_cluster(name: str) -> Cluster:
  """Reads `train/clusters/<name>.json`. Raises ValueError where it is missing or out of bounds."""
  data = read_cluster(name)
  constants = data["constants"]
  for key, entry in constants.items():
    if not 0 < entry["low"] <= entry["value"] <= entry["high"] <= entry["bound"]:
      raise ValueError(
        f"cluster {name}: {key} is {entry}; it must be 0 < low <= value <= high <= bound."
      )
  facts = {
    key: entry["value"]
    for key, entry in data.items()
    if isinstance(entry, dict) and "value" in entry
  }
  facts["kg_co2_per_kwh"] = data["grid"]["kg_co2_per_kwh"]
  return Cluster(
    name=data["name"],
    nodes=data["nodes"],
    gpus_a_node=data["gpus_a_node"],
    memory_bytes=data["memory_bytes"],
    usable_memory_bytes=data["usable_memory_bytes"],
    peak_flops=facts["peak_flops"],
    facts=facts,
    constants={key: entry["value"] for key, entry in constants.items()},
    ranges={key: (entry["low"], entry["high"]) for key, entry in constants.items()},
    bounds={key: entry["bound"] for key, entry in constants.items()},
    country=data["grid"]["country"],
    platform=data["platform"],
    target=data["target"],
  )


def read_cluster(name: str) -> dict[str, Any]:
  """A cluster's data, with that of the cluster it is based on where it has none of its own."""
  path = FOLDER / f"{name}.json"
  if not path.exists():
    known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.json")))
    raise ValueError(f"cluster is {name!r}; known: {known}.")
  data = json.loads(path.read_text())
  if "base" not in data:
    return data
  base = read_cluster(data.pop("base"))
  for key in ("constants", "target"):
    data[key] = base[key] | data.get(key, {})
  return base | data

"""Files about the layers of TensorRT engines, as `trtexec` writes them for NVIDIA's viewers.

`layers_NAME.json` is what `trtexec --exportLayerInfo` gives, `profile_NAME.json` what
`--exportProfile` does; the engine explorer (trex) reads a pair of them. NAME is the stage's for the
prefill, the first optimisation profile, and ends in `_decode` for the second.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from atp_runtime.backends.layer_log import EngineLayers, LayerRun
from atp_runtime.engine_set import PREFILL


def layer_files(engines: Sequence[EngineLayers]) -> dict[str, str]:
    """The contents of the files, by their names."""
    files = {}
    for engine in engines:
        name = engine.stage if engine.profile == PREFILL else f"{engine.stage}_{engine.profile}"
        files[f"layers_{name}.json"] = engine.description
        files[f"profile_{name}.json"] = json.dumps(layer_times(engine.runs), indent=1) + "\n"
    return files


def layer_times(runs: Sequence[LayerRun]) -> list[dict[str, Any]]:
    """The number of runs, then a record per layer, in the order they ran.

    A name that comes twice in a run is two layers.
    """
    times: dict[tuple[str, int], list[float]] = {}
    for run in runs:
        seen: Counter[str] = Counter()
        for layer in run:
            times.setdefault((layer.name, seen[layer.name]), []).append(layer.milliseconds)
            seen[layer.name] += 1
    whole = sum(map(sum, times.values()))
    records = [
        {
            "name": name,
            "timeMs": sum(taken),
            "averageMs": fmean(taken),
            "medianMs": median(taken),
            "percentage": 100 * sum(taken) / whole if whole else 0.0,
        }
        for (name, _), taken in times.items()
    ]
    return [{"count": len(runs)}, *records]


def is_detailed(engine: EngineLayers) -> bool:
    """Whether layers are told by more than their names, which viewers want."""
    layers = json.loads(engine.description).get("Layers", [])
    return all(isinstance(layer, dict) for layer in layers)

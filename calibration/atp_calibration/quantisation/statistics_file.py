"""Keeps what was seen so far in a file, so that an interrupted pass goes on behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from atp_calibration.quantisation.histogram import Histogram
from atp_calibration.quantisation.layer_input import LayerInput
from atp_calibration.quantisation.ranges import Seen

_ARRAYS = ("largest", "total", "keys", "rows", "extremes")
_HEAD = "head"

Spreads = dict[str, dict[str, tuple[float, float]]]
"""The largest magnitude and the 99.9th percentile, by stage and layer."""


@dataclass
class Statistics:
    """What a pass over samples has seen.

    Attributes:
        done: Samples that are in it.
        runs: Of stages, see `RangeBackend`.
        seen: What entered the linear layers.
        pruned: What entered on the samples that are compared, pruned as usual.
        unpruned: What entered on the same samples with nothing pruned.
        too_long: Ids of samples that the model has not the positions for.
    """

    done: int = 0
    runs: int = 0
    seen: Seen = field(default_factory=dict)
    pruned: Spreads = field(default_factory=dict)
    unpruned: Spreads = field(default_factory=dict)
    too_long: list[str] = field(default_factory=list)


def spreads(seen: Seen) -> Spreads:
    """The spread of what was seen."""
    return {
        stage: {name: (it.maximum, it.histogram.quantile(0.999)) for name, it in inputs.items()}
        for stage, inputs in seen.items()
    }


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Writes the file, as a whole or not at all."""
    arrays: dict[str, Any] = {}
    entries: list[list[str | int]] = []
    for stage, inputs in statistics.seen.items():
        for name, it in inputs.items():
            number = len(entries)
            entries.append([stage, name, it.channels, it.capacity, it.count, it.histogram.exponent])
            arrays[f"{number}.counts"] = it.histogram.counts
            arrays |= {f"{number}.{field}": getattr(it, field) for field in _ARRAYS}
    head = {
        "done": statistics.done,
        "runs": statistics.runs,
        "pruned": statistics.pruned,
        "unpruned": statistics.unpruned,
        "too_long": statistics.too_long,
        "entries": entries,
    }
    written = path.with_name(path.name + ".part")
    with written.open("wb") as file:
        np.savez(file, allow_pickle=False, **{_HEAD: np.array(json.dumps(head)), **arrays})
    written.replace(path)


def read_statistics(path: Path) -> Statistics:
    """Reads the file; what was seen is empty if it is not there or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            head = json.loads(str(stored[_HEAD]))
            return _restored(head, stored)
    except (OSError, EOFError, ValueError, KeyError, BadZipFile):
        return Statistics()


def _restored(head: dict[str, Any], stored: Mapping[str, Any]) -> Statistics:
    seen: Seen = {}
    for number, entry in enumerate(head["entries"]):
        stage, name, channels, capacity, count, exponent = entry
        histogram = Histogram(exponent, stored[f"{number}.counts"])
        arrays = {field: stored[f"{number}.{field}"] for field in _ARRAYS}
        seen.setdefault(stage, {})[name] = LayerInput(
            channels, capacity, count, histogram=histogram, **arrays
        )
    return Statistics(
        head["done"],
        head["runs"],
        seen,
        _spreads(head["pruned"]),
        _spreads(head["unpruned"]),
        head["too_long"],
    )


def _spreads(value: dict[str, dict[str, list[float]]]) -> Spreads:
    return {
        stage: {name: (pair[0], pair[1]) for name, pair in inputs.items()}
        for stage, inputs in value.items()
    }

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from atp_calibration.progress import Progress
from atp_calibration.quantisation import observe as module
from atp_calibration.quantisation.observe import observe
from atp_calibration.quantisation.ranges import RangeBackend
from atp_calibration.quantisation.statistics_file import (
    Statistics,
    read_statistics,
    write_statistics,
)
from atp_calibration.samples import Sample, read_samples
from atp_runtime.bundle import Bundle
from atp_runtime.errors import CheckFailedError

SILENT = Progress(None)


@pytest.fixture(scope="module")
def samples(scenes: Path) -> tuple[Sample, ...]:
    return read_samples(scenes, 4).samples


@pytest.fixture(scope="module")
def whole(
    two_dialects: Path, samples: tuple[Sample, ...], tmp_path_factory: pytest.TempPathFactory
) -> Statistics:
    file = tmp_path_factory.mktemp("whole") / "statistics.npz"
    return observe(Bundle.open(two_dialects), samples, RangeBackend(), file, SILENT)


def same(a: Statistics, b: Statistics) -> bool:
    if (a.done, a.runs, a.pruned, a.unpruned) != (b.done, b.runs, b.pruned, b.unpruned):
        return False
    pairs = [
        (a.seen[stage][name], b.seen[stage][name]) for stage in a.seen for name in a.seen[stage]
    ]
    return all(
        x.count == y.count
        and np.array_equal(x.largest, y.largest)
        and np.array_equal(x.rows, y.rows)
        and np.array_equal(x.histogram.counts, y.histogram.counts)
        for x, y in pairs
    )


def test_a_file_holds_all_that_was_seen(whole: Statistics, tmp_path: Path) -> None:
    write_statistics(tmp_path / "s.npz", whole)
    assert same(read_statistics(tmp_path / "s.npz"), whole)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_begun_anew(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "s.npz"
    if content is not None:
        path.write_bytes(content)
    assert read_statistics(path).done == 0


def test_an_interrupted_pass_ends_as_one_that_was_not(
    two_dialects: Path,
    samples: tuple[Sample, ...],
    whole: Statistics,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.0)  # writes after every sample
    file, bundle = tmp_path / "s.npz", Bundle.open(two_dialects)

    class Stops(Progress):
        def step(self) -> None:
            if read_statistics(file).done == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        observe(bundle, samples, RangeBackend(), file, Stops(None))
    assert read_statistics(file).done == 2
    assert same(observe(bundle, samples, RangeBackend(), file, SILENT), whole)


def test_unpruned_streams_are_seen_beside_the_pruned_ones(whole: Statistics) -> None:
    assert whole.pruned.keys() == whole.unpruned.keys() == whole.seen.keys()
    # The same photos come in, and behind a pruning point some of their tokens are missing.
    assert largest(whole.pruned["vision"]) == largest(whole.unpruned["vision"])
    assert largest(whole.pruned["segment_1"]) != largest(whole.unpruned["segment_1"])


def largest(spreads: dict[str, tuple[float, float]]) -> dict[str, float]:
    return {name: spread[0] for name, spread in spreads.items()}


def test_only_kept_tokens_are_counted(whole: Statistics) -> None:
    counts = {stage: {it.count for it in seen.values()} for stage, seen in whole.seen.items()}
    (first,), (second,) = counts["segment_0"], counts["segment_1"]
    assert second < first


def test_nan_is_found_in_the_layer_that_it_enters(
    two_dialects: Path, samples: tuple[Sample, ...], tmp_path: Path
) -> None:

    broken = Path(shutil.copytree(two_dialects, tmp_path / "broken"))
    path = broken / "onnx" / "segment_1.onnx"
    graph = onnx.load(path, load_external_data=False)
    norm = "model.language_model.layers.3.post_attention_layernorm.weight"
    place = {
        entry.key: entry.value
        for tensor in graph.graph.initializer
        if tensor.name == norm
        for entry in tensor.external_data
    }
    with (path.parent / place["location"]).open("r+b") as data:
        data.seek(int(place["offset"]))
        data.write(np.array([np.nan], np.float32).tobytes())
    bundle = Bundle(broken, Bundle.open(two_dialects).manifest)
    with pytest.raises(CheckFailedError, match=r"layers\.3\.mlp\.gate_proj.*NaN"):
        observe(bundle, samples, RangeBackend(), tmp_path / "s.npz", SILENT)

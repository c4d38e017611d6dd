from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atp_runtime.errors import InputError
from atp_runtime.latency.table import (
    FORMAT,
    SCHEMA_VERSION,
    LatencyTable,
    MeasuredLatency,
    Setting,
    Timing,
    graphs_hash,
    read_table,
    table_for,
    write_table,
)
from atp_runtime.manifest import Manifest, read_manifest
from atp_runtime.schema import to_json

HERE = Setting("Board (aarch64)", "onnxruntime", 2, None)
LINE = (Timing(10, 0.1, 0.11), Timing(20, 0.3, 0.36))


def table_of(manifest: Manifest, **changes: object) -> LatencyTable:
    table = LatencyTable(
        FORMAT,
        SCHEMA_VERSION,
        HERE,
        {},
        graphs_hash(manifest),
        5,
        {stage.name: LINE for stage in manifest.stages},
        LINE,
        LINE,
    )
    return replace(table, **changes)


@pytest.fixture
def manifest(hand_made: Path) -> Manifest:
    return read_manifest(hand_made)


def test_a_table_is_found_by_the_setting_it_was_measured_in(
    own_bundle: Path, manifest: Manifest
) -> None:
    table = table_of(manifest)
    write_table(own_bundle / "latency" / HERE.file_name, table)
    assert table_for(own_bundle, manifest, HERE) == table
    for other in (replace(HERE, threads=1), replace(HERE, power="mode 2")):
        with pytest.raises(InputError, match="no measured times") as refused:
            table_for(own_bundle, manifest, other)
        assert "atp-profile" in refused.value.fix
        assert "board-aarch64-onnxruntime-2-threads" in refused.value.why


def test_other_thresholds_keep_the_table_and_other_graphs_do_not(
    tmp_path: Path, manifest: Manifest
) -> None:
    path = tmp_path / "table.json"
    write_table(path, table_of(manifest))
    stage = manifest.segments[0]
    assert stage.pruning
    pruned = replace(stage, pruning=replace(stage.pruning, parameters={"keep": 1}))
    assert read_table(path, replace(manifest, stages=(pruned, *manifest.stages[1:])))
    changed = replace(manifest.files[stage.graph], sha256="0" * 64)
    with pytest.raises(InputError, match="other graphs"):
        read_table(path, replace(manifest, files={**manifest.files, stage.graph: changed}))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"schema_version": 99}, "not version"),
        ({"format": "other"}, "not version"),
        ({"runs": "many"}, "runs"),
        ({"stages": {}}, "other graphs"),
        ({"prefill": []}, "must rise"),
    ],
)
def test_a_table_that_is_none_is_refused(
    tmp_path: Path, manifest: Manifest, changes: dict[str, object], problem: str
) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({**to_json(table_of(manifest)), **changes}))
    with pytest.raises(InputError, match=problem):
        read_table(path, manifest)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, manifest: Manifest, text: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"table\.json"):
        read_table(path, manifest)


def test_times_lie_on_lines_between_what_was_measured(manifest: Manifest) -> None:
    latency = MeasuredLatency(table_of(manifest))
    assert latency.stage("segment_0", 10) == pytest.approx(0.1)
    assert latency.stage("segment_0", 15) == pytest.approx(0.2)
    assert latency.stage("segment_0", 3) == pytest.approx(0.1)  # never less than measured
    assert latency.stage("segment_0", 40) == pytest.approx(0.6)  # each as one of 20 in 0.3 s


def test_the_spread_is_the_typical_ratio_of_p95_to_median(manifest: Manifest) -> None:
    assert MeasuredLatency(table_of(manifest)).spread == pytest.approx((1.1 + 1.2) / 2)


@given(
    st.lists(st.floats(1e-6, 10), min_size=1, max_size=6), st.integers(1, 90), st.integers(1, 90)
)
def test_more_tokens_never_take_less_however_noisy_the_table(
    medians: list[float], one: int, other: int
) -> None:
    timings = tuple(Timing(10 * n + 5, it, it) for n, it in enumerate(medians))
    table = LatencyTable(FORMAT, 1, HERE, {}, "", 1, {"s": timings}, (), timings)
    latency = MeasuredLatency(table)
    fewer, more = sorted((one, other))
    assert latency.stage("s", fewer) <= latency.stage("s", more)

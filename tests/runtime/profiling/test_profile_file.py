from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.runtime.profiling.conftest import MakeProfile

from atp_runtime.errors import InputError
from atp_runtime.profiling.ceiling import Ceiling
from atp_runtime.profiling.limits import share_of_ceiling
from atp_runtime.profiling.profile_file import FILE, Row, Spread, read_profile, write_profile


@pytest.mark.parametrize("pruned", [100.0, None])
def test_what_is_written_is_read(
    make_profile: MakeProfile, tmp_path: Path, pruned: float | None
) -> None:
    profile = make_profile(pruned=pruned)
    write_profile(tmp_path / FILE, profile)
    assert read_profile(tmp_path) == read_profile(tmp_path / FILE) == profile


def test_pruning_is_as_much_sooner_as_the_medians_say(make_profile: MakeProfile) -> None:
    assert make_profile(300.0, 100.0).speedup == pytest.approx(3)
    assert make_profile(300.0, None).speedup is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "atp-latency"}, "atp-latency"),
        ({"schema_version": 2}, "atp-profile 2"),
        ({"modes": {}}, "none"),
        ({"modes": {"fast": None}}, "modes.fast"),
        ({"peak_memory_bytes": "much"}, "peak_memory_bytes"),
    ],
)
def test_another_file_is_refused_by_its_field(
    make_profile: MakeProfile, tmp_path: Path, change: dict[str, object], told: str
) -> None:
    write_profile(tmp_path / FILE, make_profile())
    document = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(document | change))
    with pytest.raises(InputError, match=told):
        read_profile(tmp_path)


def test_a_missing_file_is_refused_with_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="atp-profile BUNDLE"):
        read_profile(tmp_path)


def test_times_that_fall_are_no_spread() -> None:
    with pytest.raises(ValueError, match="no spread"):
        Spread(2.0, 1.0, 3.0, 4.0)


def test_the_nearer_limit_counts(make_profile: MakeProfile) -> None:
    row = Row("prefill", "segment_0", 1.0, 1.0, Spread(1, 1, 1, 1), 50.0, 1.0)
    ceiling = Ceiling(gflops=100.0, gbps=10.0)
    assert share_of_ceiling(row, ceiling) == pytest.approx(0.5)
    assert share_of_ceiling(replace(row, gbps=8.0), ceiling) == pytest.approx(0.8)
    assert share_of_ceiling(replace(row, gflops=None), ceiling) == pytest.approx(0.1)
    assert share_of_ceiling(replace(row, gflops=None, gbps=None), ceiling) is None
    assert share_of_ceiling(row, None) is None

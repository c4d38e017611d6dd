from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.runtime.latency.answering_bundle import write_answering, write_photos

from atp_runtime.latency.table import Setting
from atp_runtime.profiling.ceiling import Ceiling
from atp_runtime.profiling.profile_file import (
    DENSE,
    FORMAT,
    PRUNED,
    SCHEMA_VERSION,
    Asked,
    ColdStart,
    MemorySample,
    Mode,
    Profile,
    ProfiledBundle,
    Row,
    Shares,
    Spread,
)

MakeProfile = Callable[..., Profile]


@pytest.fixture(scope="session")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that can be asked about photos: 64 visual tokens, then 16, then 4."""
    return write_answering(tmp_path_factory.mktemp("answering") / "bundle")


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One photo."""
    return write_photos(tmp_path_factory.mktemp("photo"), 1)[0]


def around(median: float) -> Spread:
    return Spread(median * 0.9, median, median * 1.1, median * 1.2)


def a_mode(milliseconds: float, tokens: float) -> Mode:
    seconds = milliseconds / 1e3
    rows = (
        Row("prompt", "photo", None, None, around(seconds / 10), None, None),
        Row("vision", "vision", None, 64.0, around(seconds / 5), 50.0, 2.0),
        Row("prefill", "segment_0", 70.0, 70.0, around(seconds / 2), 80.0, 1.0),
        Row("prefill", "select before 2", 64.0, 16.0, around(seconds / 100), None, None),
        Row("prefill", "segment_1", tokens, tokens, around(seconds / 8), 40.0, 5.0),
        Row("decode", "segment_0", 1.0, 1.0, around(seconds / 50), 4.0, 9.0),
    )
    memory = (MemorySample(0.0, 50 << 20), MemorySample(seconds, 60 << 20))
    shares = Shares(0.005, 0.012, 0.01, 0.0004)
    token = around(seconds / 20)
    return Mode(around(seconds), token, tokens, 4096.0, rows, memory, shares=shares)


@pytest.fixture
def make_profile() -> MakeProfile:
    """A profile whose numbers are round."""

    def make(dense: float = 200.0, pruned: float | None = 100.0, **changes: object) -> Profile:
        modes = {DENSE: a_mode(dense, 64.0)}
        if pruned is not None:
            modes[PRUNED] = a_mode(pruned, 16.0)
        profile = Profile(
            FORMAT,
            SCHEMA_VERSION,
            ProfiledBundle("demo", "abc", "float32", 4, 1 << 20),
            Setting("a board", "onnxruntime", 2, None),
            {"numpy": "2.0"},
            Asked(1, "photo.jpg", 32, 30, 5),
            Ceiling(100.0, 10.0),
            ColdStart(0.5, 0.3),
            100 << 20,
            1e-6,
            (),
            modes,
        )
        return replace(profile, **changes)

    return make

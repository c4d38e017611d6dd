from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from atp_runtime.backends import open_backend
from atp_runtime.bundle import Bundle
from atp_runtime.errors import InputError
from atp_runtime.latency.sweep import default_tokens, measure
from atp_runtime.latency.table import LatencyTable, Setting
from atp_runtime.session import Session

HERE = Setting("here", "onnxruntime", 1, None)
Measure = Callable[..., LatencyTable]


@pytest.fixture
def measured(answering: Path) -> Measure:
    def run(tokens: tuple[int, ...], runs: int = 2) -> LatencyTable:
        bundle = Bundle.open(answering)
        with Session(bundle, open_backend(threads=1)) as session:
            return measure(session, bundle, HERE, tokens, runs, 1, lambda _done, _rounds: None)

    return run


def test_every_stage_is_timed_at_every_length_and_no_token_is_pruned(measured: Measure) -> None:
    table = measured((3, 40, 90))
    for name in ("segment_0", "segment_1", "segment_2"):
        assert [timing.tokens for timing in table.stages[name]] == [3, 40, 90]
    assert [timing.tokens for timing in table.prefill] == [3, 40, 90]
    assert [timing.tokens for timing in table.stages["vision"]] == [64]
    assert [timing.tokens for timing in table.stages["head"]] == [1]
    assert all(timing.median_seconds > 0 for timing in table.between)


def test_a_whole_prefill_takes_as_long_as_its_parts(measured: Measure) -> None:
    table = measured((64,), runs=1)
    parts = sum(table.stages[f"segment_{number}"][0].median_seconds for number in range(3))
    parts += table.stages["head"][0].median_seconds + 2 * table.between[0].median_seconds
    assert table.prefill[0].median_seconds == pytest.approx(parts)


def test_the_rounds_are_told(answering: Path) -> None:
    bundle, told = Bundle.open(answering), []
    with Session(bundle, open_backend(threads=1)) as session:
        measure(session, bundle, HERE, (8,), 3, 2, lambda *now: told.append(now))
    assert told == [(done, 5) for done in range(1, 6)]  # two to warm up


def test_default_lengths_go_from_text_alone_to_a_whole_image_with_text(answering: Path) -> None:
    with Session.open(answering, threads=1) as session:
        assert default_tokens(session.model) == (32, 36, 40, 48, 64, 96)


@pytest.mark.parametrize(
    ("tokens", "runs"), [((), 1), ((4, 4), 1), ((9, 4), 1), ((0, 4), 1), ((4, 97), 1), ((4,), 0)]
)
def test_lengths_and_runs_that_make_no_table_are_refused(
    measured: Measure, tokens: tuple[int, ...], runs: int
) -> None:
    with pytest.raises(InputError):
        measured(tokens, runs)

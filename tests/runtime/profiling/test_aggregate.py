from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atp_runtime.manifest import Manifest, read_manifest
from atp_runtime.profiling.aggregate import make_mode, spread
from atp_runtime.profiling.profile_file import Row
from atp_runtime.profiling.timed_turn import DECODE, PREFILL, Span, TimedTurn
from atp_runtime.statistics import cached_bytes, segment_flops


@pytest.fixture(scope="module")
def manifest(answering: Path) -> Manifest:
    return read_manifest(answering)


def turn(prefill: float, decode: float, steps: int = 4) -> TimedTurn:
    spans = (
        Span(PREFILL, "segment_0", prefill, entering=70, leaving=70),
        Span(PREFILL, "select before 2", prefill / 10, entering=64, leaving=16),
        Span(DECODE, "segment_0", decode, steps, entering=steps, leaving=steps, past=300),
        Span(DECODE, "sample", decode / 10, steps),
    )
    whole = sum(span.seconds for span in spans)
    first = 1.1 * prefill
    return TimedTurn(spans, steps, first, whole, 28.0, (74, 24, 12), 10)


def row(rows: tuple[Row, ...], phase: str, name: str) -> Row:
    return next(it for it in rows if (it.phase, it.name) == (phase, name))


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=40))
def test_a_spread_goes_from_the_fastest_run_upwards(seconds: list[float]) -> None:
    found = spread(seconds)
    assert found.minimum == min(seconds)
    assert found.minimum <= found.median <= found.p90 <= found.p99 <= max(seconds)


def test_decoding_is_told_per_token_and_the_rest_per_answer(manifest: Manifest) -> None:
    mode = make_mode(manifest, [turn(0.2, 0.08), turn(0.4, 0.16), turn(0.3, 0.12)], ())
    assert row(mode.rows, PREFILL, "segment_0").seconds.median == pytest.approx(0.3)
    assert row(mode.rows, DECODE, "segment_0").seconds.median == pytest.approx(0.03)
    assert row(mode.rows, DECODE, "sample").seconds.median == pytest.approx(0.003)
    assert row(mode.rows, DECODE, "segment_0").entering == 1
    assert mode.first_token.median == pytest.approx(0.33)
    assert mode.token is not None
    assert mode.token.median == pytest.approx(1.1 * 0.12 / 4)


def test_speeds_are_those_of_the_stage_s_own_work(manifest: Manifest) -> None:
    mode = make_mode(manifest, [turn(0.25, 0.08)], ())
    stage = manifest.stage("segment_0")
    prefill = row(mode.rows, PREFILL, "segment_0")
    assert prefill.gflops == pytest.approx(segment_flops(manifest.text, stage, 70, 0) / 0.25 / 1e9)
    decode = row(mode.rows, DECODE, "segment_0")
    weights = sum(manifest.files[name].bytes for name in stage.data)
    moved = weights + (1 + 75) * cached_bytes(manifest, stage)  # 300 positions in 4 steps
    assert decode.gbps == pytest.approx(moved / 0.02 / 1e9)


def test_what_the_host_does_has_no_speed(manifest: Manifest) -> None:
    rows = make_mode(manifest, [turn(0.25, 0.08)], ()).rows
    select = row(rows, PREFILL, "select before 2")
    assert (select.gflops, select.gbps) == (None, None)
    assert (select.entering, select.leaving) == (64, 16)


def test_shares_of_the_host_are_medians_of_the_answers_own(manifest: Manifest) -> None:
    turns = [turn(0.2, 0.08), turn(0.4, 0.16), turn(0.3, 0.12)]
    shares = make_mode(manifest, turns, (), gbps=10.0).shares
    # A rule takes a tenth of the only stage of the prefill, sampling one of that of decode.
    assert shares is not None
    assert shares.prefill == shares.selection == pytest.approx(1 / 11)
    assert shares.decode == pytest.approx(1 / 11)
    moved = 2 * 70 * manifest.text.hidden * 4
    assert shares.gather == pytest.approx(moved / 10e9 / (1.1 * 0.3))


def test_what_is_outside_of_stages_counts_and_only_rules_are_selection(
    manifest: Manifest,
) -> None:
    spans = (
        Span(PREFILL, "embed and splice", 0.01),
        Span(PREFILL, "segment_0", 0.9, entering=70, leaving=70),
        Span(PREFILL, "select before 2", 0.02, entering=64, leaving=16),
        Span(PREFILL, "head", 0.03, entering=1, leaving=1),
        Span(PREFILL, "hand over", 0.04),
    )
    alone = TimedTurn(spans, 0, 1.0, 1.0, 28.0, (70, 0, 0), 10)
    shares = make_mode(manifest, [alone], ()).shares
    assert shares is not None
    assert shares.prefill == pytest.approx(0.07)
    assert shares.selection == pytest.approx(0.02)
    assert (shares.decode, shares.gather) == (None, None)


def test_caches_are_those_of_all_segments(manifest: Manifest) -> None:
    mode = make_mode(manifest, [turn(0.25, 0.08)], ())
    expected = sum(
        length * cached_bytes(manifest, stage)
        for length, stage in zip((74, 24, 12), manifest.segments, strict=True)
    )
    assert mode.cache_bytes == expected


def test_answers_of_a_single_token_have_no_time_per_token(manifest: Manifest) -> None:
    alone = TimedTurn((Span(PREFILL, "head", 0.1, entering=1),), 0, 0.1, 0.1, 0.0, (1, 1, 1), 3)
    assert make_mode(manifest, [alone], ()).token is None

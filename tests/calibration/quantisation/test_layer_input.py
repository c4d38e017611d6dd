from __future__ import annotations

import numpy as np
import pytest

from atp_calibration.quantisation.layer_input import (
    EXTREMES,
    LayerInput,
    SeenTokens,
    capacity_for,
)

ROWS = 100


def seen(tokens: np.ndarray, drawn: int) -> SeenTokens:
    """What a run of a stage shows of these tokens [count, in]."""
    rows = tokens[np.linspace(0, len(tokens) - 1, drawn).astype(int)]
    magnitudes = np.abs(tokens)
    extreme = tokens[magnitudes.max(axis=1).argmax()]
    return SeenTokens(len(tokens), magnitudes.max(axis=0), magnitudes.mean(axis=0), rows, extreme)


def tokens(seed: int, count: int = 400) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)


def gathered(runs: list[np.ndarray], seed: int = 0) -> LayerInput:
    found, generator = LayerInput(6, ROWS), np.random.default_rng(seed)
    for run in runs:
        found.add(seen(run, min(len(run), 100)), generator)
    return found


RUNS = [tokens(seed) for seed in range(4)] + [tokens(9, count=1)]


def test_extremes_and_means_are_those_of_all_tokens() -> None:
    found, everything = gathered(RUNS), np.abs(np.concatenate(RUNS))
    assert found.count == len(everything)
    assert np.array_equal(found.largest, everything.max(axis=0))
    assert found.mean == pytest.approx(everything.mean(axis=0), rel=1e-5)
    assert found.maximum == everything.max()
    assert np.abs(found.extremes).max() == everything.max()


def test_merging_parts_sees_what_one_pass_sees() -> None:
    one = gathered(RUNS)
    parts = gathered(RUNS[:2])
    parts.merge(gathered(RUNS[2:], seed=1))
    assert parts.count == one.count
    assert np.array_equal(parts.largest, one.largest)
    assert parts.mean == pytest.approx(one.mean)
    assert parts.histogram.counts.sum() == pytest.approx(one.histogram.counts.sum())
    assert parts.histogram.quantile(0.9) == pytest.approx(one.histogram.quantile(0.9), rel=0.01)
    assert len(parts.rows) == len(one.rows) == ROWS


def test_memory_does_not_grow_with_the_tokens() -> None:
    found = gathered([tokens(seed) for seed in range(20)])
    assert found.rows.shape == (ROWS, 6)
    assert found.extremes.shape == (EXTREMES, 6)
    rows, counts = found.tokens()
    assert len(rows) == len(counts) == ROWS + EXTREMES
    assert counts[:ROWS].sum() == pytest.approx(found.count)


def test_tokens_of_a_long_run_are_remembered_more_often_than_one_of_a_short_run() -> None:
    """100 drawn tokens stand for 10,000, another hundred for themselves."""
    found, generator = LayerInput(1, capacity=50), np.random.default_rng(0)
    long, short = np.full((10_000, 1), 1.0, np.float32), np.full((100, 1), 2.0, np.float32)
    found.add(seen(short, 100), generator)
    found.add(seen(long, 100), generator)
    assert (found.rows == 1.0).mean() > 0.9


def test_without_capacity_no_token_is_remembered() -> None:
    found = LayerInput(6, capacity=0)
    found.add(seen(tokens(0), 10), np.random.default_rng(0))
    assert found.count == 400
    assert len(found.rows) == len(found.extremes) == 0


def test_a_7b_is_remembered_within_384_mib() -> None:
    channels = 32 * (3 * 4096 + 11008) + 24 * (3 * 1024 + 4096)
    remembered = capacity_for(channels) + EXTREMES
    assert remembered > 100
    assert remembered * channels * 4 <= 384 << 20


def test_a_small_model_is_remembered_by_more_tokens_than_a_large_one() -> None:
    assert capacity_for(1000) > capacity_for(10**6) > capacity_for(10**9) > 0

from __future__ import annotations

import numpy as np
import pytest

from atp_calibration.quantisation.histogram import Histogram
from atp_calibration.quantisation.search import round_to_int8
from atp_calibration.quantisation.thresholds import METHODS, find_thresholds


def found(values: np.ndarray) -> dict[str, float]:
    return dict(find_thresholds(Histogram.of(values), float(np.abs(values).max())))


def error(values: np.ndarray, threshold: float) -> float:
    return float(np.square(round_to_int8(values, threshold) - values).sum())


@pytest.fixture(scope="module")
def with_outliers() -> np.ndarray:
    """Standard normal values and one in ten thousand a hundred times as large."""
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    values[::20_000] = 100
    return values


def test_minmax_clips_nothing(with_outliers: np.ndarray) -> None:
    assert found(with_outliers)["minmax"] == 100


def test_percentile_and_entropy_give_outliers_up(with_outliers: np.ndarray) -> None:
    thresholds = found(with_outliers)
    assert thresholds["percentile"] < 10
    assert thresholds["entropy"] < 10


def test_mse_is_better_than_the_others_in_what_it_minimises() -> None:
    values = np.random.default_rng(1).standard_t(3, 50_000).astype(np.float32)
    thresholds = found(values)
    least = error(values, thresholds.pop("mse"))
    # The best of fifty candidates, in bins.
    assert all(least <= 1.05 * error(values, threshold) for threshold in thresholds.values())


@pytest.mark.parametrize("method", METHODS)
def test_no_threshold_is_above_the_largest_magnitude(method: str) -> None:
    values = np.random.default_rng(2).uniform(-3, 3, 10_000).astype(np.float32)
    threshold = found(values)[method]
    assert 1.0 < threshold <= np.abs(values).max()


def test_zeros_have_the_threshold_zero() -> None:
    assert set(found(np.zeros(10, np.float32)).values()) == {0.0}
    assert not round_to_int8(np.zeros((2, 2), np.float32), 0.0).any()

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from atp_calibration.quantisation.histogram import BINS, Histogram

values = arrays(
    np.float32, st.integers(0, 40), elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
)


@given(values, values)
def test_merging_is_the_same_as_counting_everything(a: np.ndarray, b: np.ndarray) -> None:
    merged = Histogram.of(a)
    merged.merge(Histogram.of(b))
    whole = Histogram.of(np.concatenate([a, b]))
    assert merged.exponent == whole.exponent
    assert merged.counts.sum() == whole.counts.sum() == len(a) + len(b)
    # Growing adds bins pairwise, which float32 edges may see one bin apart.
    assert np.abs(np.cumsum(merged.counts) - np.cumsum(whole.counts)).max() <= len(a) + len(b)
    for share in (0.5, 0.9, 1.0):
        step = whole.limit / BINS
        assert merged.quantile(share) == pytest.approx(whole.quantile(share), abs=1.01 * step)


@given(values.filter(len))
def test_a_quantile_is_within_a_bin_of_the_truth(seen: np.ndarray) -> None:
    histogram = Histogram.of(seen)
    ordered = np.sort(np.abs(seen))
    step = histogram.limit / BINS
    for share in (0.25, 0.5, 1.0):
        truth = ordered[max(int(np.ceil(share * len(seen))) - 1, 0)]
        assert truth - step <= histogram.quantile(share) <= truth + 1.01 * step


def test_everything_lies_below_the_limit() -> None:
    histogram = Histogram()
    for magnitude in (0.0, 1e-3, 1.0, 3.0, 1e5):
        histogram.add(np.array([magnitude], np.float32))
        assert magnitude < histogram.limit
    assert histogram.counts.sum() == 5


def test_weights_count_a_value_several_times() -> None:
    histogram = Histogram.of(np.array([1.0], np.float32))
    histogram.add(np.array([8.0], np.float32), weight=9.0)
    assert histogram.quantile(0.05) == pytest.approx(1, abs=0.01)
    assert histogram.quantile(0.5) == pytest.approx(8, abs=0.02)


def test_nothing_has_the_quantile_zero() -> None:
    assert Histogram().quantile(0.5) == 0

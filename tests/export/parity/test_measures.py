"""Cosine and norm ratio of tensors' rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from atp_export.parity.measures import Measure, Tolerance, as_rows, compare, in_sequence

TIGHT = Tolerance(cosine=1 - 1e-9, norm_ratio=1e-6)
ANYTHING = Tolerance(cosine=-1.0, norm_ratio=math.inf)


def measured(found: np.ndarray, expected: np.ndarray, tolerance: Tolerance = TIGHT) -> Measure:
    return compare("tensor", "prefill", found, expected, tolerance)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


matrices = hnp.arrays(
    np.float32,
    st.tuples(st.just(1), st.integers(1, 5), st.integers(1, 6)),
    elements=st.floats(-1e4, 1e4, width=32),
)


@given(matrices)
def test_a_tensor_equals_itself(tensor: np.ndarray) -> None:
    measure = measured(tensor, tensor)

    assert measure.passed
    assert measure.max_abs_error == 0


@given(matrices, st.floats(1.001, 100))
def test_a_scale_shows_in_the_norm_ratio_and_not_in_the_cosine(
    tensor: np.ndarray, scale: float
) -> None:
    wide = tensor.astype(np.float64)
    measure = measured(wide * scale, wide)

    assert measure.cosine == pytest.approx(1, abs=1e-12)
    assert measure.passed == (not tensor.any())
    assert measure.norm_ratio == pytest.approx(scale if tensor.any() else 1)


def test_cosine_is_the_usual_one_when_there_is_one_row() -> None:
    measure = measured(np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]]))

    assert measure.cosine == pytest.approx(24 / 25)
    assert measure.norm_ratio == pytest.approx(1)
    assert measure.max_abs_error == 1


def test_a_tiny_difference_is_not_rounded_away() -> None:
    expected = np.array([[1.0, 0.0]])

    measure = measured(np.array([[1.0, 1e-6]]), expected)

    assert measure.cosine is not None
    assert 1 - measure.cosine == pytest.approx(5e-13, rel=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["found", "expected", "both"])
def test_what_is_not_a_number_never_passes(bad: float, side: str) -> None:
    broken, whole = noise(1, 4, 5), noise(1, 4, 5)
    broken[0, 2, 3] = bad
    pair = {"found": (broken, whole), "expected": (whole, broken), "both": (broken, broken)}[side]

    measure = measured(*pair, ANYTHING)

    assert measure == Measure("tensor", "prefill", None, None, None, passed=False)


def test_other_shapes_never_pass() -> None:
    assert not measured(noise(1, 4, 6), noise(1, 4, 5), ANYTHING).passed


def test_zeros_equal_zeros() -> None:
    measure = measured(np.zeros((1, 3, 4)), np.zeros((1, 3, 4)))

    assert (measure.passed, measure.cosine, measure.norm_ratio) == (True, 1.0, 1.0)


def test_zeros_never_equal_something() -> None:
    something, nothing = noise(1, 3, 4), np.zeros((1, 3, 4))

    lost = measured(nothing, something, Tolerance(0.5, 2.0))
    made_up = measured(something, nothing, ANYTHING)

    assert (lost.passed, lost.cosine, lost.norm_ratio) == (False, 0.0, 0.0)
    assert (made_up.passed, made_up.norm_ratio) == (False, None)


def test_nothing_never_passes() -> None:
    assert not measured(np.zeros((1, 0, 4)), np.zeros((1, 0, 4)), ANYTHING).passed


def test_a_huge_token_does_not_hide_a_wrong_one() -> None:
    expected = noise(1, 10, 8)
    expected[0, 0] *= 1e4
    found = expected.copy()
    found[0, 5] *= -1

    assert not measured(found, expected, Tolerance(0.9, 0.1)).passed


def test_a_wrong_row_of_zeros_counts() -> None:
    expected = noise(1, 4, 8)
    expected[0, 1] = 0
    found = expected.copy()
    found[0, 1] = 1

    assert not measured(found, expected, Tolerance(0.95, 0.1)).passed


def test_scale_weighs_rows_when_given() -> None:
    expected, scale = noise(1, 2, 8), noise(1, 2, 8)
    scale[0, 1] *= 1e6
    found = expected.copy()
    found[0, 1] *= 1.1

    alone = compare("t", "prefill", found, expected, TIGHT)
    weighed = compare("t", "prefill", found, expected, TIGHT, scale=scale)

    assert (alone.passed, weighed.passed) == (False, True)


@pytest.mark.parametrize(("size", "error", "passed"), [(1, 2e-3, False), (100, 2e-3, True)])
def test_largest_error_is_relative_when_values_are_large(
    size: float, error: float, passed: bool
) -> None:
    expected = np.full((1, 1000), float(size))
    found = expected.copy()
    found[0, 0] += error

    measure = measured(found, expected, Tolerance(0.9, 0.1, max_abs_error=1e-3))

    assert measure.passed == passed
    assert measure.max_abs_error == pytest.approx(error)


def test_largest_error_is_absolute_when_values_are_small() -> None:
    expected = np.full((1, 4), 1e-3)

    assert measured(expected + 9e-4, expected, Tolerance(0.5, 10, max_abs_error=1e-3)).passed


def test_rows_are_tokens() -> None:
    assert as_rows(np.zeros((1, 5, 2, 3))).shape == (5, 6)
    assert as_rows(np.zeros((2, 5, 3))).shape == (10, 3)
    assert as_rows(np.zeros((1, 7))).shape == (1, 7)
    assert as_rows(np.zeros(7)).shape == (1, 7)


def test_runs_are_joined_along_their_tokens() -> None:
    keys = [np.full((1, 1, 2, 3), n) for n in range(4)]
    logits = [np.full((1, 5), n) for n in range(4)]

    assert in_sequence(keys).shape == (1, 4, 2, 3)
    assert in_sequence(logits)[0, :, 0].tolist() == [0, 1, 2, 3]
    assert in_sequence(logits[:1]) is logits[0]

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from atp_calibration.quantisation import error_feedback
from atp_calibration.quantisation.error_feedback import DAMPING, ErrorFeedback
from atp_calibration.quantisation.stored_weights import dequantise_blocks, quantise_blocks

CHANNELS, BLOCK = 32, 8
small = st.floats(-8, 8, width=32)


def activations(tokens: int, seed: int = 0) -> np.ndarray:
    """Correlated, as hidden states are: a few directions hold most of them."""
    generator = np.random.default_rng(seed)
    directions = np.random.default_rng(1).normal(size=(6, CHANNELS))
    rows = generator.normal(size=(tokens, 6)) @ directions
    return (rows + 0.1 * generator.normal(size=rows.shape)).astype(np.float32)


def weights() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(CHANNELS, 5)).astype(np.float32)


def one_by_one(weight: np.ndarray, scales: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """GPTQ as its section 3 says it, H^-1 updated row after row, in float64."""
    wide = rows.astype(np.float64)
    hessian = wide.T @ wide
    order = list(np.argsort(-np.diag(hessian), kind="stable"))
    hessian += np.eye(CHANNELS) * DAMPING * np.diag(hessian).mean()
    left, each = weight.astype(np.float64), np.repeat(scales, BLOCK, axis=0).astype(np.float64)
    values = np.zeros(weight.shape, np.int8)
    inverse = np.linalg.inv(hessian)
    for place, at in enumerate(order):
        values[at] = np.clip(np.rint(left[at] / each[at]), -8, 7)
        error = (left[at] - values[at] * each[at]) / inverse[at, at]
        rest = order[place + 1 :]
        left[rest] -= np.outer(inverse[rest, at], error)
        inverse -= np.outer(inverse[:, at], inverse[at]) / inverse[at, at]
    return values


@pytest.mark.parametrize("tokens", [10, 400])
def test_values_are_those_of_the_paper_s_recursion(tokens: int) -> None:
    rows, weight = activations(tokens), weights()
    _, scales = quantise_blocks(weight, BLOCK)
    found = ErrorFeedback.of(rows, np.ones(tokens)).round(weight, scales)
    expected = one_by_one(weight, scales, rows)
    # float32 may fall on the other side of a half, and rows behind that follow.
    assert (found == expected).mean() > 0.97


def test_outputs_on_unseen_tokens_are_closer_than_with_rounding_to_the_nearest() -> None:
    weight, unseen = weights(), activations(300, seed=9)
    nearest, scales = quantise_blocks(weight, BLOCK)
    fed_back = ErrorFeedback.of(activations(300), np.ones(300)).round(weight, scales)

    def error(values: np.ndarray) -> float:
        return float(np.square(unseen @ (dequantise_blocks(values, scales) - weight)).sum())

    assert error(fed_back) < 0.5 * error(nearest)


def test_a_token_that_stands_for_three_weighs_as_three() -> None:
    rows, weight = activations(40), weights()
    _, scales = quantise_blocks(weight, BLOCK)
    counted = ErrorFeedback.of(rows, np.r_[np.full(10, 3.0), np.ones(30)])
    repeated = ErrorFeedback.of(np.concatenate([rows[:10], rows[:10], rows]), np.ones(60))
    assert (counted.round(weight, scales) == repeated.round(weight, scales)).mean() > 0.97


def test_uncorrelated_inputs_have_nothing_to_make_up_for() -> None:
    weight = weights()
    nearest, scales = quantise_blocks(weight, BLOCK)
    feedback = ErrorFeedback.of(np.eye(CHANNELS, dtype=np.float32), np.ones(CHANNELS))
    assert np.array_equal(feedback.round(weight, scales), nearest)


@given(arrays(np.float32, (16, 3), elements=small), arrays(np.float32, (5, 16), elements=small))
def test_any_numbers_give_int4(weight: np.ndarray, rows: np.ndarray) -> None:
    _, scales = quantise_blocks(weight, 4)
    values = ErrorFeedback.of(rows, np.ones(len(rows))).round(weight, scales)
    assert values.min() >= -8
    assert values.max() <= 7


def test_wide_inputs_are_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, weight = activations(100), weights()
    _, scales = quantise_blocks(weight, BLOCK)
    monkeypatch.setattr(error_feedback, "WIDEST", 16)
    apart = ErrorFeedback.of(rows, np.ones(100)).round(weight, scales)
    halves = [
        ErrorFeedback.of(rows[:, half], np.ones(100)).round(weight[half], scales[part])
        for half, part in ((slice(0, 16), slice(0, 2)), (slice(16, 32), slice(2, 4)))
    ]
    assert np.array_equal(apart, np.concatenate(halves))

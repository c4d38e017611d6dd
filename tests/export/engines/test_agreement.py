from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atp_export.engines.agreement import BOUNDS, Array, Bound, TensorAgreement, compare_outputs

FP16 = BOUNDS["fp16"]
VALUES = np.random.default_rng(1).normal(size=(1, 64, 32)).astype(np.float32)


def compared(found: Array, expected: Array = VALUES, bound: Bound = FP16) -> TensorAgreement:
    (agreement,) = compare_outputs({"logits": found}, {"logits": expected}, bound)
    return agreement


def test_equal_tensors_agree_perfectly() -> None:
    assert compared(VALUES) == TensorAgreement("logits", 1.0, 1.0, 0.0, passed=True)


@given(seed=st.integers(0, 2**32 - 1), bits=st.integers(11, 20))
def test_rounding_passes(seed: int, bits: int) -> None:
    noise = np.random.default_rng(seed).normal(size=VALUES.shape)
    assert compared(VALUES * (1 + noise * 2.0**-bits)).passed


def test_measures_are_those_of_their_definition() -> None:
    expected = np.array([3.0, 4.0])
    found = compared(np.array([4.0, 3.0]), expected)
    assert found.cosine == pytest.approx(24 / 25)
    assert found.norm_ratio == pytest.approx(1)
    assert found.mean_error == pytest.approx(1 / np.sqrt(12.5))


def with_stripe() -> Array:
    """One feature of each token is wrong."""
    changed = VALUES.copy()
    changed[..., 3] += 1
    return changed


@pytest.mark.parametrize(
    "found",
    [
        VALUES * 1.01,
        np.roll(VALUES, 1, axis=1),
        with_stripe(),
        np.zeros_like(VALUES),
        VALUES.transpose(0, 2, 1),
        VALUES[:, :1],
        VALUES[:, :0],
        np.where(VALUES > 3, np.nan, VALUES),
        np.where(VALUES > 3, np.inf, VALUES),
    ],
    ids=["scale", "shift", "stripe", "zeros", "layout", "short", "empty", "NaN", "infinite"],
)
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_defects_fail(found: Array, precision: str) -> None:
    assert not compared(found, bound=BOUNDS[precision]).passed


def test_errors_of_fp16_fail_as_fp32() -> None:
    rounded = VALUES.astype(np.float16)
    assert compared(rounded).passed
    assert not compared(rounded, bound=BOUNDS["fp32"]).passed


def test_a_scale_is_seen_by_the_norm_alone() -> None:
    found = compared(VALUES * 1.01)
    assert found.cosine is not None
    assert found.cosine >= FP16.cosine
    assert found.norm_ratio == pytest.approx(1.01)


def test_zeros_are_zeros() -> None:
    zeros = np.zeros((2, 2))
    assert compared(zeros, zeros).passed
    assert not compared(np.ones((2, 2)), zeros).passed


def test_a_tensor_that_is_missing_fails() -> None:
    found = compare_outputs({"scores.self": VALUES}, {"logits": VALUES}, FP16)
    assert [(it.tensor, it.passed) for it in found] == [("logits", False)]

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atp_calibration.quantisation.qdq import activation_scale
from atp_export.engines.agreement import (
    BOUNDS,
    Array,
    Bound,
    TensorAgreement,
    bound_of,
    compare_outputs,
)
from atp_runtime.manifest import Manifest, Quantisation

FP16, INT8 = BOUNDS["fp16"], BOUNDS["int8"]
VALUES = np.random.default_rng(1).normal(size=(1, 64, 32)).astype(np.float32)


def compared(found: Array, expected: Array = VALUES, bound: Bound = FP16) -> TensorAgreement:
    (agreement,) = compare_outputs({"logits": found}, {"logits": expected}, bound)
    return agreement


def test_equal_tensors_agree_perfectly() -> None:
    assert compared(VALUES) == TensorAgreement("logits", 1.0, 1.0, 0.0, passed=True)


@settings(deadline=None)
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
        VALUES * 1.06,
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
@pytest.mark.parametrize("precision", BOUNDS)
def test_defects_fail(found: Array, precision: str) -> None:
    assert not compared(found, bound=BOUNDS[precision]).passed


def test_errors_of_fp16_fail_as_fp32() -> None:
    rounded = VALUES.astype(np.float16)
    assert compared(rounded).passed
    assert not compared(rounded, bound=BOUNDS["fp32"]).passed


def int8_layer(values: Array, largest: float) -> Array:
    """A product with what an INT8 kernel makes of its input; its sums are exact."""
    scale = activation_scale(largest)
    weight = np.random.default_rng(2).normal(size=(values.shape[-1], 256))
    product: Array = np.clip(np.rint(values / scale), -128, 127) * scale @ weight
    return product


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_values_that_round_to_other_steps_pass_as_int8_and_not_as_fp16(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.normal(size=(64, 1024))
    values[:, :2] *= 20  # a few large features, as language models have them
    largest = float(np.abs(values).max())
    expected = int8_layer(values, largest)
    rounded = int8_layer(values * (1 + random.normal(size=values.shape) * 2.0**-9), largest)
    assert compared(rounded, expected, INT8).passed
    assert not compared(rounded, expected, FP16).passed


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("quantisation", "expected"),
    [
        (None, None),
        (Quantisation("int8", "int8", None, 8), "int8"),
        (Quantisation("int4", None, 64, 8), None),
    ],
    ids=["none", "int8", "int4 weights"],
)
def test_only_int8_activations_widen_the_bound(
    make_manifest: Callable[..., Manifest],
    precision: str,
    quantisation: Quantisation | None,
    expected: str | None,
) -> None:
    manifest = replace(make_manifest(precision=precision), quantisation=quantisation)
    assert bound_of(manifest) == BOUNDS[expected or precision]


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

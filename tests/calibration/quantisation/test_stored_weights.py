from __future__ import annotations

import numpy as np
import onnx_ir as ir
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from atp_calibration.quantisation.stored_weights import (
    dequantise_blocks,
    pack,
    quantise_blocks,
    quantise_weight,
)

FLOATS = st.floats(-100, 100, width=32)
weights = arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=FLOATS)
in_blocks = arrays(
    np.float32, st.tuples(st.sampled_from([4, 8, 12]), st.integers(1, 5)), elements=FLOATS
)


@given(weights)
def test_an_int8_weight_is_never_off_by_more_than_half_a_step(weight: np.ndarray) -> None:
    values, scale = quantise_weight(weight)
    assert scale.shape == (weight.shape[1],)
    assert (scale > 0).all()
    error = np.abs(values * scale - weight)
    assert (error <= scale * 0.501).all()


@given(weights)
def test_every_channel_uses_the_whole_range(weight: np.ndarray) -> None:
    values, _ = quantise_weight(weight)
    normal = np.abs(weight).max(axis=0) > 1e-30  # smaller steps are not representable
    assert (np.abs(values).max(axis=0)[normal] == 127).all()


def test_zeros_stay_zeros_and_divide_nothing_by_zero() -> None:
    for values, scale in (
        quantise_weight(np.zeros((4, 2), np.float32)),
        quantise_blocks(np.zeros((4, 2), np.float32), 4, np.ones(4)),
    ):
        assert not values.any()
        assert np.isfinite(scale).all()


@given(in_blocks)
def test_an_int4_weight_is_never_off_by_more_than_half_a_step(weight: np.ndarray) -> None:
    values, scales = quantise_blocks(weight, 4)
    assert scales.shape == (len(weight) // 4, weight.shape[1])
    error = np.abs(dequantise_blocks(values, scales) - weight)
    assert (error <= np.repeat(scales, 4, axis=0) * 0.501).all()
    assert values.min() >= -8
    assert values.max() <= 7


@given(in_blocks, st.data())
def test_clipping_never_costs_more_than_it_saves(weight: np.ndarray, data: st.DataObject) -> None:
    costs = arrays(np.float64, len(weight), elements=st.floats(0.1, 10))
    importance = data.draw(costs)

    def cost(found: tuple[np.ndarray, np.ndarray]) -> float:
        error = dequantise_blocks(*found).astype(np.float64) - weight
        return float((importance[:, None] * error**2).sum())

    plain, clipped = quantise_blocks(weight, 4), quantise_blocks(weight, 4, importance)
    assert cost(clipped) <= cost(plain) * (1 + 1e-5)


@given(
    arrays(np.int8, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.integers(-8, 7))
)
def test_packed_values_are_what_onnx_reads(values: np.ndarray) -> None:
    tensor = ir.PackedTensor(pack(values), ir.DataType.INT4, shape=ir.Shape(values.shape))
    assert np.array_equal(tensor.numpy().astype(np.int8), values)

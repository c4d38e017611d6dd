from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atp_calibration.quantisation.choice import migration_scale
from atp_calibration.quantisation.layer_input import LayerInput
from atp_calibration.quantisation.shared_heads import SharedHeads


@given(kv_heads=st.integers(1, 4), sharing=st.integers(1, 4), head_dim=st.integers(1, 8))
def test_channels_of_one_column_have_their_maximum_in_common(
    kv_heads: int, sharing: int, head_dim: int
) -> None:
    heads = SharedHeads(sharing, head_dim)
    values = np.random.default_rng(0).normal(size=kv_heads * sharing * head_dim)
    tied = heads.tied(values, np.max)
    for channel, found in enumerate(tied):
        head, place = divmod(channel, head_dim)
        group = head // sharing
        same = [(group * sharing + it) * head_dim + place for it in range(sharing)]
        assert found == max(values[it] for it in same)


def test_columns_are_those_of_the_first_head_of_each_group() -> None:
    values = np.array([1, 2, 1, 2, 5, 6, 5, 6], np.float32)
    assert SharedHeads(2, 2).columns(values).tolist() == [1, 2, 5, 6]


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_scales_of_shared_heads_divide_values_as_they_multiply_what_is_mixed(
    precision: str,
) -> None:
    """With any attention, mixing divided values and multiplying them again changes nothing."""
    generator, heads = np.random.default_rng(1), SharedHeads(sharing=3, head_dim=4)
    values = generator.normal(size=(5, 8)) * generator.uniform(0.1, 30, 8)  # two heads of values
    attention = generator.dirichlet(np.ones(5), size=(6, 7))  # six heads of queries, seven rows

    def mixed(values: np.ndarray) -> np.ndarray:
        parts = [attention[it] @ values[:, (it // 3) * 4 : (it // 3) * 4 + 4] for it in range(6)]
        return np.concatenate(parts, axis=1)

    magnitudes = np.abs(mixed(values))
    seen = LayerInput(24, count=7)
    seen.largest, seen.total = magnitudes.max(axis=0).astype(np.float32), magnitudes.sum(axis=0)
    scale = migration_scale(precision, 0.7, seen, generator.uniform(0.1, 2, 24), heads)
    assert scale.max() > 2 * scale.min()
    restored = mixed(values / heads.columns(scale)) * scale
    np.testing.assert_allclose(restored, mixed(values), rtol=1e-6)

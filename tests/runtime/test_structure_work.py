"""Counted arithmetic against the paper's and against sums written out."""

from __future__ import annotations

import pytest

from atp_runtime.manifest import Stage, TextModel
from atp_runtime.statistics import segment_flops
from atp_runtime.structure import Structure
from atp_runtime.structure_work import PrefillRows, paper_flops, structured_flops

GRID = (24, 24)
SEVEN = TextModel(
    layers=32, hidden=4096, heads=32, kv_heads=32, head_dim=128, intermediate=11008,
    vocabulary=32064, max_positions=4096,
)  # fmt: skip
THIRTEEN = TextModel(
    layers=40, hidden=5120, heads=40, kv_heads=40, head_dim=128, intermediate=13824,
    vocabulary=32064, max_positions=4096,
)  # fmt: skip
# Heads kept in the layers before the cut, in the authors' headmask_7b_24.npy and _16.npy.
KEPT_24 = (32, 32, 32, 19, 24, 17, 21, 27, 26, 23, 27, 24, 28, 31, 31, 27)
KEPT_16 = (32, 32, 9, 5, 10, 4, 5, 15, 18, 13, 15, 20, 23, 24, 27, 23)


def released(kept: tuple[int, ...], ratio: int) -> Structure:
    """A released 7B configuration; which heads are kept does not change how many."""
    heads = tuple("1" * count + "0" * (32 - count) for count in (*kept, *[32] * 16))
    return Structure(window=5, heads=heads, ffn_ratio=ratio, cut_layer=16)


def test_whole_models_have_the_papers_operations() -> None:
    assert paper_flops(SEVEN, 576) / 1e12 == pytest.approx(7.63, abs=0.005)
    assert paper_flops(THIRTEEN, 576) / 1e12 == pytest.approx(14.89, abs=0.005)


@pytest.mark.parametrize(
    ("kept", "ratio", "share"), [(KEPT_24, 2, 0.297), (KEPT_16, 4, 0.169)], ids=["25 %", "12 %"]
)
def test_released_configurations_have_the_share_that_the_formula_gives(
    kept: tuple[int, ...], ratio: int, share: float
) -> None:
    found = paper_flops(SEVEN, 576, released(kept, ratio)) / paper_flops(SEVEN, 576)

    assert found == pytest.approx(share, abs=0.0005)


def test_what_is_executed_is_a_little_more_as_keys_stay_whole() -> None:
    structure = released(KEPT_24, 2)

    found = structured_flops(SEVEN, structure, GRID, range(16), PrefillRows(576, 0))

    formula = paper_flops(SEVEN, 576, structure)
    keys = sum(2 * 576 * 4096**2 * (1 - count / 32) for count in KEPT_24)
    # Windows are computed in blocks of 4 rows that see 8, so 192 keys for 25.
    blocks = sum(4 * 576 * (192 * count / 32 - 25) * 4096 for count in KEPT_24)
    assert found == pytest.approx(formula + keys + blocks, rel=1e-12)


def test_without_visual_tokens_all_work_is_done() -> None:
    stage = Stage("segment_0", "segment", "", (), (), (), layers=(2, 5))

    found = structured_flops(SEVEN, released(KEPT_16, 4), GRID, (2, 3, 4), PrefillRows(0, 1, 700))

    assert found == segment_flops(SEVEN, stage, tokens=1, past=700)


def test_a_structure_that_spares_nothing_is_the_whole_model() -> None:
    stage = Stage("segment_0", "segment", "", (), (), (), layers=(0, 2))

    found = structured_flops(SEVEN, Structure(), GRID, (0, 1), PrefillRows(576, 64, 10))

    assert found == segment_flops(SEVEN, stage, tokens=640, past=10)

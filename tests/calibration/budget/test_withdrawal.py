"""Where all visual tokens may leave; the divergence is a formula here, so that it is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atp_calibration.budget.withdrawal import find_withdrawal, withdrawn_before
from atp_runtime.errors import CheckFailedError
from atp_runtime.pruning_point import PruningPoint

LAYERS = (2, 5, 9, 14)


class Falling:
    """A divergence that is smaller the later the tokens leave; counts how often it is asked."""

    def __init__(self, at: dict[int, float]) -> None:
        self._at = at
        self.asked: list[int] = []

    def __call__(self, points: Sequence[PruningPoint]) -> float:
        leaving = next(point.before_layer for point in points if point.rule == "keep_none")
        self.asked.append(leaving)
        return self._at[leaving]


AT = dict(zip(LAYERS, (2.0, 0.3, 0.003, 0.0001), strict=True))


def search(divergence: Falling, limit: float, journal: Path) -> int:
    return find_withdrawal(LAYERS, divergence, limit, journal, lambda *_: None)


@given(st.sampled_from(LAYERS))
def test_nothing_leaves_before_and_everything_from_a_layer_on(layer: int) -> None:
    points = withdrawn_before(LAYERS, layer)
    assert [point.before_layer for point in points] == list(LAYERS)
    assert all((point.rule == "keep_none") == (point.before_layer >= layer) for point in points)


@pytest.mark.parametrize(("limit", "layer"), [(5.0, 2), (0.3, 5), (0.003, 9), (0.002, 14)])
def test_the_first_layer_within_the_limit_is_found(
    limit: float, layer: int, tmp_path: Path
) -> None:
    divergence = Falling(AT)
    assert search(divergence, limit, tmp_path / "log") == layer
    assert divergence.asked == [it for it in LAYERS if it <= layer]


def test_layers_that_were_asked_are_not_asked_again(tmp_path: Path) -> None:
    search(Falling(AT), 0.3, tmp_path / "log")
    again = Falling(AT)
    assert search(again, 0.002, tmp_path / "log") == 14
    assert again.asked == [9, 14]


def test_the_nearest_is_told_where_none_is_within_the_limit(tmp_path: Path) -> None:
    with pytest.raises(CheckFailedError, match="within a divergence of 1e-06") as failed:
        search(Falling(AT), 1e-6, tmp_path / "log")
    assert "before layer 14 it is 0.0001" in (failed.value.why or "")

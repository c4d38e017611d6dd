"""What deadlines and budgets ask of the rules: limits, and thresholds that are shifted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atp_runtime.atp import FEATURES, HIDDEN, AtpWeights
from atp_runtime.errors import InputError
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import PointSelector, Selection, VisualTokens

SIDE = 8


def module() -> AtpWeights:
    random = np.random.default_rng(1)
    shapes = {"shared": (HIDDEN, FEATURES), "redundancy": (1, HIDDEN), "spatial": (1, HIDDEN)}
    tensors = {
        f"{name}.{part}": (random.normal(size=size) * 0.2).astype(np.float32)
        for name, shape in shapes.items()
        for part, size in (("weight", shape), ("bias", shape[:1]))
    }
    return AtpWeights.from_tensors(tensors, "")


def select(
    parameters: dict[str, Any], seed: int = 0, *, rule: str = "atp", images: int = 1, **more: Any
) -> Selection:
    random = np.random.default_rng(seed)
    tokens = SIDE * SIDE * images
    scores = [random.normal(size=tokens).astype(np.float32) for _ in range(2)]
    number, patch = np.divmod(np.arange(tokens), SIDE * SIDE)
    visual = VisualTokens(np.arange(tokens), number, *np.divmod(patch, SIDE))
    selector = PointSelector(PruningPoint(4, rule, parameters, "m"), {"m": module()})
    return selector(*scores, True, visual, **more)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 50),
    st.floats(-8, 8),
    st.floats(0, 8),
    st.sampled_from(("redundancy", "spatial")),
)
def test_a_higher_offset_keeps_a_part_of_what_a_lower_one_keeps(
    seed: int, offset: float, more: float, name: str
) -> None:
    parameter = f"{name}_offset"
    lower, higher = (select({parameter: it}, seed).kept for it in (offset, offset + more))
    assert not (higher & ~lower).any()


def test_an_offset_is_added_to_the_argument_of_its_sigmoid() -> None:
    measured = [
        select(parameters).diagnostics[0]
        for parameters in ({}, {"redundancy_offset": 1.5, "spatial_offset": -0.5})
    ]
    for name, offset in (("theta_r", 1.5), ("theta_s", -0.5)):
        before, after = (np.log(it[name] / (1 - it[name])) for it in measured)
        assert after - before == pytest.approx(offset)


@pytest.mark.parametrize("name", ["redundancy_offset", "spatial_offset"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_offset_that_is_no_number_is_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        select({name: value})


@settings(max_examples=60, deadline=None)
@given(
    keep=st.integers(0, 70),
    least=st.integers(0, 70),
    allowed=st.integers(-5, 300),
    images=st.integers(1, 4),
)
def test_a_limit_takes_away_the_worst_and_never_goes_below_the_fewest(
    keep: int, least: int, allowed: int, images: int
) -> None:
    parameters = {"keep": keep, "min_keep": least}
    free = select(parameters, rule="top_k", images=images)
    asked: list[tuple[int, int]] = []

    def limit(wanted: int, fewest: int) -> int:
        asked.append((wanted, fewest))
        return allowed

    held = select(parameters, rule="top_k", images=images, limit=limit)
    ((wanted, fewest),) = asked
    assert wanted == free.kept.sum()
    assert fewest == images * min(max(least, 1), max(min(keep, 64), min(least, 64)))
    assert held.kept.sum() == min(max(allowed, fewest), wanted)
    assert not (held.kept & ~free.kept).any()
    for image in held.diagnostics.values():
        assert min(max(least, 1), image["wanted"]) <= image["kept"] <= image["wanted"]


def test_without_images_no_limit_is_asked_for() -> None:
    def limit(_wanted: int, _fewest: int) -> int:
        raise AssertionError("asked")

    nothing, scores = np.arange(0), np.zeros(3, dtype=np.float32)
    selector = PointSelector(PruningPoint(4, "top_k", {"keep": 1}), {})
    visual = VisualTokens(nothing, nothing, nothing, nothing)
    assert len(selector(scores, scores, True, visual, limit).kept) == 0

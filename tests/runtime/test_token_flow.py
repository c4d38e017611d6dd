"""How many tokens enter each segment, routed ones among them."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from atp_runtime.manifest import Stage, TensorSpec
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.tensor_names import ROUTE_WEIGHTS
from atp_runtime.token_flow import tokens_entering

ROUTED = (TensorSpec(ROUTE_WEIGHTS, "float32", ("kept",)),)


def segments(points: list[str | None]) -> list[Stage]:
    """One layer each; behind each one nothing, a point that drops, or one whose tokens return."""
    made: list[Stage] = []
    for layer, (before, behind) in enumerate(pairwise([None, *points])):
        returns = behind == "routes"
        point = PruningPoint(layer + 1, "top_k", {"keep": 1}, returns=returns) if behind else None
        inputs = ROUTED if before == "routes" else ()
        made.append(
            Stage(f"segment_{layer}", "segment", "", (), inputs, (), (layer, layer + 1), point)
        )
    return made


def test_what_skips_a_routed_layer_enters_the_next() -> None:
    stages = segments(["routes", None, "drops", "routes", "routes", None])
    left = {1: 4, 3: 9, 4: 2, 5: 3}
    found = tokens_entering(stages, 16, lambda point, _alive: left[point.before_layer])
    assert found == [16, 4, 16, 9, 2, 3]


@given(st.lists(st.sampled_from([None, "drops", "routes"]), max_size=8), st.integers(0, 64))
def test_a_point_is_asked_with_all_that_reach_it(points: list[str | None], visual: int) -> None:
    asked: list[int] = []

    def half(_point: PruningPoint, alive: int) -> int:
        asked.append(alive)
        return alive // 2

    stages = segments([*points, None])
    found = tokens_entering(stages, visual, half)
    alive, expected = visual, []
    for point in points:
        expected += [alive] if point else []
        alive = alive // 2 if point == "drops" else alive
    assert asked == expected
    assert len(found) == len(stages)
    assert found[0] == visual
    if points and points[-1] != "routes":
        assert found[-1] == alive


def test_the_first_segment_may_be_entered_by_a_part_of_what_reaches_it() -> None:
    stages = segments([None, "routes", None, None])[2:]
    assert tokens_entering(stages, 16.0, lambda _point, alive: alive, first=4.0) == [4.0, 16.0]

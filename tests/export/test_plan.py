from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atp_export.plan import ExportPlan, make_plan, plan_summary
from atp_export.policies import atp_points
from atp_models.architecture import ModelSpec
from atp_models.pruning_config import PruningConfig
from atp_runtime.errors import InputError
from atp_runtime.pruning_point import PruningPoint

# 4 decoder layers, 2048 positions, 16 visual tokens.


def plan_of(
    spec: ModelSpec,
    cut_at: Sequence[int] = (),
    *,
    prunes: bool = True,
    max_tokens: int | None = None,
) -> ExportPlan:
    points = atp_points(PruningConfig(layers=tuple(cut_at))) if prunes and cut_at else ()
    return make_plan(
        spec, points, precision="fp16", dialect="portable", cut_at=cut_at, max_tokens=max_tokens
    )


@given(st.sets(st.integers(1, 3)).map(sorted))
def test_segments_cover_every_layer_once_in_order(spec: ModelSpec, cut_at: list[int]) -> None:
    plan = plan_of(spec, cut_at)
    covered = [layer for segment in plan.segments for layer in range(segment.first, segment.last)]
    assert covered == [0, 1, 2, 3]
    assert [segment.name for segment in plan.segments] == [
        f"segment_{index}" for index in range(len(cut_at) + 1)
    ]


@given(st.sets(st.integers(1, 3), min_size=1).map(sorted))
def test_every_segment_but_the_last_ends_at_a_pruning_point(
    spec: ModelSpec, cut_at: list[int]
) -> None:
    plan = plan_of(spec, cut_at)
    points = [segment.pruning for segment in plan.segments]
    assert [point.before_layer for point in points if point] == cut_at
    assert points[-1] is None
    assert plan.prunes


def test_a_pruning_point_carries_the_rule_its_numbers_and_its_weights(spec: ModelSpec) -> None:
    config = PruningConfig(
        layers=(2, 3), redundancy="cross", lambda_sample=2.0, min_keep=4, max_keep=9
    )
    plan = make_plan(spec, atp_points(config), precision="fp32", dialect="native")
    assert plan.segments[1].pruning == PruningPoint(
        before_layer=3,
        rule="atp",
        parameters={
            "redundancy": "cross",
            "lambda_sample": 2.0,
            "strides": [2, 4, 8],
            "normalisation": "min_max",
            "min_keep": 4,
            "max_keep": 9,
        },
        weights="points.1.",
    )


def test_cuts_without_a_configuration_prune_nothing(spec: ModelSpec) -> None:
    plan = plan_of(spec, (1, 2), prunes=False)
    assert len(plan.segments) == 3
    assert not plan.prunes


LAYER = 2 * sum(
    # FP16, 64 wide, 4 heads of 16, 2 of them of keys: q, o; k, v; gate, up, down; two norms.
    [2 * 64 * 64, 2 * 64 * 32, 3 * 64 * 128, 2 * 64]
)


@given(st.sets(st.integers(1, 3)).map(sorted), st.integers(LAYER, 5 * LAYER))
def test_no_segment_exceeds_the_bytes_it_may_have_and_points_stay_where_they_are(
    spec: ModelSpec, cut_at: list[int], most: int
) -> None:
    points = atp_points(PruningConfig(layers=tuple(cut_at))) if cut_at else ()
    plan = make_plan(spec, points, precision="fp16", dialect="portable", max_segment_bytes=most)
    covered = [layer for segment in plan.segments for layer in range(segment.first, segment.last)]
    assert covered == [0, 1, 2, 3]
    assert max(segment.last - segment.first for segment in plan.segments) * LAYER <= most
    points = [segment.pruning for segment in plan.segments if segment.pruning]
    assert [point.before_layer for point in points] == cut_at
    assert [point.weights for point in points] == [f"points.{n}." for n in range(len(cut_at))]
    needed = sum(-(-length * LAYER // (most // LAYER * LAYER)) for length in lengths(cut_at))
    assert len(plan.segments) == needed


def lengths(cut_at: Sequence[int]) -> list[int]:
    return [last - first for first, last in pairwise([0, *cut_at, 4])]


@given(st.integers(1, 40))
def test_heads_cover_the_vocabulary_once_in_parts_that_devices_can_address(
    spec: ModelSpec, kilobytes: int
) -> None:
    most = LAYER + 1024 * kilobytes
    wide = replace(spec, text=replace(spec.text, vocabulary=5000))
    plan = make_plan(wide, precision="fp16", dialect="portable", max_segment_bytes=most)
    rows = [row for head in plan.heads for row in range(head.first, head.last)]
    assert rows == list(range(5000))
    assert all(head.rows * 64 * 2 <= most for head in plan.heads)
    assert all(head.first * 4 % 256 == 0 for head in plan.heads)
    assert [head.name for head in plan.heads] == [f"head_{n}" for n in range(len(plan.heads))]


def test_a_head_that_fits_is_one(spec: ModelSpec) -> None:
    (head,) = plan_of(spec).heads
    assert (head.name, head.first, head.last) == ("head", 0, 512)


def test_a_limit_below_one_layer_is_refused_with_the_least_there_is(spec: ModelSpec) -> None:
    with pytest.raises(InputError, match=f"--max-segment-bytes {LAYER - 1}") as caught:
        make_plan(spec, precision="fp16", dialect="portable", max_segment_bytes=LAYER - 1)
    assert str(LAYER) in caught.value.fix


def test_no_cut_is_one_segment(spec: ModelSpec) -> None:
    plan = plan_of(spec)
    assert [(segment.first, segment.last) for segment in plan.segments] == [(0, 4)]


@pytest.mark.parametrize("cut_at", [(0,), (4,), (99,), (-1,), (2, 2), (3, 1)])
def test_impossible_cuts_are_refused_with_the_range_there_is(
    spec: ModelSpec, cut_at: tuple[int, ...]
) -> None:
    with pytest.raises(InputError) as caught:
        plan_of(spec, cut_at, prunes=False)
    assert "1 to 3" in caught.value.why


@pytest.mark.parametrize("max_tokens", [0, -5, 2049])
def test_a_length_beyond_the_model_is_refused_with_its_limit(
    spec: ModelSpec, max_tokens: int
) -> None:
    with pytest.raises(InputError, match=f"--max-tokens {max_tokens}") as caught:
        plan_of(spec, max_tokens=max_tokens)
    assert "2048" in caught.value.why


@given(st.integers(1, 2048))
def test_axes_reach_from_a_decode_step_to_the_longest_sequence(
    spec: ModelSpec, max_tokens: int
) -> None:
    axes = plan_of(spec, max_tokens=max_tokens).axes
    assert set(axes) == {"tokens", "kept", "past", "rows", "images"}
    for name in ("tokens", "kept"):
        assert (axes[name].minimum, axes[name].maximum) == (1, max_tokens)
    assert (axes["past"].minimum, axes["past"].maximum) == (0, max_tokens)
    assert axes["rows"].maximum == max_tokens
    assert axes["images"].maximum == max(1, max_tokens // 16)


def test_the_model_decides_the_length_where_nobody_does(spec: ModelSpec) -> None:
    assert plan_of(spec).axes["tokens"].maximum == 2048


def test_the_precision_is_a_dtype_of_weights(spec: ModelSpec) -> None:
    assert plan_of(spec).dtype == torch.float16


def test_summaries_tell_different_plans_apart(spec: ModelSpec) -> None:
    plans = [
        plan_of(spec),
        plan_of(spec, (1,)),
        plan_of(spec, (2,)),
        plan_of(spec, (2,), prunes=False),
        plan_of(spec, max_tokens=100),
        make_plan(spec, precision="fp32", dialect="portable"),
        make_plan(spec, precision="fp16", dialect="native"),
    ]
    summaries = [plan_summary(plan) for plan in plans]
    assert all(a != b for i, a in enumerate(summaries) for b in summaries[:i])
    assert plan_summary(plan_of(spec, (1,))) == summaries[1]

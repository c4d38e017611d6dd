"""Rates that are searched for; the objective is a formula here, so that its best is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.calibration.budget.conftest import Opened

from atp_calibration.budget.cost import Cost, Size
from atp_calibration.budget.divergence import FirstTokenDivergence
from atp_calibration.budget.prompts import Prompts
from atp_calibration.budget.search import METHODS, RateSearch, SearchOptions
from atp_calibration.budget.target import TOKENS, Target
from atp_calibration.samples import Sample
from atp_runtime.errors import CheckFailedError
from atp_runtime.manifest import Manifest, read_manifest
from atp_runtime.pruning_point import LAST, TEXT, PruningPoint

SIZES = (Size(1, 10),)
BUDGET = Target(TOKENS, 38.0)


@pytest.fixture(scope="module")
def manifest(atp_bundle: Path) -> Manifest:
    return read_manifest(atp_bundle)


def kept(points: Sequence[PruningPoint]) -> list[int]:
    return [int(point.parameters["keep"]) for point in points]


def likes(*wanted: int) -> object:
    """An objective that is the smaller the nearer the counts are to those wanted."""

    def divergence(points: Sequence[PruningPoint]) -> float:
        return float(sum(abs(a - b) for a, b in zip(kept(points), wanted, strict=True)))

    return divergence


def search_of(manifest: Manifest, divergence: object, target: Target = BUDGET) -> RateSearch:
    return RateSearch(manifest, SIZES, target, Cost(manifest, target, None), divergence)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_a_search_finds_better_rates_than_equal_factors(
    method: str, manifest: Manifest, tmp_path: Path
) -> None:
    # 2 layers of 64, 1 of the first count, 2 of the second: 42 and 10 are on budget.
    search = search_of(manifest, likes(42, 10))
    rates = search.search(SearchOptions(method, 25), tmp_path / "log", lambda *_: None)
    points = search.points(rates)
    even = search.points(search.to_budget(lambda factor: (factor, factor**2)))
    assert likes(42, 10)(points) < likes(42, 10)(even)  # type: ignore[operator]
    assert all(point.rule == "top_k" for point in points)
    assert all(point.parameters["min_keep"] == 2 for point in points)


def test_whom_a_point_asks_and_what_the_graph_behind_it_takes_stay(manifest: Manifest) -> None:
    asks, merges = {"queries": LAST}, {"merges": True}
    changed = iter((asks, merges))
    stages = tuple(
        replace(it, pruning=replace(it.pruning, **next(changed))) if it.pruning else it
        for it in manifest.stages
    )
    search = search_of(replace(manifest, stages=stages), likes(0, 0))
    first, second = search.points((0.5, 0.5))
    assert (first.queries, first.merges) == (LAST, False)
    assert (second.queries, second.merges) == (TEXT, True)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.05, 1.0), st.floats(28.0, 63.0))
def test_rates_never_rise_and_stay_within_the_budget(
    manifest: Manifest, first: float, tokens: float
) -> None:
    search = search_of(manifest, likes(0, 0), Target(TOKENS, tokens))
    rates = search.to_budget(lambda factor: (first * factor, first * factor**2))
    counts = kept(search.points(rates))
    assert counts == sorted(counts, reverse=True)
    assert Cost(manifest, Target(TOKENS, tokens), None)(SIZES[0], counts) <= tokens


def test_an_interrupted_search_goes_on_behind_the_last_trial(
    manifest: Manifest, tmp_path: Path
) -> None:
    asked = 0

    def divergence(points: Sequence[PruningPoint]) -> float:
        nonlocal asked
        asked += 1
        if asked == 4:
            raise KeyboardInterrupt
        return float(kept(points)[0])

    search = search_of(manifest, divergence)
    with pytest.raises(KeyboardInterrupt):
        search.search(SearchOptions("sigmoid", 6), tmp_path / "log", lambda *_: None)
    told: list[tuple[int, int]] = []
    search.search(SearchOptions("sigmoid", 6), tmp_path / "log", lambda *now: told.append(now))
    assert told == [(4, 6), (5, 6), (6, 6)]
    asked_before = asked
    search.search(SearchOptions("sigmoid", 6), tmp_path / "log", lambda *_: None)
    assert asked == asked_before


def test_a_budget_out_of_reach_is_refused_with_the_nearest(
    manifest: Manifest, tmp_path: Path
) -> None:
    search = search_of(manifest, likes(0, 0), Target(TOKENS, 5.0))
    with pytest.raises(CheckFailedError, match="cannot be met") as refused:
        search.search(SearchOptions("greedy", 2), tmp_path / "log", lambda *_: None)
    assert "26.8 tokens" in refused.value.fix


def test_divergence_is_0_without_pruning_and_above_with_it(
    top_k: Opened, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    divergence = FirstTokenDivergence(Prompts(top_k.session), samples[:4], (2, 3), tmp_path)
    all_, few = (
        [PruningPoint(layer, "top_k", {"keep": keep}) for layer in (2, 3)] for keep in (64, 3)
    )
    assert divergence(all_) == pytest.approx(0, abs=1e-6)
    assert divergence(few) > 1e-6
    assert len(list(tmp_path.iterdir())) == 4

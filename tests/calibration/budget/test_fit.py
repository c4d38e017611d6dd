"""Budgets that are met on samples, by every rule that has something to fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.calibration.budget.conftest import MakeFitter, Opened

from atp_calibration.budget.cost import Cost
from atp_calibration.budget.dials import mean_kept, with_kept
from atp_calibration.budget.fit import TOLERANCE, Fitter
from atp_calibration.budget.passes import PointScores
from atp_calibration.budget.target import P95, SPEEDUP, TOKENS, Target
from atp_calibration.samples import Sample
from atp_runtime.errors import CheckFailedError, InputError
from atp_runtime.generation import GenerationOptions
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import Selectors

TARGETS = [
    Target(TOKENS, 36.0),
    Target(TOKENS, 30.0),
    Target(TOKENS, 40.0, P95),
    Target(SPEEDUP, 1.5),
]


def runtime_tokens(
    opened: Opened, points: tuple[PruningPoint, ...], samples: tuple[Sample, ...]
) -> list[float]:
    """All-layer averages that the runtime itself reports for the samples."""
    session = opened.session
    own, session.model.select = session.model.select, Selectors(points, opened.weights)
    try:
        answers = [
            session.ask(sample.prompt, sample.images(), GenerationOptions(1)) for sample in samples
        ]
    finally:
        session.model.select = own
    return [answer.statistics.mean_visual_tokens or 0.0 for answer in answers]


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("rule", ["atp", "top_k"])
def test_the_samples_meet_the_target(
    rule: str, target: Target, fitter: MakeFitter, request: pytest.FixtureRequest
) -> None:
    fit = fitter(request.getfixturevalue(rule), target)
    found = fit.fit(fit.learnt())
    assert found.cost == pytest.approx(target.cost, rel=TOLERANCE)


@pytest.mark.parametrize("rule", ["atp", "top_k"])
def test_what_was_fitted_is_what_runs(
    rule: str,
    fitter: MakeFitter,
    samples: tuple[Sample, ...],
    request: pytest.FixtureRequest,
) -> None:
    opened = request.getfixturevalue(rule)
    fit = fitter(opened, Target(TOKENS, 34.0))
    found = fit.fit(fit.learnt())
    assert runtime_tokens(opened, found.points, samples) == pytest.approx(found.costs)


def test_the_split_over_the_points_stays_as_it_was(atp: Opened, fitter: MakeFitter) -> None:
    fit = fitter(atp, Target(TOKENS, 32.0))
    learnt = fit.learnt()
    found = fit.fit(learnt)
    shares = [
        [np.mean([kept[point] for kept in it.kept]) for point in (0, 1)] for it in (learnt, found)
    ]
    before, after = (first / second for first, second in shares)
    assert after == pytest.approx(before, rel=0.1)


@pytest.mark.parametrize(("tokens", "nearest"), [(20.0, (2 * 64 + 2 + 2 * 2) / 5), (70.0, 64.0)])
def test_a_budget_out_of_reach_is_refused_with_the_nearest(
    tokens: float, nearest: float, atp: Opened, fitter: MakeFitter
) -> None:
    fit = fitter(atp, Target(TOKENS, tokens))
    with pytest.raises(CheckFailedError, match="cannot be met") as refused:
        fit.fit(fit.learnt())
    assert f"{nearest:.1f} tokens" in refused.value.fix


def test_a_rule_without_numbers_is_refused(top_k: Opened, fitter: MakeFitter) -> None:
    target, manifest = Target(TOKENS, 30.0), top_k.session.model.manifest
    points = [PruningPoint(layer, "keep_all", {}) for layer in (2, 3)]
    fit = Fitter(manifest, points, fitter.passes(top_k), {}, target, Cost(manifest, target, None))
    with pytest.raises(InputError, match="keep_all") as refused:
        fit.fit(fit.learnt())
    assert "--search" in refused.value.fix


def test_an_interrupted_fit_goes_on_where_it_stopped(
    atp: Opened, fitter: MakeFitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, runs = Target(TOKENS, 33.0), 0
    prefill = type(atp.session.model.context).prefill

    def counted(*arguments: object, **named: object) -> object:
        nonlocal runs
        runs += 1
        if runs == 20:
            raise KeyboardInterrupt
        return prefill(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(type(atp.session.model.context), "prefill", counted)
    fit = fitter(atp, target)
    with pytest.raises(KeyboardInterrupt):
        fit.fit(fit.learnt())
    stopped = runs
    again = fitter(atp, target)
    found = again.fit(again.learnt())
    resumed = runs - stopped
    runs = 100
    fitter.directory = fitter.directory.with_name("other")
    whole = fitter(atp, target)
    assert whole.fit(whole.learnt()).points == found.points
    assert stopped - 1 + resumed == runs - 100


def test_a_damaged_file_of_scores_is_made_again(atp: Opened, fitter: MakeFitter) -> None:
    fit = fitter(atp, Target(TOKENS, 33.0))
    before = fit.learnt()
    path = min(fitter.directory.glob("scores-*/3.npz"))
    path.write_bytes(path.read_bytes()[:100])
    assert fit.learnt() == before


@pytest.mark.parametrize("redundancy", ["both", "self", "none"])
def test_atp_is_turned_to_any_count_where_its_thresholds_are_predicted(
    redundancy: str, atp: Opened, fitter: MakeFitter
) -> None:
    scores: list[PointScores] = fitter.passes(atp).scores([], 2)
    point = PruningPoint(2, "atp", {"redundancy": redundancy}, "points.0.")
    previous = 0.0
    for wanted in (4.0, 16.0, 40.0):
        kept = mean_kept(with_kept(point, wanted, atp.weights, scores), atp.weights, scores)
        assert previous <= kept <= wanted
        if redundancy != "none":  # whose grids leave as a whole
            assert kept == pytest.approx(wanted, abs=1)
        previous = kept


def test_the_files_of_a_fit_are_whole_ones_only(atp: Opened, fitter: MakeFitter) -> None:
    fitter(atp, Target(TOKENS, 33.0)).learnt()
    names = {path.suffix for path in Path(fitter.directory).rglob("*") if path.is_file()}
    assert names == {".npz"}

"""A whole budget fit: a new bundle, its reports, and what happens when it is interrupted."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from PIL import Image

from atp_calibration.budget.command import CURVE_PICTURE, CURVE_TABLE, REPORT, fit_budget
from atp_calibration.budget.options import DIVERGENCE, BudgetOptions
from atp_calibration.budget.report import BudgetReport, report_lines
from atp_calibration.budget.target import FIRST_TOKEN, TOKENS
from atp_calibration.derived_bundle import deriving
from atp_calibration.samples import Samples, read_samples
from atp_runtime.bundle import Bundle
from atp_runtime.errors import CheckFailedError, InputError
from atp_runtime.generation import GenerationOptions
from atp_runtime.manifest import read_manifest
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.session import Session


@pytest.fixture(scope="module")
def drawn(questions: Path) -> Samples:
    return read_samples(questions)


def fit(source: Path, out: Path, samples: Samples, options: BudgetOptions) -> BudgetReport:
    request = {"budget": options.request()}
    with deriving(Bundle.open(source), out, "atp-calibrate", request) as new:
        return fit_budget(new, samples, options, threads=1)


def test_the_new_bundle_meets_the_budget_and_tells_what_it_costs(
    atp_bundle: Path, drawn: Samples, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = fit(atp_bundle, out, drawn, BudgetOptions(TOKENS, 36.0))
    with Session.open(out, threads=1) as session:
        answers = [
            session.ask(it.prompt, it.images(), GenerationOptions(1)) for it in drawn.samples
        ]
    tokens = [answer.statistics.mean_visual_tokens or 0 for answer in answers]
    assert fmean(tokens) == pytest.approx(36, rel=0.03)
    rows = list(csv.DictReader((out / CURVE_TABLE).open()))
    labels = {row["label"] for row in rows}
    assert {"unpruned", "bundle", "fitted"} < labels
    (fitted,) = [row for row in rows if row["label"] == "fitted"]
    assert float(fitted["tokens"]) == pytest.approx(fmean(tokens), abs=0.01)
    assert Image.open(out / CURVE_PICTURE).size[0] > 300
    assert json.loads((out / REPORT).read_text())["samples"] == len(drawn)
    assert any("36.0 tokens" in line for line in report_lines(report))


def test_graphs_and_weights_are_those_of_the_source(
    atp_bundle: Path, drawn: Samples, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    fit(atp_bundle, out, drawn, BudgetOptions(TOKENS, 36.0, curve=False))
    before, after = read_manifest(atp_bundle), read_manifest(out)
    assert after.files == before.files
    unpointed = [
        [replace(stage, pruning=None) for stage in manifest.stages] for manifest in (before, after)
    ]
    assert unpointed[0] == unpointed[1]
    assert not (out / CURVE_TABLE).exists()


def test_visual_tokens_leave_where_the_first_answer_token_stays_what_it_was(
    atp_bundle: Path, drawn: Samples, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = fit(atp_bundle, out, drawn, BudgetOptions(DIVERGENCE, 1e6))
    assert [point.rule for point in report.points] == ["keep_none", "keep_none"]
    assert [point.kept for point in report.points] == [0, 0]
    assert {it.label for it in report.curve} == {"unpruned", "bundle", "fitted"}
    # Two of five layers see all 64 tokens.
    assert report.reached == "25.6 tokens"
    assert "within a divergence of 1e+06" in report.method
    with Session.open(out, threads=1) as session:
        answer = session.ask(drawn.samples[0].prompt, drawn.samples[0].images())
    assert answer.statistics.mean_visual_tokens == pytest.approx(25.6)


def test_tokens_that_cannot_leave_are_refused_with_the_nearest_divergence(
    atp_bundle: Path, drawn: Samples, tmp_path: Path
) -> None:
    with pytest.raises(CheckFailedError, match="cannot leave within a divergence of 0") as failed:
        fit(atp_bundle, tmp_path / "out", drawn, BudgetOptions(DIVERGENCE, 0.0))
    assert "--target-divergence" in (failed.value.fix or "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["greedy", "sigmoid"])
def test_a_search_makes_the_rule_top_k(
    method: str, atp_bundle: Path, drawn: Samples, tmp_path: Path
) -> None:
    options = BudgetOptions(TOKENS, 40.0, search=method, trials=4, curve=False)
    report = fit(atp_bundle, tmp_path / "out", drawn, options)
    assert [point.rule for point in report.points] == ["top_k", "top_k"]
    assert report.method == method
    tokens = float(report.reached.removesuffix(" tokens"))
    assert 0.97 * 40 <= tokens <= 40


def test_a_predicted_first_token_comes_in_time(
    top_k_bundle: Path, drawn: Samples, tmp_path: Path
) -> None:
    def reached(value: float) -> float:
        options = BudgetOptions(FIRST_TOKEN, value, device="orin-nano-8gb", curve=False)
        report = fit(top_k_bundle, tmp_path / f"{value}", drawn, options)
        return float(report.reached.removesuffix(" ms")) / 1e3

    with pytest.raises(CheckFailedError) as refused:
        reached(1e-6)
    nearest = float(refused.value.fix.split()[2]) / 1e3
    assert reached(nearest) == pytest.approx(nearest, rel=0.03)


def test_an_interrupted_fit_leaves_no_bundle_and_resumes(
    atp_bundle: Path, drawn: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, options = tmp_path / "out", BudgetOptions(TOKENS, 35.0, curve=False)
    asked = 0

    def interrupted(_self: object, _work: str, _done: int, _total: int) -> None:
        nonlocal asked
        asked += 1
        if asked == 20:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("atp_calibration.budget.progress.BudgetProgress.__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(atp_bundle, out, drawn, options)
    assert not out.exists()
    held = sorted((tmp_path / "out.partial").rglob("*.npz"))
    assert len(held) == 20
    times = [path.stat().st_mtime_ns for path in held]
    with monkeypatch.context() as patched:

        def seen(_self: object, _work: str, _done: int, _total: int) -> None:
            assert [path.stat().st_mtime_ns for path in held] == times

        patched.setattr("atp_calibration.budget.progress.BudgetProgress.__call__", seen)
        fit(atp_bundle, out, drawn, options)
    assert read_manifest(out)
    assert not (tmp_path / "out.partial").exists()


def test_a_bundle_that_prunes_nothing_is_refused(
    atp_bundle: Path, drawn: Samples, tmp_path: Path
) -> None:
    source = Bundle.open(atp_bundle)
    stages = tuple(replace(stage, pruning=None) for stage in source.manifest.stages)
    dense = Bundle(source.root, replace(source.manifest, stages=stages))
    options = BudgetOptions(TOKENS, 36.0)
    with (
        pytest.raises(InputError, match="prunes nothing"),
        deriving(dense, tmp_path / "out", "", {}) as new,
    ):
        fit_budget(new, drawn, options, threads=1)


def test_a_bundle_that_routes_tokens_is_refused(
    routed: Path, drawn: Samples, tmp_path: Path
) -> None:
    with (
        pytest.raises(InputError, match="routes tokens around layer 1"),
        deriving(Bundle.open(routed), tmp_path / "out", "", {}) as new,
    ):
        fit_budget(new, drawn, BudgetOptions(TOKENS, 36.0), threads=1)


def test_an_unknown_device_is_refused_before_any_sample_is_run(
    atp_bundle: Path, drawn: Samples, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="unknown device"):
        fit(atp_bundle, tmp_path / "out", drawn, BudgetOptions(FIRST_TOKEN, 0.4, device="mine"))
    assert not list(tmp_path.rglob("*.npz"))


def test_the_points_of_the_new_manifest_are_those_that_were_reported(
    top_k_bundle: Path, drawn: Samples, tmp_path: Path
) -> None:
    report = fit(top_k_bundle, tmp_path / "out", drawn, BudgetOptions(TOKENS, 36.0, curve=False))
    points = [it.pruning for it in read_manifest(tmp_path / "out").segments if it.pruning]
    told = [PruningPoint(it.before_layer, it.rule, it.parameters) for it in report.points]
    assert points == told

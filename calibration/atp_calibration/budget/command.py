"""Fits the pruning of a bundle in the making to a budget; what `atp-calibrate` calls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TextIO

from atp_calibration.budget.cost import Cost, Size
from atp_calibration.budget.curve import CurvePoint, curve_csv, draw_curve
from atp_calibration.budget.dials import is_fittable
from atp_calibration.budget.divergence import FirstTokenDivergence
from atp_calibration.budget.fit import Fit, Fitter
from atp_calibration.budget.options import DIVERGENCE, BudgetOptions
from atp_calibration.budget.passes import Passes
from atp_calibration.budget.progress import BudgetProgress
from atp_calibration.budget.prompts import Prompts
from atp_calibration.budget.report import BudgetReport, budget_report, report_lines
from atp_calibration.budget.scoring import Scoring, unpruned_points
from atp_calibration.budget.search import RateSearch, SearchOptions
from atp_calibration.budget.target import FIRST_TOKEN, SPEEDUP, TOKENS, Target
from atp_calibration.budget.withdrawal import find_withdrawal, withdrawn_before
from atp_calibration.derived_bundle import DerivedBundle
from atp_calibration.samples import Samples
from atp_runtime.atp import load_pruning_weights
from atp_runtime.backends import BACKENDS, open_backend
from atp_runtime.errors import InputError
from atp_runtime.latency.device import read_device
from atp_runtime.latency.model import Latency
from atp_runtime.latency.predictor import PredictedLatency
from atp_runtime.latency.table import MeasuredLatency, read_table
from atp_runtime.manifest import Manifest
from atp_runtime.picture import save_picture
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.schema import to_json
from atp_runtime.session import Session

REPORT, CURVE_TABLE, CURVE_PICTURE = (
    "reports/budget.json",
    "reports/budget-curve.csv",
    "reports/budget-curve.png",
)
_FACTORS = (2.0, 1.4, 0.7, 0.5)  # of the fitted counts: where else accuracy is measured


def fit_budget(
    new: DerivedBundle,
    samples: Samples,
    options: BudgetOptions,
    *,
    backend: str = BACKENDS[0],
    threads: int | None = None,
    stream: TextIO | None = None,
) -> BudgetReport:
    """Changes the pruning points of a bundle so that the samples meet a budget.

    What the samples score is filed in `new.work`: run again, it goes on where it was interrupted.

    Args:
        new: The bundle in the making, its graphs as they will be.
        samples: What to fit on.
        options: The budget.
        backend: What runs the bundle.
        threads: CPU threads; None lets the backend decide.
        stream: Where to say how far it is; None says nothing.

    Raises:
        InputError: The bundle prunes nothing, its rule has nothing to fit, or an option does not
            fit the bundle.
        CheckFailedError: The budget cannot be met; the message has the nearest that can.
        MachineError: Memory does not suffice, or Optuna is missing.
    """
    manifest = new.manifest
    target = _target(options)
    points = _points(manifest)
    bundle = new.staged()
    latency = _latency(options, bundle.manifest)
    progress = BudgetProgress(stream)
    try:
        with Session(bundle, open_backend(backend, threads=threads)) as session:
            work = _Work(new, session, samples, target, latency, progress)
            before = work.fitter(points).learnt()
            after = work.fitted(options, before)
            if options.kind == DIVERGENCE:
                target = replace(target, value=after.cost)
            curve = work.curve(before, after) if options.curve else ()
    finally:
        progress.end()
    _publish(new, after.points)
    report = budget_report(
        target,
        before,
        after,
        method=_method(options),
        device=_device(options),
        score_name=work.score_name,
        curve=curve,
    )
    _file(new, report)
    if stream:
        print(*report_lines(report), sep="\n", file=stream, flush=True)
    return report


def _file(new: DerivedBundle, report: BudgetReport) -> None:
    new.add_report(REPORT, json.dumps(to_json(report), indent=2) + "\n")
    if report.curve:
        new.add_report(CURVE_TABLE, curve_csv(report.curve))
        title = f"{new.source.root.name}: {report.score_name} against budget"
        save_picture(draw_curve(report.curve, title, report.score_name), new.root / CURVE_PICTURE)


class _Work:
    """One session's worth of fitting."""

    def __init__(
        self,
        new: DerivedBundle,
        session: Session,
        samples: Samples,
        target: Target,
        latency: Latency | None,
        progress: BudgetProgress,
    ) -> None:
        self._manifest = session.model.manifest
        self._samples = samples.samples
        self._target = target
        self._latency = latency
        self._progress = progress
        self._directory = new.work / "budget"
        self._cost = Cost(self._manifest, target, latency)
        weights = self._manifest.pruning_weights
        self._weights = load_pruning_weights(new.root / weights) if weights else {}
        self._prompts = Prompts(session)
        self._passes = Passes(
            self._prompts, self._samples, self._weights, self._directory, progress
        )
        self._scoring = Scoring(
            self._prompts, self._samples, self._weights, self._directory, progress
        )

    @property
    def score_name(self) -> str:
        """What the curve's scores are."""
        return "accuracy" if self._scoring.has_truth else "same answer as unpruned"

    def fitter(self, points: Sequence[PruningPoint]) -> Fitter:
        """A fitter that starts from these points."""
        return Fitter(self._manifest, points, self._passes, self._weights, self._target, self._cost)

    def fitted(self, options: BudgetOptions, before: Fit) -> Fit:
        """The samples with the points that the options ask for."""
        if options.kind == DIVERGENCE:
            return self.fitter(self.withdrawn(options.value)).learnt()
        if options.search:
            return self.fitter(self.searched(options, before)).learnt()
        return self.fitter(before.points).fit(before)

    def withdrawn(self, limit: float) -> tuple[PruningPoint, ...]:
        """The points that let all tokens leave as early as a divergence allows."""
        layer = find_withdrawal(
            self._layers,
            self._divergence(),
            limit,
            self._directory / "withdrawal.json",
            lambda done, total: self._progress("layers", done, total),
        )
        return withdrawn_before(self._layers, layer)

    @property
    def _layers(self) -> list[int]:
        return [point.before_layer for point in _points(self._manifest)]

    def _divergence(self) -> FirstTokenDivergence:
        return FirstTokenDivergence(
            self._prompts, self._samples, self._layers, self._directory / "unpruned"
        )

    def searched(self, options: BudgetOptions, before: Fit) -> tuple[PruningPoint, ...]:
        """The points with the best rates that a search finds."""
        divergence = self._divergence()
        search = RateSearch(self._manifest, before.sizes, self._target, self._cost, divergence)
        assert options.search is not None  # noqa: S101 - asked only then
        rates = search.search(
            SearchOptions(options.search, options.trials),
            self._directory / f"search-{options.search}.log",
            lambda done, total: self._progress("trials", done, total),
        )
        return search.points(rates)

    def curve(self, before: Fit, after: Fit) -> tuple[CurvePoint, ...]:
        """Accuracy unpruned, as before, as fitted, and around that."""
        fitter = self.fitter(after.points)
        visual = self._manifest.vision.most_tokens
        everything = replace(
            after,
            points=unpruned_points(self._manifest),
            kept=tuple((size.images * visual,) * len(after.points) for size in after.sizes),
        )
        fits = {"unpruned": everything, "bundle": before, "fitted": after}
        for factor in _FACTORS if is_fittable(after.points) else ():
            fits[f"x {factor:g}"] = fitter.scaled(after, factor)
        return tuple(self._curve_point(label, fit) for label, fit in fits.items())

    def _curve_point(self, label: str, fit: Fit) -> CurvePoint:
        score = self._scoring.of(fit.points)
        times = self._mean(Target(FIRST_TOKEN, 1.0), fit) if self._latency else None
        return CurvePoint(
            label,
            tokens=self._mean(Target(TOKENS, 1.0), fit),
            speedup=1 / self._mean(Target(SPEEDUP, 2.0), fit),
            first_token_ms=None if times is None else 1e3 * times,
            score=score.mean,
            low=score.low,
            high=score.high,
        )

    def _mean(self, target: Target, fit: Fit) -> float:
        cost = Cost(self._manifest, target, self._latency)
        pairs: zip[tuple[Size, tuple[int, ...]]] = zip(fit.sizes, fit.kept, strict=True)
        return target.of([cost(size, kept) for size, kept in pairs])


def _target(options: BudgetOptions) -> Target:
    if options.kind == DIVERGENCE:
        # How many tokens that leaves is not wanted but found.
        return Target(TOKENS, 1.0, options.statistic)
    return Target(options.kind, options.value, options.statistic)


def _method(options: BudgetOptions) -> str:
    if options.kind == DIVERGENCE:
        return f"all tokens leave within a divergence of {options.value:g}"
    return options.search or "fit"


def _points(manifest: Manifest) -> tuple[PruningPoint, ...]:
    points = tuple(stage.pruning for stage in manifest.segments if stage.pruning)
    if not points:
        raise InputError(
            "the bundle prunes nothing",
            why="there is no pruning point whose budget could be set.",
            fix="export the checkpoint without --dense, or with --prune-at.",
        )
    routed = next((point.before_layer for point in points if point.returns), None)
    if routed is not None:
        raise InputError(
            f"a budget for a bundle that routes tokens around layer {routed}",
            why="the decoder was trained with the share that goes through.",
            fix="train with another share, or export with a policy that drops tokens.",
        )
    return points


def _latency(options: BudgetOptions, manifest: Manifest) -> Latency | None:
    if options.table:
        return MeasuredLatency(read_table(options.table, manifest))
    return PredictedLatency(manifest, read_device(options.device)) if options.device else None


def _device(options: BudgetOptions) -> str | None:
    if options.table:
        return f"measured: {options.table.name}"
    return f"predicted: {options.device}" if options.device else None


def _publish(new: DerivedBundle, points: Sequence[PruningPoint]) -> None:
    fitted = {point.before_layer: point for point in points}
    new.update(
        stages=tuple(
            replace(stage, pruning=fitted[stage.pruning.before_layer]) if stage.pruning else stage
            for stage in new.manifest.stages
        )
    )

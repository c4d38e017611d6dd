"""Fits the parameters of all pruning points to a target.

How the tokens are spread over the points stays as it was learned: the mean counts that the bundle
keeps now are scaled by one factor, and point by point, each seeing what those before it leave, the
rule is turned until its mean count is the scaled one. The factor itself is found from what the
samples then cost, so that percentiles and times are met as well as averages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atp_calibration.budget.cost import Cost, Size
from atp_calibration.budget.dials import Weights, check_fittable, kept_tokens, with_kept
from atp_calibration.budget.passes import Passes
from atp_calibration.budget.target import Target
from atp_runtime.errors import CheckFailedError
from atp_runtime.manifest import Manifest
from atp_runtime.pruning_point import PruningPoint

TOLERANCE = 0.03
"""How far from a target a fit may end, as a share of it."""

_CLOSE = 0.003  # how near is near enough to stop
_ROUNDS = 8
_STEPS = 60


@dataclass(frozen=True)
class Fit:
    """Points with parameters, and what they make of the samples.

    Attributes:
        points: In order.
        sizes: Of the samples.
        kept: Per sample, the tokens of all images behind each point.
        costs: Per sample, in the target's terms.
        cost: Their statistic.
    """

    points: tuple[PruningPoint, ...]
    sizes: tuple[Size, ...]
    kept: tuple[tuple[int, ...], ...]
    costs: tuple[float, ...]
    cost: float


class Fitter:
    """Fits a bundle's points on recorded scores.

    Args:
        manifest: The bundle's.
        points: Its pruning points, or others in their places.
        passes: Records the samples.
        weights: The bundle's ATP modules.
        target: What is to be met.
        cost: What a sample costs.
    """

    def __init__(
        self,
        manifest: Manifest,
        points: Sequence[PruningPoint],
        passes: Passes,
        weights: Weights,
        target: Target,
        cost: Cost,
    ) -> None:
        self._manifest = manifest
        self._points = tuple(points)
        self._passes = passes
        self._weights = weights
        self._target = target
        self._cost = cost

    def learnt(self) -> Fit:
        """What the samples cost with the points as they are."""
        return self._run(None)

    def scaled(self, learnt: Fit, factor: float) -> Fit:
        """The points fitted to `factor` times the mean counts of `learnt`.

        Raises:
            InputError: A point's rule has nothing to fit.
        """
        for point in self._points:
            check_fittable(point)
        return self._run(self._plan(learnt, factor))

    def fit(self, learnt: Fit) -> Fit:
        """The points fitted to the target.

        Args:
            learnt: What the bundle keeps now.

        Raises:
            InputError: A point's rule has nothing to fit.
            CheckFailedError: The budget cannot be met; the message has the nearest that can.
        """
        self._check_reachable(learnt)
        factor = self._factor_for(learnt, self._target.cost)
        best, low, high = None, 0.0, float("inf")
        for _ in range(_ROUNDS):
            fit = self.scaled(learnt, factor)
            if best is None or self._miss(fit) < self._miss(best):
                best = fit
            if self._miss(best) <= _CLOSE:
                break
            # Less is kept with a smaller factor, so the right one lies between the ends.
            low, high = (factor, high) if fit.cost < self._target.cost else (low, factor)
            factor = self._next_factor(learnt, fit, factor, low, high)
        assert best is not None  # noqa: S101 - there is at least one round
        if self._miss(best) > TOLERANCE:
            raise self._unreachable(best.cost, "the rule's counts jump past it on these samples.")
        return best

    def _run(self, plan: Sequence[float] | None) -> Fit:
        done: list[PruningPoint] = []
        columns: list[list[int]] = []
        sizes: tuple[Size, ...] = ()
        for number, point in enumerate(self._points):
            scores = self._passes.scores(done, point.before_layer)
            fitted = with_kept(point, plan[number], self._weights, scores) if plan else point
            columns.append([sum(it) for it in kept_tokens(fitted, self._weights, scores)])
            sizes = tuple(it.size for it in scores)
            done.append(fitted)
        kept = tuple(zip(*columns, strict=True))
        costs = tuple(self._cost(size, it) for size, it in zip(sizes, kept, strict=True))
        return Fit(tuple(done), sizes, kept, costs, self._target.of(costs))

    def _miss(self, fit: Fit) -> float:
        return abs(fit.cost / self._target.cost - 1)

    def _plan(self, learnt: Fit, factor: float) -> list[float]:
        """Tokens to keep of an image at each point: what is kept now, times the factor."""
        images = sum(size.images for size in learnt.sizes)
        tokens, plan = float(self._manifest.vision.most_tokens), []
        for number, point in enumerate(learnt.points):
            # A point that keeps nothing now must still be able to keep all.
            mean = max(sum(kept[number] for kept in learnt.kept) / images, 1.0)
            tokens = min(max(mean * factor, float(point.parameters.get("min_keep", 0))), tokens)
            plan.append(tokens)
        return plan

    def _planned_cost(self, learnt: Fit, factor: float) -> float:
        """The target's statistic if every image kept exactly what is planned."""
        plan = self._plan(learnt, factor)
        return self._target.of(
            [self._cost(size, [size.images * tokens for tokens in plan]) for size in learnt.sizes]
        )

    def _next_factor(self, learnt: Fit, fit: Fit, factor: float, low: float, high: float) -> float:
        """Plans for less, or more, by as much as the fit went past the target."""
        planned = self._planned_cost(learnt, factor) * self._target.cost / fit.cost
        wanted = self._factor_for(learnt, planned)
        if low < wanted < high:
            return wanted
        return (low + high) / 2 if high < float("inf") else 2 * factor

    def _factor_for(self, learnt: Fit, cost: float) -> float:
        low, high = 0.0, float(self._manifest.vision.most_tokens)
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (
                (middle, high) if self._planned_cost(learnt, middle) < cost else (low, middle)
            )
        return high

    def _check_reachable(self, learnt: Fit) -> None:
        everything = float(self._manifest.vision.most_tokens)
        least, most = self._planned_cost(learnt, 0.0), self._planned_cost(learnt, everything)
        if self._target.cost < least * (1 - _CLOSE):
            why = "with the fewest tokens at every point it still needs more."
            raise self._unreachable(least, why)
        if self._target.cost > most * (1 + _CLOSE):
            raise self._unreachable(most, "without any pruning it needs less.")

    def _unreachable(self, nearest: float, why: str) -> CheckFailedError:
        return CheckFailedError(
            f"the budget cannot be met: {self._target}",
            why=why,
            fix=f"ask for {self._target.shown(nearest)}, the nearest that can.",
        )

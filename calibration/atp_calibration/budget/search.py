"""Keep rates per pruning point, searched for: G-Search and P-Sigmoid (arXiv 2412.00556).

Both look for rates that never rise from layer to layer, r_l <= r_(l-1), keep the best r_l of an
image's tokens by score, and ask samples. Reconstructed: the objective here is the Kullback-Leibler
divergence of the first answer token's distribution from the unpruned model's, which needs no
answers, and every trial meets the budget exactly, so trials differ in where tokens are spent only.

* greedy (G-Search): one point after another; those behind fall by equal factors to the budget.
* sigmoid (P-Sigmoid): r(x) = c / (1 + exp(k (x - x0))) over the depth x from 0 to 1; k and x0 are
  searched for, c meets the budget.

Optuna proposes and files the trials; a search that was interrupted goes on behind the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atp_calibration.budget.cost import Cost, Size
from atp_calibration.budget.fit import TOLERANCE
from atp_calibration.budget.target import Target
from atp_runtime.errors import CheckFailedError, MachineError
from atp_runtime.manifest import Manifest
from atp_runtime.pruning_point import PruningPoint

if TYPE_CHECKING:
    import optuna

GREEDY, SIGMOID = "greedy", "sigmoid"
METHODS = (GREEDY, SIGMOID)
_STEPS = 60
_STEEPEST = 30.0

Rates = tuple[float, ...]
Divergence = Callable[[Sequence[PruningPoint]], float]
"""How far the samples' first tokens are from the unpruned model's with these points."""


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Attributes:
        method: One of `METHODS`.
        trials: In all.
        seed: Of the proposals.
    """

    method: str
    trials: int
    seed: int = 0


class RateSearch:
    """Looks for the rates of a bundle's points.

    Args:
        manifest: The bundle's.
        sizes: Of the samples.
        target: The budget.
        cost: What a sample costs.
        divergence: What is to be small.
    """

    def __init__(
        self,
        manifest: Manifest,
        sizes: Sequence[Size],
        target: Target,
        cost: Cost,
        divergence: Divergence,
    ) -> None:
        self._manifest = manifest
        self._sizes = sizes
        self._target = target
        self._cost = cost
        self._divergence = divergence
        self._points = tuple(it.pruning for it in manifest.segments if it.pruning)

    def points(self, rates: Rates) -> tuple[PruningPoint, ...]:
        """Top-k points that keep these shares of an image's tokens."""
        return tuple(map(self._top_k, self._points, self._counts(rates)))

    def search(
        self, options: SearchOptions, journal: Path, told: Callable[[int, int], None]
    ) -> Rates:
        """The best rates found.

        Args:
            options: How to search.
            journal: Where the trials are filed.
            told: How many trials are done, and how many there will be.

        Raises:
            CheckFailedError: The budget cannot be met.
            MachineError: Optuna is not installed.
        """
        self._check_reachable()
        trials = _Trials(options, journal, told)
        if options.method == SIGMOID:
            return self._sigmoid(trials, options.trials)
        return self._greedy(trials, options.trials)

    def to_budget(self, shape: Callable[[float], Rates]) -> Rates:
        """The most generous of a family of rates that stays within the budget.

        Args:
            shape: Rates that rise with its argument, from 0 to 1.
        """
        low, high = 0.0, 1.0
        if self._spent(shape(high)) <= self._target.cost:
            return shape(high)
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (
                (middle, high) if self._spent(shape(middle)) <= self._target.cost else (low, middle)
            )
        return shape(low)

    def _sigmoid(self, trials: _Trials, count: int) -> Rates:
        depths = [point.before_layer / self._manifest.text.layers for point in self._points]

        def rates(parameters: dict[str, float]) -> Rates:
            steepness, middle = parameters["steepness"], parameters["middle"]
            curve = [1 / (1 + exp(steepness * (depth - middle))) for depth in depths]
            # c may lift the curve above 1, where all tokens stay.
            return self.to_budget(lambda c: tuple(min(1.0, c / (1 - c + 1e-9) * r) for r in curve))

        def objective(trial: optuna.Trial) -> float:
            steepness = trial.suggest_float("steepness", 0.1, _STEEPEST, log=True)
            middle = trial.suggest_float("middle", 0.0, 1.0)
            return self._asked(rates({"steepness": steepness, "middle": middle}))

        first = {"steepness": 4.0, "middle": 0.3}
        return rates(trials.best("sigmoid", objective, count, first))

    def _greedy(self, trials: _Trials, count: int) -> Rates:
        chosen: Rates = ()
        free = len(self._points) - 1  # the budget decides on the last one
        for number in range(free):
            share = count // free + (number < count % free)
            chosen = (*chosen, self._next_rate(trials, chosen, max(share, 1)))
        return self._completed(chosen)

    def _next_rate(self, trials: _Trials, chosen: Rates, count: int) -> float:
        def objective(trial: optuna.Trial) -> float:
            import optuna  # noqa: PLC0415 - an optional package

            rate = trial.suggest_float("rate", 0.0, chosen[-1] if chosen else 1.0)
            rates = self._completed((*chosen, rate))
            # So high a rate that there is nothing left to spend, or so low that it cannot be.
            if not self._on_budget(rates):
                raise optuna.TrialPruned
            return self._asked(rates)

        even = self._completed(chosen)[len(chosen)]
        return trials.best(f"greedy-{len(chosen)}", objective, count, {"rate": even})["rate"]

    def _completed(self, first: Rates) -> Rates:
        """Rates that begin with `first` and fall by equal factors to the budget."""
        return self.to_budget(lambda factor: self._falling(first, factor))

    def _falling(self, first: Rates, factor: float) -> Rates:
        """Rates that begin with `first` and then fall by a factor from point to point."""
        rates = list(first)
        while len(rates) < len(self._points):
            rates.append((rates[-1] if rates else 1.0) * factor)
        return tuple(rates)

    def _asked(self, rates: Rates) -> float:
        return self._divergence(self.points(rates))

    def _spent(self, rates: Rates) -> float:
        counts = self._counts(rates)
        return self._target.of(
            [self._cost(it, [it.images * count for count in counts]) for it in self._sizes]
        )

    def _on_budget(self, rates: Rates) -> bool:
        return -TOLERANCE <= self._spent(rates) / self._target.cost - 1 <= 0

    def _counts(self, rates: Rates) -> list[int]:
        tokens = self._manifest.vision.most_tokens
        least = [int(point.parameters.get("min_keep", 0)) for point in self._points]
        return [max(int(r * tokens + 0.5), few) for r, few in zip(rates, least, strict=True)]

    def _top_k(self, point: PruningPoint, count: int) -> PruningPoint:
        held = point.parameters if point.rule == "top_k" else {}
        parameters = {"score": held.get("score", "mean"), "keep": count}
        if "min_keep" in point.parameters:
            parameters["min_keep"] = point.parameters["min_keep"]
        # Whom the scorer asks and what the graph behind it takes stay as they were exported.
        return replace(point, rule="top_k", parameters=parameters, weights=None)

    def _check_reachable(self) -> None:
        least = self._spent((0.0,) * len(self._points))
        if least > self._target.cost:
            raise CheckFailedError(
                f"the budget cannot be met: {self._target}",
                why="with the fewest tokens at every point it still needs more.",
                fix=f"ask for {self._target.shown(least)}, the nearest that can.",
            )


class _Trials:
    """Studies of Optuna in one journal."""

    def __init__(
        self, options: SearchOptions, journal: Path, told: Callable[[int, int], None]
    ) -> None:
        self._options = options
        self._journal = journal
        self._told = told
        self._done = 0

    def best(
        self,
        name: str,
        objective: Callable[[optuna.Trial], float],
        count: int,
        first: dict[str, float],
    ) -> dict[str, float]:
        """The parameters of the best of `count` trials, those of former runs included.

        Args:
            name: Of the study.
            objective: What is to be small.
            count: Trials.
            first: Parameters to try first, and to return if no trial kept to the budget.
        """
        study = self._open(name)
        before = _finished(study)
        if not before:
            study.enqueue_trial(first, skip_if_exists=True)

        def tell(_study: Any, _trial: Any) -> None:
            self._done += 1
            self._told(self._done, self._options.trials)

        self._done += before
        if before < count:
            study.optimize(objective, n_trials=count - before, callbacks=[tell])
        complete = study.get_trials(states=(_state().COMPLETE,))
        return dict(study.best_params) if complete else first

    def _open(self, name: str) -> optuna.Study:
        try:
            import optuna  # noqa: PLC0415 - an optional package
            from optuna.storages.journal import JournalFileBackend  # noqa: PLC0415
        except ImportError as error:
            raise MachineError(
                "the Python package optuna is not installed",
                why="it proposes what a search tries.",
                fix="python -m pip install 'atp-llava[calibrate]'.",
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        backend = JournalFileBackend(str(self._journal))
        storage = optuna.storages.JournalStorage(backend)
        study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
        # Behind an interruption, a sampler of the same seed would propose what was tried.
        study.sampler = optuna.samplers.TPESampler(seed=self._options.seed + len(study.trials))
        return study


def _finished(study: optuna.Study) -> int:
    ended = (_state().COMPLETE, _state().PRUNED)
    return sum(trial.state in ended for trial in study.trials)


def _state() -> Any:
    import optuna  # noqa: PLC0415 - an optional package

    return optuna.trial.TrialState

"""What a parity run found; its JSON form is the bundle's `reports/parity.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from atp_export.parity.measures import Measure, Tolerance

Note = Callable[[str], None]
"""Told what is being compared, a line at a time."""


@dataclass(frozen=True)
class Check:
    """One thing that was compared.

    Attributes:
        name: A stage, "dense" or "pruned".
        scope: "stage", fed with the reference's own inputs; or "end to end".
        against: What it was compared with.
        detail: Which prompt or layers, and how many tokens were kept.
        measures: One per tensor and moment.
        passed: Whether there are measures and all passed.
        problem: What kept it from being compared, or None.
        dialect: Of the graphs that were run.
    """

    name: str
    scope: str
    against: str
    detail: str
    measures: tuple[Measure, ...]
    passed: bool
    problem: str | None = None
    dialect: str = ""

    @classmethod
    def of(
        cls, name: str, scope: str, against: str, detail: str, measures: Iterable[Measure]
    ) -> Check:
        """A check with its verdict."""
        made = tuple(measures)
        passed = bool(made) and all(measure.passed for measure in made)
        return cls(name, scope, against, detail, made, passed)

    @classmethod
    def impossible(cls, name: str, scope: str, against: str, problem: str) -> Check:
        """A check that failed before anything could be compared."""
        return cls(name, scope, against, "", (), passed=False, problem=problem)


@dataclass(frozen=True)
class ParityReport:
    """A parity run.

    Attributes:
        mode: "full" or "sampled".
        reason: Why this mode.
        precision: Of the bundle.
        dialects: Of the bundle.
        checks: In the order they were made.
        tolerances: By kind of tensor.
        packages: Versions that computed both sides.
        seconds: Wall time.
        passed: Whether there are checks and all passed.
    """

    mode: str
    reason: str
    precision: str
    dialects: tuple[str, ...]
    checks: tuple[Check, ...]
    tolerances: Mapping[str, Tolerance]
    packages: Mapping[str, str]
    seconds: float
    passed: bool

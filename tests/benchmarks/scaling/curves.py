"""The curves: what is varied, and what is run at each of its values.

Each varies one thing about the same small model of random weights, with LLaVA-1.5's 576 visual
tokens, on ONNX Runtime.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from tests.benchmarks.decoding import TEXT_TOKENS, BundleRunner
from tests.benchmarks.measure import interleaved
from tests.benchmarks.scaling.models import BASE, DENSE, PRUNED, Cut, Model, bundle_of

VISUAL = 576
LATER = 32
"""Tokens after the first whose time is told."""

FIRST, AFTER = "first token", f"{LATER} more tokens"


@dataclass(frozen=True)
class Run:
    """What is timed at a point.

    Attributes:
        model: Which one.
        cut: How its decoder is cut.
        visual: Visual tokens in the prompt.
        text: Text tokens in it.
        kept: Visual tokens that stay from half of the layers on; None keeps all.
        steps: Tokens after the first.
    """

    model: Model = BASE
    cut: Cut = DENSE
    visual: int = VISUAL
    text: int = TEXT_TOKENS
    kept: int | None = None
    steps: int = LATER


@dataclass(frozen=True)
class Curve:
    """Time against one thing.

    Attributes:
        title: Of the chart.
        across: What is varied.
        runs: What to time at each of its values.
    """

    title: str
    across: str
    runs: Mapping[int, Run]


@dataclass(frozen=True)
class Point:
    """Medians at a value.

    Attributes:
        value: Of what is varied.
        first_seconds: From the prompt to the first token's logits.
        later_seconds: Of all the tokens after it.
    """

    value: int
    first_seconds: float
    later_seconds: float


CURVES = {
    "kept": Curve(
        "Time by visual tokens kept",
        "visual tokens kept in the second half of the layers",
        {kept: Run(cut=PRUNED, kept=kept) for kept in (18, 36, 72, 144, 288, 432, 576)},
    ),
    "prompt": Curve(
        "Time by prompt length",
        "tokens in the prompt",
        {n: Run(visual=0, text=n) for n in (64, 128, 256, 384, 512, 640)},
    ),
    "output": Curve(
        "Time by output length",
        "tokens after the first",
        {n: Run(steps=n) for n in (8, 32, 64, 128, 256)},
    ),
    "layers": Curve(
        "Time by layers",
        "layers",
        {n: Run(Model(layers=n)) for n in (4, 8, 12, 16)},
    ),
    "width": Curve(
        "Time by width",
        "channels of the hidden states",
        {n: Run(Model(hidden=n)) for n in (128, 256, 512, 768, 1024)},
    ),
    "segments": Curve(
        "Time by segments, nothing pruned",
        "segments",
        {n: Run(cut=Cut(n)) for n in (1, 2, 4, 8)},
    ),
}


def measure(curve: Curve, rounds: int, told: Callable[[str], None]) -> list[Point]:
    """Runs every point of a curve in every round, by turns."""
    runners: dict[tuple[Model, Cut], BundleRunner] = {}
    for run in curve.runs.values():
        if (run.model, run.cut) not in runners:
            told(f"{curve.title}: {run.model.name}, {run.cut.name}")
            runners[run.model, run.cut] = BundleRunner(bundle_of(run.model, run.cut))
    variants: dict[str, Callable[[], object]] = {}
    for value, run in curve.runs.items():
        runner = runners[run.model, run.cut]
        # A decode step needs its prompt, so each follows its own.
        variants[f"first {value}"] = partial(_first, runner, run)
        variants[f"later {value}"] = partial(runner.decode, run.steps)
    told(f"{curve.title}: measuring")
    times = interleaved(variants, rounds=rounds)
    return [
        Point(
            value,
            statistics.median(times[f"first {value}"]),
            statistics.median(times[f"later {value}"]),
        )
        for value in curve.runs
    ]


def _first(runner: BundleRunner, run: Run) -> None:
    keep = () if run.kept is None else (run.kept,)
    runner.prefill(run.visual, keep, text=run.text)

"""`comparison.json`: what a comparison of policies found, declared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from atp_runtime.evaluation.comparison import ComparedRun
from atp_runtime.evaluation.intervals import Estimate
from atp_runtime.evaluation.report import Machine
from atp_runtime.policies.timing import Times

FORMAT = "atp-policy-comparison"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class PolicyResult:
    """One policy.

    Attributes:
        policy: With its settings.
        score: Of all questions, from 0 to 1.
        kinds: Score of each kind of questions.
        difference: From the first policy's score, paired; None for the first itself.
        visual_tokens: Averaged over all decoder layers and questions; None without images.
        first_token_seconds: From the question to the first token, the median.
        first_token_p90: Likewise, 90 % quantile.
        tokens_per_second: Of the median token after it.
        cache_bytes: Keys and values at the end of an answer, the mean.
        gflops: 1e9 operations up to the first token, the mean.
        quicker: How many times sooner than the first policy's the first token comes.
    """

    policy: str
    score: Estimate
    kinds: Mapping[str, float]
    difference: Estimate | None
    visual_tokens: float | None
    first_token_seconds: float
    first_token_p90: float
    tokens_per_second: float
    cache_bytes: float
    gflops: float
    quicker: float


@dataclass(frozen=True)
class Comparison:
    """All of them.

    Attributes:
        format: `FORMAT`.
        schema_version: `SCHEMA_VERSION`.
        checkpoint: Its directory's name.
        precision: Of the bundles.
        data: The data's name.
        metric: What the score is called.
        asked: Questions that were answered by each policy.
        timed: Answers that were timed of each policy.
        new_tokens: Of each of these.
        backend: What ran the bundles.
        machine: Where.
        results: In the order they were named.
    """

    format: str
    schema_version: int
    checkpoint: str
    precision: str
    data: str
    metric: str
    asked: int
    timed: int
    new_tokens: int
    backend: str
    machine: Machine
    results: tuple[PolicyResult, ...]

    def __post_init__(self) -> None:
        if (self.format, self.schema_version) != (FORMAT, SCHEMA_VERSION):
            raise ValueError(f"{self.format} {self.schema_version}, not {FORMAT} {SCHEMA_VERSION}")
        if not self.results:
            raise ValueError("no results")


def policy_results(
    runs: Mapping[str, ComparedRun], times: Mapping[str, Times]
) -> tuple[PolicyResult, ...]:
    """Puts answers and times together.

    Args:
        runs: By policy, each compared with the first.
        times: Likewise.
    """
    medians = {name: float(np.median(it.first_token)) for name, it in times.items()}
    first = next(iter(medians.values()))
    return tuple(
        _result(name, run, times[name], first / medians[name]) for name, run in runs.items()
    )


def _result(name: str, run: ComparedRun, times: Times, quicker: float) -> PolicyResult:
    median, p90 = np.percentile(times.first_token, [50, 90]).tolist()
    return PolicyResult(
        name,
        run.score,
        run.kinds,
        run.difference.score if run.difference else None,
        run.mean_tokens,
        median,
        p90,
        1 / float(np.median(times.token)),
        times.cache_bytes,
        times.gflops,
        quicker,
    )


def by_kind(results: Sequence[PolicyResult]) -> list[str]:
    """The kinds of questions, sorted."""
    return sorted({kind for result in results for kind in result.kinds})

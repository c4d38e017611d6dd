"""`atp-eval compare`: runs on the same questions, each against the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from atp_runtime.errors import InputError
from atp_runtime.evaluation.accuracy import unit_scores
from atp_runtime.evaluation.answer_log import AnsweredQuestion, read_answers
from atp_runtime.evaluation.intervals import Estimate, mean_difference, mean_score
from atp_runtime.evaluation.markdown import interval, percent, table
from atp_runtime.evaluation.report import Report, read_report


@dataclass(frozen=True)
class ScoredRun:
    """A run, read back.

    Attributes:
        name: Of its directory.
        report: Its report.
        scores: By what counts as one question.
        kinds: Likewise.
    """

    name: str
    report: Report
    scores: Mapping[str, float]
    kinds: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> ScoredRun:
        """Reads a run of which the report, or its directory, was named.

        Raises:
            InputError: Report or answers are not there or damaged, or nothing was scored.
        """
        report = read_report(path)
        directory = (path if path.is_dir() else path.parent).resolve()
        answers = _asked(read_answers(directory), report)
        if not report.accuracy:
            raise InputError(
                f"{path} has no scores",
                why="the right answers were not known.",
                fix="compare runs on data with answers.",
            )
        kinds = {it.group: it.kind for it in answers}
        return cls(directory.name, report, unit_scores(answers), kinds)


@dataclass(frozen=True)
class Difference:
    """How a run differs from the first, over the same questions.

    Attributes:
        score: Its score less the first one's, with the paired 95 % interval.
        better: Questions it scores higher on.
        worse: Questions it scores lower on.
    """

    score: Estimate
    better: int
    worse: int


@dataclass(frozen=True)
class ComparedRun:
    """One line of a comparison.

    Attributes:
        name: The run's.
        select: The rule that pruned.
        mean_tokens: Visual tokens averaged over all layers and questions; None without images.
        count: Questions that count.
        score: Of all questions.
        kinds: Score of each kind.
        difference: From the first run; None for the first itself.
    """

    name: str
    select: str
    mean_tokens: float | None
    count: int
    score: Estimate
    kinds: Mapping[str, float]
    difference: Difference | None


def compare(runs: Sequence[ScoredRun]) -> tuple[ComparedRun, ...]:
    """Compares runs with the first.

    Raises:
        InputError: They are not about the same questions.
    """
    first = runs[0]
    for run in runs[1:]:
        _check_same(first, run)
    return tuple(_compared(run, None if run is first else first) for run in runs)


def write_comparison(runs: Sequence[ComparedRun], metric: str) -> str:
    """The comparison as Markdown.

    Args:
        runs: Compared.
        metric: What the score is called.
    """
    header = ["run", "tokens", metric, "95 % interval", "difference", "95 % interval", "+", "-"]
    overall = table(header, [_row(run) for run in runs])
    note = (
        "Differences are from the first run, in points, over the same questions (paired, normal "
        "approximation); + and - count the questions that score higher and lower."
    )
    kinds = sorted(runs[0].kinds)
    rows = [[kind, *(percent(run.kinds[kind]) for run in runs)] for kind in kinds]
    parts = [overall, note]
    if rows:
        parts.append(table(["kind", *(run.name for run in runs)], rows))
    return "\n\n".join(parts)


def _asked(answers: Sequence[AnsweredQuestion], report: Report) -> list[AnsweredQuestion]:
    if len(answers) != report.asked:
        raise InputError(
            f"{report.asked} questions in a report, {len(answers)} in its answers.jsonl",
            why="they are not of the same run.",
            fix="run atp-eval again in that directory.",
        )
    return list(answers)


def _check_same(first: ScoredRun, run: ScoredRun) -> None:
    reasons = []
    if [it.sha256 for it in first.report.run.data] != [it.sha256 for it in run.report.run.data]:
        reasons.append("the data files differ")
    if first.scores.keys() != run.scores.keys():
        reasons.append(f"{len(first.scores.keys() ^ run.scores.keys())} questions are in one only")
    if reasons:
        raise InputError(
            f"{first.name} and {run.name} are not about the same questions",
            why=f"{' and '.join(reasons)}.",
            fix="run both with the same data, --limit and --seed.",
        )


def _compared(run: ScoredRun, first: ScoredRun | None) -> ComparedRun:
    kinds = sorted(set(run.kinds.values()) - {""})
    tokens = run.report.tokens
    return ComparedRun(
        run.name,
        run.report.run.select,
        tokens.mean.mean if tokens else None,
        len(run.scores),
        mean_score(list(run.scores.values())),
        {kind: _mean_of_kind(run, kind) for kind in kinds},
        _difference(first, run) if first else None,
    )


def _mean_of_kind(run: ScoredRun, kind: str) -> float:
    return mean_score([it for name, it in run.scores.items() if run.kinds[name] == kind]).mean


def _difference(first: ScoredRun, run: ScoredRun) -> Difference:
    differences = [run.scores[name] - score for name, score in first.scores.items()]
    return Difference(
        mean_difference(differences),
        better=sum(it > 0 for it in differences),
        worse=sum(it < 0 for it in differences),
    )


def _row(run: ComparedRun) -> list[str]:
    tokens = "-" if run.mean_tokens is None else f"{run.mean_tokens:.1f}"
    cells = [run.name, tokens, percent(run.score.mean), interval(run.score)]
    if run.difference is None:
        return [*cells, "-", "-", "-", "-"]
    it = run.difference
    counts = [str(it.better), str(it.worse)]
    return [*cells, f"{100 * it.score.mean:+.1f}", _signed(it.score), *counts]


def _signed(estimate: Estimate) -> str:
    return f"{100 * estimate.low:+.1f} to {100 * estimate.high:+.1f}"

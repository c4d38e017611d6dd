"""`report.json`: what a run found and how; declared here, checked when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from atp_runtime.errors import InputError
from atp_runtime.evaluation.answer_log import Run
from atp_runtime.evaluation.intervals import Estimate
from atp_runtime.evaluation.json_files import read_declared

FORMAT = "atp-eval-report"
SCHEMA_VERSION = 1
REPORT_JSON, REPORT_MARKDOWN = "report.json", "report.md"


@dataclass(frozen=True)
class Accuracy:
    """The score of one kind of questions, or of all.

    Attributes:
        kind: "all" for all.
        count: Questions that count, a group of rotated ones as one.
        score: From 0 to 1, with its 95 % interval.
        constant: What always giving the kind's commonest right answer would score; None where
            answers are not right or wrong, or count in groups.
        unread: Answers that could be taken for nothing, such as no option's letter.
    """

    kind: str
    count: int
    score: Estimate
    constant: float | None
    unread: int


@dataclass(frozen=True)
class YesNoScores:
    """How questions with the truth yes or no were answered, "yes" being the positive class.

    Attributes:
        kind: "all" for all.
        count: Questions.
        accuracy: Right ones.
        precision: Of the answers yes, the right ones; None if there was none.
        recall: Of the truths yes, those answered so; None if there was none.
        f1: Harmonic mean of both; None if either is, 0 if both are.
        yes_rate: Of all answers, those that are yes.
        neither: Answers that are neither; they count as yes, as in POPE's own code.
    """

    kind: str
    count: int
    accuracy: float
    precision: float | None
    recall: float | None
    f1: float | None
    yes_rate: float
    neither: int


@dataclass(frozen=True)
class Spread:
    """How a number varies over questions: mean, 10 %, 50 % and 90 % quantile."""

    mean: float
    p10: float
    p50: float
    p90: float


@dataclass(frozen=True)
class PointTokens:
    """Visual tokens that stayed behind a pruning point; or went through a layer that is routed."""

    before_layer: int
    kept: Spread
    returns: bool = False


@dataclass(frozen=True)
class Correlation:
    """Spearman's between the kept tokens (all-layer average) and a numeric field of the data."""

    field: str
    count: int
    rho: float | None


@dataclass(frozen=True)
class Adaptivity:
    """Whether pruning depends on the question: images that several questions are about.

    Attributes:
        images: How many there are.
        differing: Of these, those that kept different numbers of tokens for their questions.
        spread: Largest minus smallest all-layer average of an image, averaged over all of them.
    """

    images: int
    differing: int
    spread: float


@dataclass(frozen=True)
class Tokens:
    """Visual tokens of the questions with images.

    Attributes:
        count: Questions.
        entering: Visual tokens before pruning.
        mean: Averaged over all decoder layers, which is what papers call "tokens".
        points: Behind each pruning point.
        correlations: With the numeric fields of the data.
        adaptivity: None if no image has several questions.
    """

    count: int
    entering: Spread
    mean: Spread
    points: tuple[PointTokens, ...]
    correlations: tuple[Correlation, ...]
    adaptivity: Adaptivity | None


@dataclass(frozen=True)
class Latency:
    """Times of the questions whose image the decoder ran, in milliseconds; for information.

    Attributes:
        count: Questions.
        prefill_mean: Of the decoder's prefill, selection included.
        prefill_median: Likewise.
    """

    count: int
    prefill_mean: float
    prefill_median: float


@dataclass(frozen=True)
class Example:
    """A question that was answered wrongly."""

    id: str
    kind: str
    prompt: str
    truth: str
    answer: str


@dataclass(frozen=True)
class BundleFacts:
    """What was asked: name of its directory, and what its manifest says."""

    name: str
    model: str
    checkpoint: str
    precision: str
    dialect: str
    notice: str | None


@dataclass(frozen=True)
class Machine:
    """Where it ran; times mean nothing without it.

    Attributes:
        processor: Its name.
        processors: Logical ones.
        threads: What was asked for; None for one per core.
        python: Version.
        packages: Versions of what computes.
    """

    processor: str
    processors: int
    threads: int | None
    python: str
    packages: Mapping[str, str]


@dataclass(frozen=True)
class Report:
    """A whole report.

    Attributes:
        format: `FORMAT`.
        schema_version: `SCHEMA_VERSION`.
        run: What was asked of what.
        bundle: The bundle.
        machine: The machine.
        title: The benchmark's.
        metric: What the score is called.
        asked: Questions asked, all rotations counted.
        images: Different images.
        failed: Questions that could not be asked; they count as wrong.
        cut: Answers that `max_new_tokens` cut.
        accuracy: All questions, then kind by kind; empty if the truth is not known.
        yes_no: The same for questions with the truth yes or no; empty if there are none.
        tokens: None if no question has an image.
        latency: None if no question has an image.
        wrong: Some of the wrong answers.
    """

    format: str
    schema_version: int
    run: Run
    bundle: BundleFacts
    machine: Machine
    title: str
    metric: str
    asked: int
    images: int
    failed: int
    cut: int
    accuracy: tuple[Accuracy, ...]
    yes_no: tuple[YesNoScores, ...]
    tokens: Tokens | None
    latency: Latency | None
    wrong: tuple[Example, ...]

    def __post_init__(self) -> None:
        if self.format != FORMAT or self.schema_version != SCHEMA_VERSION:
            found = f"{self.format!r} version {self.schema_version}"
            raise ValueError(f"{found}, not {FORMAT!r} version {SCHEMA_VERSION}")


def read_report(path: Path) -> Report:
    """Reads a report, of which the file or its directory was named.

    Raises:
        InputError: It is not there, damaged, or of another version.
    """
    file = path / REPORT_JSON if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"{file} does not exist",
            why="atp-eval writes it when all questions are answered.",
            fix="run atp-eval to its end; it goes on where it stopped.",
        )
    return read_declared(Report, file, fix="run atp-eval again.")

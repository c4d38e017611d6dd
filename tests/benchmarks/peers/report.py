"""What was measured, as JSON, as a table and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.benchmarks.measure import ratio
from tests.benchmarks.peers.contest import Answer, Case, Contestant, Timed, agreeing
from tests.benchmarks.peers.contestants import OURS
from tests.benchmarks.peers.lineup import Missing

GIB = 2**30
COLUMNS = (
    "who",
    "precision",
    "load, s",
    "first token, s",
    "/ ours",
    "per token, ms",
    "/ ours",
    "tokens/s",
    "peak, GiB",
    "artefact, GiB",
    "agrees",
)


@dataclass(frozen=True)
class Line:
    """A contestant at a case: medians over the rounds.

    Attributes:
        visual: Visual tokens, on average over all layers.
        text: Text tokens.
        name: The contestant's.
        precision: Its weights'.
        pruned_from: Visual tokens in the prompt, where it prunes.
        load_seconds: Until the model could be asked.
        first_token: Seconds.
        first_token_to_ours: That, over this runtime's at the same case, dense; the median of the
            ratios of each round. None if it was not measured.
        token_seconds: Of each later token; None of a tower, which has none.
        token_to_ours: Likewise.
        peak_bytes: Highest resident memory of the process, mapped files included.
        artefact_bytes: Of what it loads for the decoder.
        agrees: How many tokens are those of Transformers in FP32 before one differs.
        agrees_of: Of so many; 0 if that could not be run.
    """

    visual: int
    text: int
    name: str
    precision: str
    pruned_from: int | None
    load_seconds: float
    first_token: float
    first_token_to_ours: float | None
    token_seconds: float | None
    token_to_ours: float | None
    peak_bytes: int
    artefact_bytes: int
    agrees: int
    agrees_of: int


def lines(answers: Mapping[Contestant, Sequence[Answer]], reference: Sequence[int]) -> list[Line]:
    """A line for each contestant at each of its cases, long prompts first.

    Args:
        answers: Of all rounds, by turns.
        reference: What all should have answered to the check; empty if that is not known.
    """
    found = [
        _line(contestant, number, answers, reference)
        for contestant in answers
        for number in range(len(contestant.cases))
    ]
    return sorted(found, key=lambda it: (-it.text, -it.visual))


def document(
    found: Sequence[Line],
    missing: Sequence[Missing],
    answers: Mapping[Contestant, Sequence[Answer]],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """All there is to know, rounds included."""
    return {
        **about,
        "versions": versions(answers),
        "lines": [asdict(it) for it in found],
        "missing": [asdict(it) for it in missing],
        "rounds": [
            {
                "name": contestant.name,
                "precision": contestant.precision,
                "cases": [{"visual": it.visual, "text": it.text} for it in contestant.cases],
                "answers": [asdict(answer) for answer in given],
            }
            for contestant, given in answers.items()
        ],
    }


def versions(answers: Mapping[Contestant, Sequence[Answer]]) -> dict[str, str]:
    """Of all packages that were run; of which contestant where they differ."""
    found = [
        (contestant.name, package, version)
        for contestant, given in answers.items()
        for package, version in given[0].versions.items()
    ]
    held: dict[str, set[str]] = {}
    for _, package, version in found:
        held.setdefault(package, set()).add(version)
    return {
        package if len(held[package]) == 1 else f"{package} of {name}": version
        for name, package, version in found
    }


def sections(found: Sequence[Line]) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """A title and the cells of a table for every prompt."""
    for visual, text in dict.fromkeys((it.visual, it.text) for it in found):
        title = f"{visual} visual and {text} text tokens"
        if not text:
            title = f"Vision tower and projector alone: an image's {visual} tokens"
        here = [it for it in found if (it.visual, it.text) == (visual, text)]
        yield title, [cells(it) for it in here]


def cells(line: Line) -> tuple[str, ...]:
    """Of a row of the table."""
    pruned = f" from {line.pruned_from}" if line.pruned_from else ""
    return (
        line.name + pruned,
        line.precision,
        f"{line.load_seconds:.1f}",
        f"{line.first_token:.2f}",
        _ratio(line.first_token_to_ours),
        f"{1e3 * line.token_seconds:.1f}" if line.token_seconds else "",
        _ratio(line.token_to_ours),
        f"{1 / line.token_seconds:.1f}" if line.token_seconds else "",
        f"{line.peak_bytes / GIB:.2f}",
        f"{line.artefact_bytes / GIB:.2f}",
        f"{line.agrees}/{line.agrees_of}" if line.agrees_of else "?",
    )


def markdown(
    found: Sequence[Line],
    missing: Sequence[Missing],
    about: Mapping[str, Any],
    used: Mapping[str, str],
) -> str:
    """For docs/benchmarks.md, with the command that made it."""
    parts = [f"`{about['command']}`: {about['machine']}, {about['threads']} threads."]
    parts.append(", ".join(f"{name} {version}" for name, version in used.items()) + ".")
    for title, rows in sections(found):
        parts += [f"**{title}**", _table(COLUMNS, rows)]
    if missing:
        rows = [(it.name, it.precision, it.what, it.reason.replace("|", "/")) for it in missing]
        parts += ["Not measured:", _table(("who", "precision", "what", "why"), rows)]
    return "\n\n".join(parts) + "\n"


def _line(
    contestant: Contestant,
    number: int,
    answers: Mapping[Contestant, Sequence[Answer]],
    reference: Sequence[int],
) -> Line:
    case, given = contestant.cases[number], answers[contestant]
    first = [it.timed[number].first_token for it in given]
    later = [_later(it.timed[number]) for it in given]
    ours = _ours(contestant, case, answers)
    return Line(
        case.visual,
        case.text,
        contestant.name,
        contestant.precision,
        len(case.ids) - case.text if case.keep else None,
        statistics.median(it.load_seconds for it in given),
        statistics.median(first),
        ratio(first, [it[0] for it in ours]) if ours else None,
        statistics.median(later) if case.text else None,
        ratio(later, [it[1] for it in ours]) if ours and case.text else None,
        max(it.timed[number].peak_bytes for it in given),
        contestant.artefact_bytes,
        min(agreeing(it.check, reference) for it in given) if reference else 0,
        len(reference),
    )


def _ours(
    contestant: Contestant, case: Case, answers: Mapping[Contestant, Sequence[Answer]]
) -> list[tuple[float, float]]:
    """First and later seconds of this runtime in each round, dense, at the same case."""
    for other, given in answers.items():
        if (other.name, other.precision) != (OURS, contestant.precision):
            continue
        wanted = [(it.visual, it.text) for it in other.cases].index((case.visual, case.text))
        timed = [it.timed[wanted] for it in given]
        return [(it.first_token, _later(it)) for it in timed]
    return []


def _later(timed: Timed) -> float:
    return statistics.median(timed.later) if timed.later else 0.0


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, marks, *rows))

import math
from dataclasses import replace
from pathlib import Path

import pytest

from atp_runtime.errors import InputError
from atp_runtime.evaluation.answer_log import Run, open_log
from atp_runtime.evaluation.comparison import ScoredRun, compare, write_comparison
from atp_runtime.evaluation.formats.registry import FORMATS
from atp_runtime.evaluation.json_files import write_declared
from atp_runtime.evaluation.machine import this_machine
from atp_runtime.evaluation.report import REPORT_JSON
from atp_runtime.evaluation.summary import summarise
from atp_runtime.manifest import read_manifest


@pytest.fixture
def run(this_run: Run, tmp_path: Path, tiny_bundle: Path, answered):
    """Writes a run with these scores, by question; kinds take turns."""

    def write(name: str, scores: dict[str, float], *, tokens: float = 8.0, **changes) -> Path:
        directory, this = tmp_path / name, replace(this_run, **changes)
        answers = [
            answered(
                question,
                score=score,
                kind=("what", "where")[int(question) % 2],
                mean_visual_tokens=tokens,
                kept=(8, 4, 2),
            )
            for question, score in scores.items()
        ]
        with open_log(directory, this, restart=False) as log:
            for it in answers:
                log.add(it)
        facts = (name, read_manifest(tiny_bundle))
        report = summarise(answers, this, FORMATS["llava"], facts, this_machine(None))
        write_declared(directory / REPORT_JSON, report)
        return directory

    return write


def compared(*paths: Path):
    return compare([ScoredRun.read(path) for path in paths])


def test_runs_are_compared_with_the_first_question_by_question(run) -> None:
    first = run("first", {"1": 1.0, "2": 1.0, "3": 0.0, "4": 1.0})
    second = run("second", {"4": 0.0, "3": 1.0, "2": 0.0, "1": 1.0}, tokens=5.0, select="random")
    base, other = compared(first, second)
    assert (base.name, base.score.mean, base.difference) == ("first", 0.75, None)
    assert (other.select, other.mean_tokens, other.score.mean) == ("random", 5, 0.5)
    assert (other.difference.better, other.difference.worse) == (1, 2)
    # The differences are 0, -1, 1, -1: mean -1/4, variance (3 - 4/16) / 3.
    half = 1.959964 * math.sqrt((3 - 4 / 16) / 3 / 4)
    assert other.difference.score.mean == pytest.approx(-0.25)
    assert other.difference.score.high == pytest.approx(-0.25 + half)
    assert base.kinds == {"what": 1.0, "where": 0.5}


def test_report_may_be_named_itself(run) -> None:
    path = run("first", {"1": 1.0})
    assert compared(path / REPORT_JSON) == compared(path)


def test_text_has_a_line_for_each_run_and_each_kind(run) -> None:
    first = run("first", {"1": 1.0, "2": 0.0})
    second = run("second", {"1": 1.0, "2": 1.0}, tokens=5.5)
    text = write_comparison(compared(first, second), "exact match")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[0].startswith("| run | tokens | exact match |")
    assert lines[2].startswith("| first | 8.0 | 50.0 |")
    assert lines[3].startswith("| second | 5.5 | 100.0 |")
    assert "| +50.0 | " in lines[3]
    assert lines[3].endswith("| 1 | 0 |")
    assert lines[-2:] == ["| what | 0.0 | 100.0 |", "| where | 100.0 | 100.0 |"]


@pytest.mark.parametrize(
    ("scores", "changes", "said"),
    [
        ({"1": 1.0, "3": 1.0}, {}, "2 questions are in one only"),
        ({"1": 1.0, "2": 1.0}, {"data": ()}, "the data files differ"),
    ],
)
def test_runs_on_other_questions_are_refused(run, scores, changes, said: str) -> None:
    first, second = run("first", {"1": 1.0, "2": 0.0}), run("second", scores, **changes)
    with pytest.raises(InputError, match="not about the same questions") as raised:
        compared(first, second)
    assert said in str(raised.value)


def test_unfinished_or_changed_run_is_refused(this_run: Run, run, tmp_path: Path, answered) -> None:
    with pytest.raises(InputError, match=r"report\.json does not exist"):
        compared(tmp_path)
    first = run("first", {"1": 1.0})
    with open_log(first, this_run, restart=False) as log:
        log.add(answered("2"))
    with pytest.raises(InputError, match=r"1 questions in a report, 2 in its answers\.jsonl"):
        compared(first)
    (first / REPORT_JSON).write_text('{"format": "atp-eval-report"}')
    with pytest.raises(InputError, match="'schema_version' is missing"):
        compared(first)


def test_run_without_scores_is_refused(run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no scores"):
        compared(run("first", {"1": None}))

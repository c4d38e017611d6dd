from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from atp_runtime.evaluation.answer_log import AnsweredQuestion, Run
from atp_runtime.evaluation.formats.registry import FORMATS
from atp_runtime.evaluation.machine import this_machine
from atp_runtime.evaluation.report import Report
from atp_runtime.evaluation.report_markdown import write_report, write_scores
from atp_runtime.evaluation.summary import summarise
from atp_runtime.manifest import read_manifest

Make = Callable[..., Report]


@pytest.fixture
def report(tiny_bundle: Path, this_run: Run, answered) -> Make:
    """The report of some answers; each is given as the fields that are special about it."""

    def make(*answers: dict[str, object], form: str = "llava", **changes: object) -> Report:
        run = replace(this_run, format=form, **changes)
        listed: list[AnsweredQuestion] = []
        for number, fields in enumerate(answers, 1):
            listed.append(answered(str(number), **{"kept": (8, 4, 2), **fields}))
        bundle = ("bundle", read_manifest(tiny_bundle))
        return summarise(listed, run, FORMATS[form], bundle, this_machine(2))

    return make


def rows(text: str, first: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(f"| {first}")]


def test_scores_have_a_line_for_each_kind(report: Make) -> None:
    text = write_scores(report({"kind": "a"}, {"kind": "b", "score": 0.0, "read": None}))
    assert rows(text, "all") == ["| all | 2 | 50.0 | 9.5 to 90.5 | 100.0 | 1 |"]
    assert rows(text, "a |")[0].startswith("| a | 1 | 100.0 |")
    assert rows(text, "b |")[0].startswith("| b | 1 | 0.0 |")


def test_tokens_have_a_line_for_each_point(report: Make) -> None:
    text = write_scores(report({}, {"kept": (12, 6, 2), "mean_visual_tokens": 10.0}))
    assert rows(text, "before pruning") == ["| before pruning | 16.0 | 16.0 | 16.0 | 16.0 |"]
    assert rows(text, "from layer 1 on") == ["| from layer 1 on | 10.0 | 8.4 | 10.0 | 11.6 |"]
    assert rows(text, "average over all layers")[0].startswith("| average over all layers | 9.0 |")


def test_yes_and_no_are_told_with_the_mean_over_the_files(report: Make) -> None:
    yes = {"truth": "yes", "answer": "yes"}
    text = write_scores(
        report(
            {**yes, "kind": "random"},
            {**yes, "kind": "popular"},
            {"truth": "no", "answer": "yes", "kind": "popular", "score": 0.0},
            form="pope",
        )
    )
    # F1 is 1 for random and 2 / 3 for popular.
    assert "Mean F1 over the kinds: 83.3." in text
    line = "| popular | 2 | 50.0 | 50.0 | 100.0 | 66.7 | 100.0 | 0 |"
    assert line in text.splitlines()


def test_what_went_wrong_is_told(report: Make) -> None:
    text = write_report(
        report({}, {"finish_reason": "failed", "score": 0.0}, {"finish_reason": "length"})
    )
    assert "1 could not be asked" in text
    assert "1 answers were cut after 32 tokens." in text
    assert "The bundle says: The pruning modules are untrained" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "2 questions about 1 images, pruned by the bundle's rule."),
        ({"select": "keep_all"}, "nothing pruned (keep_all)."),
        ({"select": "random", "keep": (8, 4, 2)}, "pruned by random (8, 4, 2 tokens)."),
        ({"limit": 2, "seed": 7}, ", drawn with seed 7,"),
        ({"images": False}, ", images not shown,"),
    ],
)
def test_run_is_described(report: Make, changes, said: str) -> None:
    assert said in write_report(report({}, {}, **changes))


def test_nothing_is_said_about_tokens_when_there_are_no_images(report: Make) -> None:
    blind = {"visual_tokens": 0, "mean_visual_tokens": 0.0, "kept": ()}
    text = write_report(report(blind, blind))
    assert "nothing to prune" in text
    assert "visual tokens" not in text
    assert "Prefill" not in text


def test_nothing_is_scored_when_the_truth_is_not_known(report: Make) -> None:
    text = write_report(report({"score": None, "truth": None}, form="gqa"))
    assert "nothing is scored" in text
    assert "wrong answers" not in text


def test_orders_of_options_are_explained_where_they_count(report: Make) -> None:
    answers = [{"group": "3"}, {"group": "3", "score": 0.0}]
    assert "in every order" in write_scores(report(*answers, form="mmbench"))
    assert "in every order" not in write_scores(report(*answers, form="mmbench", circular=False))
    assert "in every order" not in write_scores(report({}))


def test_adaptivity_is_told_for_rules_that_adapt(report: Make) -> None:
    answers = [{"mean_visual_tokens": 8.0}, {"mean_visual_tokens": 5.0}]
    said = "Of 1 images with several questions, 1 kept different numbers of tokens for them, 3.0"
    assert said in write_scores(report(*answers))
    fixed = report(*answers, select="random", keep=(8, 4, 2))
    assert "images with several questions" not in write_scores(fixed)


def test_correlations_are_told_where_there_are_any(report: Make) -> None:
    answers = [
        {"mean_visual_tokens": float(n), "numbers": {"objects": float(n), "same": 1.0}}
        for n in range(4)
    ]
    text = write_scores(report(*answers))
    assert "Rank correlation of the kept tokens with `objects`: 1.00 (n = 4)." in text
    assert "`same`" not in text


def test_some_wrong_answers_are_shown_from_the_whole_run(report: Make) -> None:
    answers = [{"score": float(n % 2), "answer": f"wrong | {n}"} for n in range(80)]
    shown = report(*answers).wrong
    # 40 are wrong, the odd ids; every fourth of them is shown.
    assert [int(it.id) for it in shown] == [1 + 8 * place for place in range(10)]
    assert "`wrong \\| 8`" in write_report(report(*answers))


def test_provenance_has_what_a_second_run_needs(report: Make, this_run: Run) -> None:
    text = write_report(report({}, prompt_suffix="In a word."))
    for said in (this_run.bundle, this_run.data[0].sha256, "`In a word.`", "32 tokens, greedy"):
        assert said in text

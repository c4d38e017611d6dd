import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atp_runtime.errors import InputError
from atp_runtime.evaluation.answer_log import ANSWERS, read_answers
from atp_runtime.evaluation.evaluation import Plan, evaluate
from atp_runtime.evaluation.examiner import Examiner
from atp_runtime.evaluation.pruning_choice import PruningChoice
from atp_runtime.evaluation.report import REPORT_JSON, REPORT_MARKDOWN, Report, read_report


@pytest.fixture
def plan(tiny_bundle: Path, scenes: Path, tmp_path: Path) -> Plan:
    return Plan(
        tiny_bundle, scenes, output=tmp_path / "out", threads=1, max_new_tokens=6, limit=None
    )


def run(plan: Plan, **changes: object) -> Report:
    return evaluate(replace(plan, **changes), None)


def test_every_question_is_asked_once_and_reported_in_the_order_of_the_data(
    plan: Plan, scenes: Path
) -> None:
    report = run(plan)
    answers = read_answers(plan.directory)
    ids = [record["id"] for record in json.loads(scenes.read_text())]
    assert sorted(it.id for it in answers) == sorted(ids)
    assert [it.images for it in answers] == sorted(it.images for it in answers)
    assert (report.asked, report.images, report.failed) == (12, 3, 0)
    assert [it.kind for it in report.accuracy] == ["all", "count", "existence", "place", "what"]
    assert report.wrong[0].id == ids[0]


def test_numbers_are_those_of_the_answers(plan: Plan) -> None:
    report, answers = run(plan), read_answers(plan.directory)
    assert report.accuracy[0].score.mean == np.mean([it.score for it in answers])
    assert report.tokens.mean.mean == pytest.approx(
        np.mean([it.mean_visual_tokens for it in answers])
    )
    for number, point in enumerate(report.tokens.points):
        assert point.kept.mean == pytest.approx(np.mean([it.kept[number] for it in answers]))
    assert [it.before_layer for it in report.tokens.points] == [1, 2, 3]
    assert [it.field for it in report.tokens.correlations] == ["objects"]
    assert report.tokens.adaptivity.images == 3
    assert report.yes_no[0].count == 3
    assert report.cut == sum(it.finish_reason == "length" for it in answers)


def test_report_is_what_is_written(plan: Plan) -> None:
    report = run(plan)
    assert read_report(plan.directory) == report
    assert read_report(plan.directory / REPORT_JSON) == report
    text = (plan.directory / REPORT_MARKDOWN).read_text()
    assert text.startswith("# LLaVA conversations: bundle\n")
    assert report.run.bundle in text
    assert report.run.data[0].sha256 in text
    assert "The bundle says: The pruning modules are untrained" in text
    assert "12 questions about 3 images, pruned by the bundle's rule." in text


def test_run_goes_on_behind_the_last_answer_when_it_was_stopped(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(plan, output=tmp_path / "whole")
    own, asked = Examiner.ask, []

    def ask(self: Examiner, question):
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append(question.id)
        return own(self, question)

    with monkeypatch.context() as patched:
        patched.setattr(Examiner, "ask", ask)
        with pytest.raises(KeyboardInterrupt):
            run(plan)
    assert [it.id for it in read_answers(plan.directory)] == asked
    assert not (plan.directory / REPORT_JSON).exists()
    report = run(plan)
    answers = read_answers(plan.directory)
    assert [it.id for it in answers[:5]] == asked
    assert len(answers) == 12
    same = ("accuracy", "yes_no", "tokens", "wrong", "run")
    assert [getattr(report, name) for name in same] == [getattr(whole, name) for name in same]


def test_nothing_is_asked_again_when_the_run_was_finished(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = run(plan)
    monkeypatch.setattr(Examiner, "ask", None)
    assert run(plan) == report


def test_answers_of_another_run_are_refused_and_dropped_on_request(plan: Plan) -> None:
    run(plan)
    with pytest.raises(InputError, match="max_new_tokens 6, now 7"):
        run(plan, max_new_tokens=7)
    assert run(plan, max_new_tokens=7, restart=True).run.max_new_tokens == 7
    assert len(read_answers(plan.directory)) == 12


def test_sample_of_the_questions_is_asked_when_there_is_a_limit(plan: Plan) -> None:
    report = run(plan, limit=5, seed=3)
    assert (report.asked, report.run.limit, report.run.seed) == (5, 5, 3)


def test_suffix_stands_behind_each_question(plan: Plan) -> None:
    run(plan, suffix="In a word.")
    assert {it.prompt.split("\n")[1] for it in read_answers(plan.directory)} == {"In a word."}


def test_rules_are_compared_on_one_bundle_when_another_is_chosen(plan: Plan) -> None:
    report = run(plan, choice=PruningChoice("uniform", (8, 4, 1)))
    assert [it.kept.p10 for it in report.tokens.points] == [8, 4, 1]
    assert report.tokens.mean.mean == (16 + 8 + 4 + 1) / 4
    assert (report.run.select, report.run.keep) == ("uniform", (8, 4, 1))
    text = (plan.directory / REPORT_MARKDOWN).read_text()
    assert "pruned by uniform (8, 4, 1 tokens)." in text


def test_images_are_not_needed_when_the_question_alone_must_do(
    plan: Plan, scenes: Path, tmp_path: Path
) -> None:
    records = json.loads(scenes.read_text())
    data = tmp_path / "blind.json"
    data.write_text(json.dumps([{**record, "image": "missing.png"} for record in records]))
    with pytest.raises(InputError, match="1 of 1 images are missing"):
        run(plan, data=data)
    report = run(plan, data=data, images=False)
    assert (report.tokens, report.latency, report.run.images) == (None, None, False)
    assert len({it.answer for it in read_answers(plan.directory)}) <= 4


def test_file_to_submit_is_written_when_the_answers_are_not_public(
    plan: Plan, photos: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "1.jpg").write_bytes(photos[0].read_bytes())
    asked = {"20": {"imageId": "1", "question": "Is it?"}, "21": {"imageId": "1", "question": "?"}}
    data = tmp_path / "submission_all_questions.json"
    data.write_text(json.dumps(asked))
    report = run(plan, data=data)
    assert (report.accuracy, report.wrong) == ((), ())
    submitted = json.loads((plan.directory / "submission.json").read_text())
    read = {it.id: it.read or "" for it in read_answers(plan.directory)}
    assert {it["questionId"]: it["prediction"] for it in submitted} == read
    assert "nothing is scored" in (plan.directory / REPORT_MARKDOWN).read_text()


def test_directory_is_named_for_bundle_and_data_when_none_is_given(plan: Plan) -> None:
    assert replace(plan, output=None).directory == Path("eval-bundle-scenes")


@pytest.mark.parametrize(
    "change", [{"limit": 0}, {"max_new_tokens": 0}, {"seed": -1}, {"threads": 0}]
)
def test_number_is_refused_when_it_is_too_small(plan: Plan, change) -> None:
    with pytest.raises(InputError):
        run(plan, **change)
    assert not (plan.directory / ANSWERS).exists()

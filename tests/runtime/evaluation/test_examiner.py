from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from atp_models.random_configs import tiny_config
from atp_runtime.errors import InputError, MachineError
from atp_runtime.evaluation.answer_log import AnsweredQuestion
from atp_runtime.evaluation.examiner import Examiner, ExamRules
from atp_runtime.evaluation.keys.exact_match import ExactMatch
from atp_runtime.evaluation.pruning_choice import PruningChoice
from atp_runtime.evaluation.question import ImageReference, Question
from atp_runtime.generation import GenerationOptions
from atp_runtime.session import Session

RULES = ExamRules(suffix="Be brief.", max_new_tokens=12)


@pytest.fixture(scope="module")
def sessions(tiny_bundle: Path, export_bundle) -> Iterator[dict[str, Session]]:
    """One that prunes, and one of the same checkpoint that does not."""
    dense = export_bundle(tiny_config(), dense=True).bundle
    with (
        Session.open(tiny_bundle, threads=1) as first,
        Session.open(dense, threads=1) as second,
    ):
        yield {"pruned": first, "dense": second}


@pytest.fixture
def examiner(sessions: dict[str, Session]) -> Iterator[Callable[..., Examiner]]:
    def make(name: str, choice: PruningChoice | None = None, **options) -> Examiner:
        session = sessions[name]
        select = (choice or PruningChoice()).apply(session.model, 0)
        rules = options.pop("rules", RULES)
        return Examiner(session, select, rules, **options)

    own = sessions["pruned"].model.select
    yield make
    sessions["pruned"].model.select = own


def asked(name: str, *images: ImageReference, prompt: str = "What is it?") -> Question:
    return Question(name, prompt, images, ExactMatch("x"), "kind", numbers={"objects": 2.0})


def fresh(bundle: Path, question: Question) -> tuple[str, list[int]]:
    """The answer of a session that was asked nothing else, and the tokens it kept."""
    with Session.open(bundle, threads=1) as session:
        prompt = f"{question.prompt}\nBe brief."
        answer = session.ask(prompt, list(question.images), GenerationOptions(12))
        return answer.text, [it.kept for it in answer.statistics.points]


def conversation_of(photos: Sequence[Path]) -> list[Question]:
    prompts = ["What is it?", "What is that?", "Is it red?", "What is it?", ""]
    return [
        asked(f"{photo.stem}-{number}", photo, prompt=prompt or "Why")
        for photo in photos
        for number, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize("name", ["pruned", "dense"])
def test_answers_are_those_of_sessions_that_were_asked_nothing_else(
    examiner, sessions, tiny_bundle: Path, export_bundle, photos: list[Path], name: str
) -> None:
    bundle = tiny_bundle if name == "pruned" else export_bundle(tiny_config(), dense=True).bundle
    examine = examiner(name)
    for question in conversation_of(photos[:2]):
        found = examine.ask(question)
        assert (found.answer, list(found.kept)) == fresh(bundle, question), question


def test_image_is_run_once_when_nothing_is_pruned(examiner, photos: list[Path]) -> None:
    examine = examiner("dense")
    found = [examine.ask(it).image_run for it in conversation_of(photos[:2])]
    assert found == [True, False, False, False, False] * 2


def test_image_is_run_for_each_question_when_something_is_pruned(
    examiner, photos: list[Path]
) -> None:
    examine = examiner("pruned")
    assert all(examine.ask(it).image_run for it in conversation_of(photos[:1]))


def test_vision_runs_once_per_image(
    examiner, sessions, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, session = [], sessions["pruned"]
    stages = session.model.vision._stages
    own = stages.look
    monkeypatch.setattr(stages, "look", lambda *seen: (runs.append(1), own(*seen))[1])
    examine = examiner("pruned")
    for question in conversation_of(photos):
        examine.ask(question)
    assert len(runs) == 3


def test_tokens_are_all_kept_when_the_rule_is_keep_all(examiner, photos: list[Path]) -> None:
    examine = examiner("pruned", PruningChoice("keep_all"))
    found = [examine.ask(it) for it in conversation_of(photos[:1])]
    assert {it.kept for it in found} == {(16, 16, 16)}
    assert {it.mean_visual_tokens for it in found} == {16.0}
    assert [it.image_run for it in found] == [True, False, False, False, False]


def test_rules_may_change_between_questions_without_traces(
    examiner, tiny_bundle: Path, photos: list[Path]
) -> None:
    """An image that a dense question left in the caches is pruned for the next question."""
    question = asked("1", photos[0])
    pruning, keeping = examiner("pruned"), examiner("pruned", PruningChoice("keep_all"))
    keeping.ask(question)
    found = pruning.ask(question)
    assert (found.answer, list(found.kept)) == fresh(tiny_bundle, question)


def test_answer_is_noted_with_what_was_asked_and_what_it_cost(examiner, photos: list[Path]) -> None:
    found = examiner("pruned").ask(asked("7", photos[0]))
    assert (found.id, found.group, found.kind) == ("7", "7", "kind")
    assert (found.prompt, found.images) == ("What is it?\nBe brief.", (str(photos[0]),))
    assert (found.truth, found.score, found.numbers) == ("x", 0, {"objects": 2.0})
    assert (found.visual_tokens, len(found.kept)) == (16, 3)
    # Layers 0, 1, 2 and 3 see the tokens before and behind each of the three points.
    assert found.mean_visual_tokens == (16 + sum(found.kept)) / 4
    assert found.seconds["total"] >= sum(
        found.seconds[part] for part in ("preprocess", "vision", "prefill")
    )


def test_tokens_of_all_images_are_counted_when_there_are_several(
    examiner, photos: list[Path]
) -> None:
    found = examiner("pruned").ask(asked("1", *photos))
    assert found.visual_tokens == 48
    assert found.mean_visual_tokens == (48 + sum(found.kept)) / 4


def test_images_are_not_shown_when_the_question_alone_must_do(examiner, photos: list[Path]) -> None:
    rules = ExamRules("", 12, images=False)
    found = examiner("pruned", rules=rules).ask(asked("1", photos[0]))
    assert (found.visual_tokens, found.kept, found.prompt) == (0, (), "What is it?")
    missing = asked("2", Path("missing.png"))
    assert examiner("pruned", rules=rules).ask(missing).answer == found.answer


@pytest.fixture
def damaged(tmp_path: Path) -> Question:
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nxxxx")
    return asked("2", tmp_path / "damaged.png")


def test_question_counts_as_wrong_when_it_cannot_be_asked(
    examiner, photos: list[Path], damaged: Question
) -> None:
    examine = examiner("pruned")
    before = examine.ask(asked("1", photos[0]))
    found = examine.ask(damaged)
    assert (found.finish_reason, found.score, found.visual_tokens) == ("failed", 0, 0)
    assert "damaged.png" in found.answer
    assert examine.ask(asked("1", photos[0])).answer == before.answer
    assert examine.ask(asked("3", photos[0], prompt="?" * 5000)).finish_reason == "failed"


def test_run_ends_when_its_first_question_cannot_be_asked(examiner, damaged: Question) -> None:
    with pytest.raises(InputError, match=r"question 2: image .*damaged\.png"):
        examiner("pruned").ask(damaged)
    assert examiner("pruned", proven=True).ask(damaged).finish_reason == "failed"


def test_run_ends_when_the_machine_lacks_something(
    examiner, photos: list[Path], sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> np.ndarray:
        raise MachineError("no memory", why="none.", fix="none.")

    examine = examiner("pruned", proven=True)
    monkeypatch.setattr(sessions["pruned"].model.decoder, "prefill", no_memory)
    with pytest.raises(MachineError):
        examine.ask(asked("1", photos[0]))


def test_same_question_has_the_same_answer_whatever_was_asked_before(
    examiner, photos: list[Path]
) -> None:
    def answers(order: Sequence[int]) -> dict[str, AnsweredQuestion]:
        examine, questions = examiner("dense"), conversation_of(photos[:2])
        found = [examine.ask(questions[number]) for number in order]
        return {it.id: it.answer for it in found}

    in_order, taking_turns = list(range(10)), [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]
    assert answers(in_order) == answers(in_order[::-1]) == answers(taking_turns)

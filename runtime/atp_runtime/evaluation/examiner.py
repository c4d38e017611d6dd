"""Asks a bundle the questions of a benchmark, each in a conversation of its own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

from atp_runtime.answer import Answer
from atp_runtime.errors import InputError
from atp_runtime.evaluation.answer_log import AnsweredQuestion
from atp_runtime.evaluation.question import ImageReference, Question, opened
from atp_runtime.generation import GenerationOptions
from atp_runtime.selection import SelectTokens, keeps_all
from atp_runtime.session import Session
from atp_runtime.vision import Photo

_PHOTOS = 4  # questions come image by image; few of them are about several
FAILED = "failed"


@dataclass(frozen=True)
class ExamRules:
    """How questions are asked.

    Attributes:
        suffix: The line behind each prompt; "" for none.
        max_new_tokens: Longest answer.
        images: Whether they are shown; without, the question alone must do.
    """

    suffix: str
    max_new_tokens: int
    images: bool = True


class Examiner:
    """Asks, greedily, and notes what it cost.

    Consecutive questions about one image share its features and, where nothing is pruned, what
    the decoder's caches hold of it (see `Context`); the answers are those of fresh conversations.

    Args:
        session: An open one.
        select: What selects the tokens of a question, by its id.
        rules: How to ask.
        proven: Whether questions of this run were answered before.
    """

    def __init__(
        self,
        session: Session,
        select: Callable[[str], SelectTokens],
        rules: ExamRules,
        *,
        proven: bool = False,
    ) -> None:
        self._session = session
        self._select = select
        self._rules = rules
        self._options = GenerationOptions(rules.max_new_tokens)
        self._photos: OrderedDict[ImageReference, Photo] = OrderedDict()
        self._proven = proven

    def ask(self, question: Question) -> AnsweredQuestion:
        """Asks one question.

        A question that cannot be asked, because its image is damaged or its prompt too long,
        counts as wrong, unless it is the first: then none may work.

        Raises:
            InputError: The first question cannot be asked.
            CheckFailedError: Scores or logits are not finite.
            MachineError: Memory does not suffice.
        """
        prompt = question.text(self._rules.suffix)
        began = perf_counter()
        try:
            photos = self._photos_of(question) if self._rules.images else []
            read = perf_counter()
            self._session.model.select = self._select(question.id)
            answer = self._session.ask(prompt, photos, self._options)
        except InputError as error:
            if not self._proven:
                raise _named(question, error) from error
            return _failed(question, prompt, error)
        self._proven = True
        times = {"preprocess": read - began, "total": perf_counter() - began}
        return self._noted(_unanswered(question, prompt), question, answer, times)

    def _photos_of(self, question: Question) -> list[Photo]:
        photos = []
        for image in question.images:
            if image not in self._photos:
                self._photos[image] = self._session.model.vision.read(opened(image))
            self._photos.move_to_end(image)
            photos.append(self._photos[image])
        while len(self._photos) > max(_PHOTOS, len(photos)):
            self._photos.popitem(last=False)
        return photos

    def _noted(
        self,
        asked: AnsweredQuestion,
        question: Question,
        answer: Answer,
        times: dict[str, float],
    ) -> AnsweredQuestion:
        model, statistics = self._session.model, answer.statistics
        visual = sum(len(model.memory.features(photo).tokens) for photo in answer.photos)
        kept = tuple(point.kept for point in statistics.points)
        mean = statistics.mean_visual_tokens or 0.0
        if keeps_all(model.select) and visual:
            # The statistics count what was run, and an image that was run before is not.
            points = sum(stage.pruning is not None for stage in model.manifest.segments)
            kept, mean = (visual,) * points, float(visual)
        mark = question.key.mark(answer.text)
        return replace(
            asked,
            answer=answer.text,
            read=mark.read,
            score=mark.score,
            finish_reason=answer.finish_reason,
            visual_tokens=visual,
            mean_visual_tokens=mean,
            kept=kept,
            image_run=statistics.visual_tokens == visual,
            seconds={
                "preprocess": times["preprocess"] + statistics.preprocess_seconds,
                "vision": statistics.vision_seconds,
                "prefill": statistics.prefill_seconds,
                "total": times["total"],
            },
        )


def _unanswered(question: Question, prompt: str) -> AnsweredQuestion:
    return AnsweredQuestion(
        id=question.id,
        group=question.unit,
        kind=question.kind,
        prompt=prompt,
        images=tuple(map(str, question.images)),
        truth=question.key.truth,
        answer="",
        read=None,
        score=None if question.key.truth is None else 0.0,
        finish_reason=FAILED,
        visual_tokens=0,
        mean_visual_tokens=0.0,
        kept=(),
        image_run=False,
        seconds={},
        numbers=question.numbers,
    )


def _failed(question: Question, prompt: str, error: InputError) -> AnsweredQuestion:
    return replace(_unanswered(question, prompt), answer=error.what)


def _named(question: Question, error: InputError) -> InputError:
    return InputError(f"question {question.id}: {error.what}", why=error.why, fix=error.fix)

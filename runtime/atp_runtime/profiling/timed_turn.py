"""One answer, with the time that each of its parts takes.

It is made by the parts that `Session.ask` uses, in the same order. Nothing of a former answer is
used: photo, vision stage and prompt run anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from PIL import Image

from atp_runtime.chat import ImagePart, Message, TextPart
from atp_runtime.context import Context, ImageFeatures, Prefill
from atp_runtime.conversation import Model
from atp_runtime.decoder_results import StageCall
from atp_runtime.errors import InputError
from atp_runtime.generation import GenerationOptions, generate
from atp_runtime.image_tokens import ImageTokens
from atp_runtime.manifest import Manifest
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import FloatArray, Selection, SelectTokens, VisualTokens
from atp_runtime.statistics import mean_visual_tokens, visual_tokens_entering

PROMPT, VISION, PREFILL, DECODE = "prompt", "vision", "prefill", "decode"
PHASES = (PROMPT, VISION, PREFILL, DECODE)
SELECT = "select before"


@dataclass(frozen=True)
class Question:
    """What is asked in every run.

    Attributes:
        prompt: The question.
        images: Photos it is about; those in files are read in every run.
    """

    prompt: str
    images: tuple[Path | Image.Image, ...]


@dataclass(frozen=True)
class Span:
    """What a part of an answer took, all of its runs together.

    Attributes:
        phase: One of `PHASES`.
        name: A stage's, or of what the host does.
        seconds: Wall time.
        calls: How often it ran.
        entering: Tokens that entered it, of all its runs; None where tokens do not.
        leaving: Tokens that left it, likewise.
        past: Cached positions that it read, of all its runs.
        visual: Of what entered, tokens that a structure spares work, of all its runs.
    """

    phase: str
    name: str
    seconds: float
    calls: int = 1
    entering: int | None = None
    leaving: int | None = None
    past: int = 0
    visual: int = 0


@dataclass(frozen=True)
class TimedTurn:
    """An answer's times.

    Attributes:
        spans: In the order they came; their times add up to the answer's.
        steps: Tokens that were fed back.
        first_token_seconds: From the question to the first sampled token.
        answer_seconds: From the question to the last one.
        visual_tokens: Averaged over all decoder layers.
        cached: Positions that each segment's caches hold at the end.
        readings: How often the clock was read.
    """

    spans: tuple[Span, ...]
    steps: int
    first_token_seconds: float
    answer_seconds: float
    visual_tokens: float
    cached: tuple[int, ...]
    readings: int

    @property
    def token_seconds(self) -> float | None:
        """Of a token after the first; None if there is none."""
        return (self.answer_seconds - self.first_token_seconds) / self.steps if self.steps else None


class TurnTimer:
    """Answers questions with a loaded bundle.

    Args:
        model: Of a session that does nothing else meanwhile.
        new_tokens: Of each answer; what would end one earlier is passed over, so that all are
            equally long.
    """

    def __init__(self, model: Model, new_tokens: int) -> None:
        self._model = model
        self._options = GenerationOptions(max_new_tokens=new_tokens, ignore_end=True)
        self._photos = 0

    def run(self, question: Question, select: SelectTokens) -> TimedTurn:
        """One answer.

        Args:
            question: What is asked.
            select: Asked at every pruning point which visual tokens stay.

        Raises:
            InputError: A photo cannot be read, or prompt and answer are too long.
            CheckFailedError: Scores or logits are not finite.
            MachineError: Memory does not suffice.
        """
        model = self._model
        model.context.forget()
        began = perf_counter()
        draft = model.writer.draft(_messages(question))
        tokenised = perf_counter()
        photos = [model.vision.read(path) for path in question.images]
        prepared = perf_counter()
        seen_as = [model.vision.encode(photo, question.prompt) for photo in photos]
        features = [*map(self._numbered, seen_as)]
        counts = [len(image.tokens) for image in features]
        ids = model.writer.ids(draft, counts)
        model.context.check_fits(ids, len(photos))
        seen = perf_counter()
        timed = _TimedSelection(select)
        prefill = model.context.prefill(
            ids, features, timed, max_new_tokens=self._options.max_new_tokens
        )
        prefilled = perf_counter()
        feed = _TimedFeed(model)
        logits = prefill.result.logits
        generated = generate(logits, feed, model.tokenizer, self._options)
        if generated.finish_reason == "context":
            raise self._too_long(len(ids))
        sampled = generated.seconds
        spans = [
            Span(PROMPT, "tokenise", tokenised - began),
            Span(PROMPT, "photo", prepared - tokenised, calls=len(photos)),
            Span(VISION, "vision", seen - prepared, calls=len(photos), leaving=sum(counts)),
            *_prefill_spans(model.manifest, prefill, timed.spans, prefilled - seen),
            Span(PREFILL, "sample", sampled[0] - prefilled),
            *feed.spans(sampled[-1] - sampled[0]),
        ]
        visual = len(prefill.chunk.visual())
        entering = visual_tokens_entering(model.manifest, visual, prefill.result.points)
        return TimedTurn(
            tuple(span for span in spans if span.calls),
            steps=len(sampled) - 1,
            first_token_seconds=sampled[0] - began,
            answer_seconds=sampled[-1] - began,
            visual_tokens=mean_visual_tokens(model.manifest, entering),
            cached=model.decoder.state.lengths,
            readings=7 + 2 * len(timed.spans) + len(sampled) + 2 * (len(feed) + feed.runs),
        )

    def _too_long(self, prompt: int) -> InputError:
        return InputError(
            f"answers of {self._options.max_new_tokens} tokens behind a prompt of {prompt}",
            why="the model or its engines have not the positions, so answers would differ in "
            "length.",
            fix="ask for fewer with --new-tokens.",
        )

    def _numbered(self, tokens: ImageTokens) -> ImageFeatures:
        """Every photo has another number: its tokens are never taken for those of another."""
        self._photos += 1
        return ImageFeatures(self._photos, tokens)


class _TimedSelection:
    """A rule, and what it took at each point."""

    def __init__(self, select: SelectTokens) -> None:
        self._select = select
        self.spans: list[Span] = []

    def __call__(
        self,
        point: PruningPoint,
        scores_self: FloatArray,
        scores_cross: FloatArray,
        has_text: bool,
        visual: VisualTokens,
    ) -> Selection:
        began = perf_counter()
        selection = self._select(point, scores_self, scores_cross, has_text, visual)
        seconds = perf_counter() - began
        kept = int(selection.kept.sum())
        name = f"{SELECT} {point.before_layer}"
        self.spans.append(Span(PREFILL, name, seconds, entering=len(visual), leaving=kept))
        return selection


class _TimedFeed:
    """A context that is fed token by token, and what that took."""

    def __init__(self, model: Model) -> None:
        self._context: Context = model.context
        self._decoder = model.decoder
        self._calls: list[StageCall] = []
        self._feeds: list[float] = []

    def __len__(self) -> int:
        return len(self._feeds)

    @property
    def runs(self) -> int:
        """Of stages."""
        return len(self._calls)

    def has_room(self) -> bool:
        """See `NextLogits`."""
        return self._context.has_room()

    def feed(self, token: int) -> FloatArray:
        """See `NextLogits`."""
        began = perf_counter()
        logits = self._context.feed(token)
        self._feeds.append(perf_counter() - began)
        self._calls += self._decoder.calls
        return logits

    def spans(self, seconds: float) -> list[Span]:
        """Those of decoding.

        Args:
            seconds: From the first sampled token to the last.
        """
        if not self._feeds:
            return []
        fed, ran = sum(self._feeds), sum(call.seconds for call in self._calls)
        steps = len(self._feeds)
        return [
            *_stage_spans(DECODE, self._calls),
            Span(DECODE, "embed and hand over", fed - ran, calls=steps),
            Span(DECODE, "sample", seconds - fed, calls=steps),
        ]


def _messages(question: Question) -> tuple[Message, ...]:
    pictures = (ImagePart(),) * len(question.images)
    return (Message("user", (*pictures, TextPart(question.prompt))),)


def _prefill_spans(
    manifest: Manifest, prefill: Prefill, selections: Sequence[Span], seconds: float
) -> list[Span]:
    """Stages, the selection behind those that end at a point, and what else the time went to."""
    spans, behind = [Span(PREFILL, "embed and splice", prefill.embedding_seconds)], iter(selections)
    for span in _stage_spans(PREFILL, prefill.result.calls):
        spans.append(span)
        if manifest.stage(span.name).pruning:
            spans.append(next(behind))
    rest = seconds - sum(span.seconds for span in spans)
    return [*spans, Span(PREFILL, "hand over", rest)]


def _stage_spans(phase: str, calls: Sequence[StageCall]) -> list[Span]:
    by_stage: dict[str, list[StageCall]] = defaultdict(list)
    for call in calls:
        by_stage[call.stage].append(call)
    return [
        Span(
            phase,
            stage,
            sum(call.seconds for call in runs),
            calls=len(runs),
            entering=sum(call.tokens for call in runs),
            leaving=sum(call.tokens for call in runs),
            past=sum(call.past for call in runs),
            visual=sum(call.visual for call in runs),
        )
        for stage, runs in by_stage.items()
    ]

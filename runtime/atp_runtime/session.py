"""The runtime's front door: open a bundle, ask questions about photos, chat.

with Session.open(Path("bundle")) as session:
answer = session.ask("What is this?", images=["photo.jpg"])
print(answer.text)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from atp_runtime.backends import open_backend
from atp_runtime.bundle import Bundle
from atp_runtime.chat import ChatTemplate, ImagePart, Message, Part, TextPart
from atp_runtime.chunk import Chunk
from atp_runtime.decoder import SegmentedDecoder
from atp_runtime.decoder_results import PointResult, PrefillResult
from atp_runtime.embedding import EmbeddingTable
from atp_runtime.errors import InputError
from atp_runtime.generation import GenerationOptions, ShowText, generate
from atp_runtime.history import History
from atp_runtime.prompt import expand_images
from atp_runtime.selection import FloatArray, Selectors, SelectTokens
from atp_runtime.statistics import (
    PointStatistics,
    Statistics,
    decode_bytes,
    mean_visual_tokens,
    peak_memory_bytes,
    prefill_flops,
)
from atp_runtime.tokenizer import Tokenizer
from atp_runtime.vision import Photo, VisionEncoder

ImageSource = str | Path | Image.Image
_CAPACITY_STEP = 256


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model said, and how.

    Attributes:
        text: The answer.
        ids: Its tokens.
        finish_reason: "eos", "stop", "length" or "context".
        points: What happened at each pruning point of this turn.
        chunk: The turn's prefilled tokens, which `points` index.
        photos: The conversation's images; `chunk.image` counts through them.
        statistics: What it cost.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: str
    points: tuple[PointResult, ...]
    chunk: Chunk
    photos: tuple[Photo, ...]
    statistics: Statistics


class Session:
    """A bundle, loaded. One conversation at a time uses its caches."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        self.bundle = bundle
        processor = bundle.root / bundle.manifest.processor
        self.tokenizer = Tokenizer.from_dir(processor)
        self.template = ChatTemplate.from_dir(processor)
        self.embedding = EmbeddingTable.open(bundle)
        self.select: SelectTokens = Selectors.open(bundle.root, bundle.manifest)
        with ExitStack() as stack:
            backend = open_backend("onnxruntime", threads=threads)
            self.vision = VisionEncoder(bundle, backend)
            stack.callback(self.vision.close)
            self.decoder = SegmentedDecoder(bundle, backend, _CAPACITY_STEP)
            stack.callback(self.decoder.close)
            self._resources = stack.pop_all()
        self._current: Conversation | None = None

    @classmethod
    def open(cls, path: Path, *, threads: int | None = None) -> Session:
        """Opens and loads a bundle.

        Args:
            path: The bundle's directory.
            threads: CPU threads; None lets the backend decide.

        Raises:
            InputError: The bundle cannot be used.
            CheckFailedError: A file of it was changed.
            MachineError: Memory does not suffice, or a package is missing.
        """
        return cls(Bundle.open(path), threads=threads)

    def __enter__(self) -> Session:
        """Returns itself; `close` is called at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives everything back; the session cannot be used any more."""
        self._resources.close()

    def conversation(self, system: str | None = None) -> Conversation:
        """Begins a conversation; the one before it ends."""
        self.decoder.reset()
        self._current = Conversation(self, system)
        return self._current

    def ask(
        self,
        question: str,
        images: Sequence[ImageSource] = (),
        options: GenerationOptions | None = None,
        show: ShowText | None = None,
    ) -> Answer:
        """Asks one question in a conversation of its own; see `Conversation.ask`."""
        return self.conversation().ask(question, images, options, show)

    def is_current(self, conversation: Conversation) -> bool:
        """Whether the caches belong to that conversation."""
        return self._current is conversation


class Conversation:
    """Turns that build on one another; `Session.conversation` begins one.

    A turn prefills only what the caches do not hold yet: images of earlier turns stay pruned as
    they were, for the question they came with.
    """

    def __init__(self, session: Session, system: str | None = None) -> None:
        self._session = session
        self._messages: list[Message] = []
        if system:
            self._messages.append(Message("system", (TextPart(system),)))
        self._photos: list[Photo] = []
        self._features: list[npt.NDArray[Any]] = []
        self._history = History()

    def ask(
        self,
        question: str,
        images: Sequence[ImageSource] = (),
        options: GenerationOptions | None = None,
        show: ShowText | None = None,
    ) -> Answer:
        """Asks, and waits for the answer.

        Args:
            question: What to ask.
            images: Photos the question is about, before the question's text.
            options: How to answer; greedy, up to 256 tokens, if None.
            show: Called with each piece of the answer as soon as it is certain.

        Raises:
            InputError: The question is empty, an image cannot be read, the prompt is longer than
                the model's context, or another conversation was begun since.
            CheckFailedError: Scores or logits are not finite.
        """
        options = options or GenerationOptions()
        self._refuse_unusable(question)
        began = time.perf_counter()
        photos = [self._session.vision.read(image) for image in images]
        parts: tuple[Part, ...] = (*(ImagePart() for _ in photos), TextPart(question))
        messages = [*self._messages, Message("user", parts)]
        ids = self._encode(messages, len(self._photos) + len(photos))
        prepared = time.perf_counter()
        features = [self._session.vision.encode(photo) for photo in photos]
        seen = time.perf_counter()
        kept_photos, kept_features = self._photos, self._features
        self._photos, self._features = [*kept_photos, *photos], [*kept_features, *features]
        try:
            reused, chunk, result = self._prefill(ids, options)
            prefilled = time.perf_counter()
            generated = generate(
                result.logits, self, self._session.tokenizer, options, show or _show_nothing
            )
        except BaseException:
            # The turn did not happen; what its caches hold is cut off by the next one.
            self._photos, self._features = kept_photos, kept_features
            raise
        self._messages = [*messages, Message("assistant", (TextPart(generated.text),))]
        marks = _Marks(began, prepared, seen, prefilled)
        return Answer(
            generated.text,
            generated.ids,
            generated.finish_reason,
            result.points if chunk.visual() else (),
            chunk,
            tuple(self._photos),
            self._statistics(marks, reused, chunk, result, generated.seconds),
        )

    def has_room(self) -> bool:
        """Whether one more token fits the model's positions."""
        limit = self._session.bundle.manifest.text.max_positions
        return self._session.decoder.state.position < limit

    def feed(self, token: int) -> FloatArray:
        """Runs one token of the answer; float32 [vocabulary] for the next."""
        logits = self._session.decoder.decode(self._session.embedding.rows([token])[None])
        self._history.decoded(token)
        return logits

    def _refuse_unusable(self, question: str) -> None:
        if not question.strip():
            raise InputError("the question is empty", why="there is nothing to answer.", fix="ask.")
        if not self._session.is_current(self):
            raise InputError(
                "this conversation has ended",
                why="another one was begun on the same session, and it uses the caches.",
                fix="begin a new conversation, or open a second session.",
            )

    def _encode(self, messages: Sequence[Message], images: int) -> list[int]:
        session, vision = self._session, self._session.bundle.manifest.vision
        text = session.template.render(messages, add_generation_prompt=True)
        ids = session.tokenizer.encode_prompt(text)
        return expand_images(ids, vision.image_token_id, vision.tokens, images)

    def _prefill(
        self, ids: list[int], options: GenerationOptions
    ) -> tuple[int, Chunk, PrefillResult]:
        session, manifest = self._session, self._session.bundle.manifest
        image_token = manifest.vision.image_token_id
        reused = self._history.reusable(ids)
        state = self._history.cut(reused)
        if reused:
            session.decoder.rewind(state)
        else:
            session.decoder.reset()
        new = ids[reused:]
        first_image = ids[:reused].count(image_token) // manifest.vision.tokens
        chunk = Chunk.from_ids(new, manifest.vision, first_image)
        features = self._features[first_image:]
        stacked = np.stack(features) if features else np.empty((0, 0, manifest.text.hidden))
        hidden = session.embedding.splice(new, stacked, image_token)
        wanted = min(len(ids) + options.max_new_tokens, manifest.text.max_positions)
        session.decoder.grow(-(-wanted // _CAPACITY_STEP) * _CAPACITY_STEP)
        result = session.decoder.prefill(hidden, chunk, session.select)
        self._history.prefilled(new, session.decoder.state)
        return reused, chunk, result

    def _statistics(
        self,
        marks: _Marks,
        reused: int,
        chunk: Chunk,
        result: PrefillResult,
        sampled: tuple[float, ...],
    ) -> Statistics:
        manifest, visual = self._session.bundle.manifest, len(chunk.visual())
        kept = [int(point.selection.kept.sum()) for point in result.points]
        entering = [visual, *kept]
        points = tuple(
            PointStatistics(point.before_layer, before, after, point.selection.note)
            for point, before, after in zip(result.points, entering, kept, strict=False)
        )
        entering += [entering[-1]] * (len(manifest.segments) - len(entering))
        rate = (len(sampled) - 1) / (sampled[-1] - sampled[0]) if len(sampled) > 1 else None
        step_bytes = decode_bytes(manifest, self._session.decoder.state.lengths)
        prefill = sum(call.seconds for call in result.calls)
        return Statistics(
            prompt_tokens=len(chunk),
            reused_tokens=reused,
            visual_tokens=visual,
            points=points if visual else (),
            mean_visual_tokens=mean_visual_tokens(manifest, entering) if visual else None,
            answer_tokens=len(sampled),
            preprocess_seconds=marks.prepared - marks.began,
            vision_seconds=marks.seen - marks.prepared,
            prefill_seconds=marks.prefilled - marks.seen,
            first_token_seconds=sampled[0] - marks.began,
            tokens_per_second=rate,
            prefill_gflops=prefill_flops(manifest, result.calls) / prefill / 1e9,
            decode_gbps=rate * step_bytes / 1e9 if rate else None,
            peak_memory_bytes=peak_memory_bytes(),
        )


@dataclass(frozen=True)
class _Marks:
    """Moments of a turn, in seconds of `time.perf_counter`."""

    began: float
    prepared: float
    seen: float
    prefilled: float


def _show_nothing(_piece: str) -> None:
    """For callers that want the whole answer only."""

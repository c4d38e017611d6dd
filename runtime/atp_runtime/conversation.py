"""Questions and answers that build on one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TypeAlias

from PIL import Image

from atp_runtime.answer import Answer
from atp_runtime.chat import ImagePart, Message, TextPart
from atp_runtime.context import Context, ImageFeatures
from atp_runtime.deadline import DeadlineSelectors
from atp_runtime.decoder import SegmentedDecoder
from atp_runtime.errors import InputError
from atp_runtime.generation import GenerationOptions, ShowText, generate
from atp_runtime.manifest import Manifest
from atp_runtime.photo_memory import PhotoMemory
from atp_runtime.prompt import PromptWriter
from atp_runtime.selection import SelectTokens
from atp_runtime.statistics import TurnTimes, turn_statistics
from atp_runtime.tokenizer import Tokenizer
from atp_runtime.vision import Photo, VisionEncoder

ImageSources: TypeAlias = Sequence[str | Path | Image.Image | Photo]
"""Files, images that Pillow opened, and photos that `VisionEncoder.read` read before."""


@dataclass
class Model:
    """A loaded bundle's parts.

    Attributes:
        manifest: What they are.
        tokenizer: Text to ids and back.
        writer: Conversations to ids.
        vision: Image files to photos, and photos to image features.
        memory: Those features, as long as the photo is in use.
        decoder: Hidden states to logits, with the caches.
        context: Prompts to logits: the decoder and what its caches hold.
        select: Asked at every pruning point which visual tokens stay.
    """

    manifest: Manifest
    tokenizer: Tokenizer
    writer: PromptWriter
    vision: VisionEncoder
    memory: PhotoMemory
    decoder: SegmentedDecoder
    context: Context
    select: SelectTokens


@dataclass(frozen=True, eq=False)
class _Transcript:
    """What was said and shown."""

    messages: tuple[Message, ...] = ()
    photos: tuple[Photo, ...] = ()
    features: tuple[ImageFeatures, ...] = ()

    def add(self, role: str, text: str, images: int = 0) -> _Transcript:
        message = Message(role, (*(ImagePart(),) * images, TextPart(text)))
        return replace(self, messages=(*self.messages, message))


class Conversation:
    """Turns that build on one another; `Session.conversation` begins one.

    A turn prefills only what the caches do not hold yet: images of earlier turns stay pruned as
    they were, for the question they came with. A turn that fails or is interrupted did not
    happen: the next one continues behind the last answer.

    Args:
        model: Its context is the conversation's until it ends.
        system: The system prompt; None leaves it to the chat template.

    Raises:
        InputError: The system prompt has the image placeholder in it.
    """

    def __init__(self, model: Model, system: str | None = None) -> None:
        self._transcript = _Transcript()
        if system is not None:
            model.writer.check_text(system, "the system prompt")
            self._transcript = self._transcript.add("system", system)
        self._model = model
        self._context = model.context
        self._context.restart()
        self._ended = False

    def end(self) -> None:
        """Leaves the caches to another conversation; nothing can be asked here any more."""
        self._ended = True

    def ask(
        self,
        question: str,
        images: ImageSources = (),
        options: GenerationOptions | None = None,
        show: ShowText | None = None,
    ) -> Answer:
        """Asks, and waits for the answer.

        Args:
            question: What to ask.
            images: Photos the question is about; they come before its text.
            options: How to answer; greedy, up to 256 tokens, if None.
            show: Called with each piece of the answer as soon as it is certain.

        Raises:
            InputError: The question is empty or has the image placeholder in it, an image cannot
                be read, the prompt is longer than the model's positions, or the conversation has
                ended.
            CheckFailedError: Scores or logits are not finite.
            MachineError: Memory does not suffice.
        """
        self._check(question, images)
        model, context, options = self._model, self._context, options or GenerationOptions()
        began = perf_counter()
        if isinstance(model.select, DeadlineSelectors):
            model.select.begin(began)
        asked = self._transcript.add("user", question, len(images))
        draft = model.writer.draft(asked.messages)
        photos = [it if isinstance(it, Photo) else model.vision.read(it) for it in images]
        prepared = perf_counter()
        asked = self._with_photos(asked, photos, question)
        ids = model.writer.ids(draft, [len(image.tokens) for image in asked.features])
        context.check_fits(ids, len(asked.photos))
        seen = perf_counter()
        prefill = context.prefill(
            ids, asked.features, model.select, max_new_tokens=options.max_new_tokens
        )
        prefilled = perf_counter()
        generated = generate(prefill.result.logits, context, model.tokenizer, options, show)
        self._transcript = asked.add("assistant", model.writer.quotable(generated.text))
        times = TurnTimes(began, prepared, seen, prefilled, generated.seconds)
        return Answer(
            generated.text,
            generated.ids,
            generated.finish_reason,
            prefill.result.points if len(prefill.chunk.visual()) else (),
            prefill.chunk,
            asked.photos,
            turn_statistics(model.manifest, prefill, times),
        )

    def _check(self, question: str, images: ImageSources) -> None:
        if self._ended:
            raise InputError(
                "this conversation has ended",
                why="its session was closed, or began another conversation, which uses the caches.",
                fix="begin a new conversation, or open a second session.",
            )
        if not question.strip():
            raise InputError(
                "the question is empty", why="there is nothing to answer.", fix="ask something."
            )
        self._model.writer.check_text(question, "the question")
        if isinstance(images, str | Path | Image.Image | Photo):
            raise InputError(
                "the images are not a list",
                why="a question may be about several, so they are given as a sequence.",
                fix="put the image into a list, as in images=[photo].",
            )

    def _with_photos(
        self, asked: _Transcript, photos: Sequence[Photo], question: str
    ) -> _Transcript:
        features = [self._model.memory.features(photo, question) for photo in photos]
        return replace(
            asked,
            photos=(*asked.photos, *photos),
            features=(*asked.features, *features),
        )

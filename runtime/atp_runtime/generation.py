"""The decode loop: sample, show, feed back, until something ends the answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from atp_runtime.errors import InputError
from atp_runtime.sampling import Sampler, SamplingOptions
from atp_runtime.selection import FloatArray
from atp_runtime.stopping import StopStrings
from atp_runtime.tokenizer import StreamDecoder, Tokenizer

ShowText = Callable[[str], None]


@dataclass(frozen=True)
class GenerationOptions:
    """How an answer is made.

    Attributes:
        max_new_tokens: The answer ends after so many tokens.
        sampling: How a token is picked.
        stop: Strings that end the answer; they are not part of it.
        ignore_end: Whether the answer goes on behind an end-of-sequence token, so that its length
            is known before.

    Raises:
        InputError: `max_new_tokens` is below 1, or a stop string is empty.
    """

    max_new_tokens: int = 256
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stop: tuple[str, ...] = ()
    ignore_end: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(
                f"max_new_tokens is {self.max_new_tokens}",
                why="an answer has at least one token.",
                fix="choose 1 or more.",
            )
        StopStrings(self.stop)  # refuses here what it would refuse behind the prefill


class NextLogits(Protocol):
    """What the loop needs from the decoder."""

    def has_room(self) -> bool:
        """Whether one more token fits the model's positions."""
        ...

    def feed(self, token: int) -> FloatArray:
        """Runs one token; float32 [vocabulary] for the one after it."""
        ...


@dataclass(frozen=True)
class GeneratedText:
    """What the loop made.

    Attributes:
        text: What was shown, joined.
        ids: Every sampled token, an end-of-sequence token included.
        finish_reason: What ended it: "eos" (an end-of-sequence token), "stop" (a stop string),
            "length" (`max_new_tokens`) or "context" (the model has no position left).
        seconds: When each token was sampled, in seconds of `time.perf_counter`.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: str
    seconds: tuple[float, ...]


def generate(
    logits: FloatArray,
    decoder: NextLogits,
    tokenizer: Tokenizer,
    options: GenerationOptions,
    show: ShowText | None = None,
) -> GeneratedText:
    """Samples an answer.

    Args:
        logits: float32 [vocabulary], of the prompt's last token.
        decoder: Runs the sampled tokens.
        tokenizer: Turns ids into text and knows what ends an answer.
        options: When to stop, how to pick.
        show: Called with each piece of text as soon as it is certain.

    Raises:
        CheckFailedError: The logits are not finite.
    """
    sampler, output = Sampler(options.sampling), _Output(tokenizer, options.stop, show)
    ids: list[int] = []
    seconds: list[float] = []
    while True:
        token = sampler.pick(logits)
        ids.append(token)
        seconds.append(time.perf_counter())
        if token in tokenizer.eos_token_ids and not options.ignore_end:
            reason = "eos"
            break
        output.push(token)
        if output.stopped:
            break
        if len(ids) == options.max_new_tokens:
            reason = "length"
            break
        if not decoder.has_room():
            reason = "context"
            break
        logits = decoder.feed(token)
    output.finish()
    if output.stopped:
        reason = "stop"
    return GeneratedText(output.text, tuple(ids), reason, tuple(seconds))


class _Output:
    """The answer's text on its way to the user, as far as no later token can change it."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...], show: ShowText | None) -> None:
        self._stream = StreamDecoder(tokenizer)
        self._stop = StopStrings(stop)
        self._show = show
        self._pieces: list[str] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string has appeared."""
        return self._stop.stopped

    @property
    def text(self) -> str:
        """All that was shown."""
        return "".join(self._pieces)

    def push(self, token: int) -> None:
        self._emit(self._stop.push(self._stream.push(token)))

    def finish(self) -> None:
        self._emit(self._stop.push(self._stream.flush()))
        self._emit(self._stop.flush())

    def _emit(self, piece: str) -> None:
        if piece:
            self._pieces.append(piece)
            if self._show:
                self._show(piece)

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
    """

    max_new_tokens: int = 256
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(
                f"max_new_tokens is {self.max_new_tokens}",
                why="an answer has at least one token.",
                fix="choose 1 or more.",
            )


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
        finish_reason: "eos", "stop", "length" (max_new_tokens) or "context" (no position left).
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
    show: ShowText,
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
    sampler, stream = Sampler(options.sampling), StreamDecoder(tokenizer)
    stop = StopStrings(options.stop)
    ids: list[int] = []
    seconds: list[float] = []
    pieces: list[str] = []

    def emit(piece: str) -> None:
        if piece:
            pieces.append(piece)
            show(piece)

    while True:
        token = sampler.pick(logits)
        ids.append(token)
        seconds.append(time.perf_counter())
        if token in tokenizer.eos_token_ids:
            reason = "eos"
            break
        emit(stop.push(stream.push(token)))
        if stop.stopped:
            reason = "stop"
            break
        if len(ids) >= options.max_new_tokens:
            reason = "length"
            break
        if not decoder.has_room():
            reason = "context"
            break
        logits = decoder.feed(token)
    emit(stop.push(stream.flush()))
    emit(stop.flush())
    if stop.stopped:
        reason = "stop"
    return GeneratedText("".join(pieces), tuple(ids), reason, tuple(seconds))

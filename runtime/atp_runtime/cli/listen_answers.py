"""What a request to `atp-run --listen` may say, and what comes back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atp_runtime.answer import Answer
from atp_runtime.cli.command import error_document, out_of_memory, print_error
from atp_runtime.cli.listen_clients import Client, Turn
from atp_runtime.conversation import Conversation
from atp_runtime.errors import AtpError, InputError
from atp_runtime.generation import GenerationOptions
from atp_runtime.schema import from_json, to_json
from atp_runtime.session import Session

_EXAMPLE = 'send a line such as {"question": "What is this?", "images": ["/tmp/photo.jpg"]}.'


@dataclass(frozen=True)
class Request:
    """One line of a client.

    Attributes:
        question: What to ask.
        images: Absolute paths of the photos that it is about.
        max_new_tokens: Longest answer; None for what the server was started with.
        conversation: Go on with the conversation of this connection, if it has one.
        stream: Send pieces of the answer as they come, and the whole in the end.
    """

    question: str
    images: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    conversation: bool = False
    stream: bool = False


class _HungUpError(Exception):
    """Nobody waits for the answer any more."""


class Answerer:
    """Asks a session what clients ask.

    Args:
        session: The bundle, loaded.
        generation: How to answer where a request does not say.
        system: The system prompt of every conversation.
    """

    def __init__(self, session: Session, generation: GenerationOptions, system: str | None) -> None:
        self._session = session
        self._generation = generation
        self._system = system
        self._conversation: Conversation | None = None
        self._owner: Client | None = None

    def answer(self, turn: Turn, look: Callable[[], None]) -> dict[str, Any] | None:
        """The answer to a request, if only to say why there is none; pieces of it are streamed.

        Args:
            turn: The request.
            look: Called between tokens; it notices that the client hangs up.

        Returns:
            What to send; None if nobody waits for it any more.
        """
        try:
            return self._ask(turn, look)
        except _HungUpError:
            return None
        except AtpError as error:
            return _failure(error)
        except MemoryError:
            return _failure(out_of_memory())

    def _ask(self, turn: Turn, look: Callable[[], None]) -> dict[str, Any]:
        began = time.perf_counter()
        request, client = parse_request(turn.line), turn.client
        generation = self._generation
        if request.max_new_tokens is not None:
            generation = replace(generation, max_new_tokens=request.max_new_tokens)

        def show(piece: str) -> None:
            if request.stream:
                client.send({"delta": piece})
            look()
            if client.gone:
                raise _HungUpError

        conversation = self._conversation_of(client, go_on=request.conversation)
        answer = conversation.ask(request.question, request.images, generation, show)
        return {
            **_answer_document(answer),
            "notice": self._session.model.manifest.provenance.notice,
            "waited_ms": _milliseconds(began - turn.arrived),
            "total_ms": _milliseconds(time.perf_counter() - began),
        }

    def _conversation_of(self, client: Client, *, go_on: bool) -> Conversation:
        if go_on and self._conversation and self._owner is client:
            return self._conversation
        if go_on and client.asked:
            raise InputError(
                "the conversation of this connection has ended",
                why="another client has asked since, and there is one conversation at a time.",
                fix="ask without conversation, and send the photos again.",
            )
        self._conversation, self._owner = self._session.conversation(self._system), client
        client.asked = True
        return self._conversation


def parse_request(line: bytes) -> Request:
    """Reads a request.

    Raises:
        InputError: It is not JSON, has unknown fields or fields of a wrong type, or names a photo
            by a relative path.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"request: {error}", why="it is not a line of JSON.", fix=_EXAMPLE
        ) from error
    request = from_json(Request, value, source="request", fix=_EXAMPLE)
    for image in request.images:
        if not Path(image).is_absolute():
            raise InputError(
                f"image {image!r} has a relative path",
                why="the server runs in another directory than its clients.",
                fix="send the whole path.",
            )
    return request


def _answer_document(answer: Answer) -> dict[str, Any]:
    statistics = answer.statistics
    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": statistics.prompt_tokens,
        "visual_tokens": statistics.visual_tokens,
        "points": to_json(statistics.points),
        "answer_tokens": statistics.answer_tokens,
        "first_token_ms": _milliseconds(statistics.first_token_seconds),
    }


def _failure(error: AtpError) -> dict[str, Any]:
    """The error for the client; what is not the client's doing is told on standard error, too."""
    if not isinstance(error, InputError):
        print_error("atp-run", error)
    return {"error": error_document(error)}


def _milliseconds(seconds: float) -> float:
    return round(1e3 * seconds, 1)

"""Turns a tokenizer's decoder into stages that tokens can pass through one at a time.

The `tokenizers` library decodes a whole answer at once. Decoding again after every token costs
more the longer the answer is, and the text of a token can still change when the next one comes:
a character may be half there, and SentencePiece's byte tokens turn into replacement characters
together. Here each step of the decoder gives out what no later token can change, and keeps the
rest. A decoder with steps not known here is asked once, at the end.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any, Protocol

from tokenizers import Regex, decoders
from tokenizers.decoders import Decoder

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Stage(Protocol):
    """One step of a decoder, fed token by token."""

    def push(self, token: str) -> list[str]:
        """What became certain by this token, as tokens for the next stage."""
        ...

    def flush(self) -> list[str]:
        """What was still kept when the answer ended."""
        ...


def streaming_stages(decoder: Decoder | None) -> list[Stage]:
    """The stages that together give, piece by piece, what `decoder` gives for all tokens.

    Args:
        decoder: The `decoder` of a `tokenizers.Tokenizer`; None joins tokens with spaces.
    """
    if decoder is None:
        return [_AtTheEnd(None)]
    stages: list[Stage] = []
    joined = False
    for step in _steps(json.loads(decoder.__getstate__())):
        if step["type"] == "Fuse":
            joined = True
            continue
        stage = _after_joining(step) if joined else _before_joining(step)
        if stage is None:
            return [_AtTheEnd(decoder)]
        stages.append(stage)
        joined = joined or step["type"] == "ByteLevel"
    return stages


def _steps(state: dict[str, Any]) -> list[dict[str, Any]]:
    if state["type"] != "Sequence":
        return [state]
    return [step for part in state["decoders"] for step in _steps(part)]


def _before_joining(step: dict[str, Any]) -> Stage | None:
    """The stage for a step that still sees single tokens."""
    stage: Stage | None = None
    match step:
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)}:
            stage = _EachToken(decoders.Replace(pattern, content))
        case {"type": "Replace", "pattern": {"Regex": str(pattern)}, "content": str(content)}:
            stage = _EachToken(decoders.Replace(Regex(pattern), content))
        case {"type": "Strip", "content": str(content), "start": int(start), "stop": int(stop)}:
            stage = _EachToken(decoders.Strip(content, start, stop))
        case {"type": "Metaspace", "replacement": str(mark), "prepend_scheme": str(scheme)}:
            stage = _FirstTokenDiffers(decoders.Metaspace(mark, scheme))
        case {"type": "ByteFallback"}:
            stage = _ByteRuns()
        case {"type": "ByteLevel"}:
            stage = _ByteLevel()
    return stage


def _after_joining(step: dict[str, Any]) -> Stage | None:
    """The stage for a step that sees the whole answer as one token."""
    match step:
        case {"type": "Strip", "content": str(content), "start": int(start), "stop": 0}:
            return _StripHead(content, start)
    return None


class _EachToken:
    """A step that treats every token alike."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def push(self, token: str) -> list[str]:
        return [self._decoder.decode([token])]

    def flush(self) -> list[str]:
        return []


class _FirstTokenDiffers:
    """A step that only needs to know which token is the first."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._before: list[str] = []

    def push(self, token: str) -> list[str]:
        text = self._decoder.decode([*self._before, token])
        self._before = [""]
        return [text]

    def flush(self) -> list[str]:
        return []


class _ByteRuns:
    """SentencePiece's byte tokens: a run is text only if the whole of it is valid UTF-8."""

    def __init__(self) -> None:
        self._run = bytearray()

    def push(self, token: str) -> list[str]:
        byte = _BYTE_TOKEN.fullmatch(token)
        if byte:
            self._run.append(int(byte[1], 16))
            return []
        return [*self.flush(), token]

    def flush(self) -> list[str]:
        run, self._run = bytes(self._run), bytearray()
        if not run:
            return []
        try:
            return [run.decode("utf-8")]
        except UnicodeDecodeError:
            return ["\ufffd"] * len(run)


class _ByteLevel:
    """GPT-2's alphabet: each character of a token is a byte of the UTF-8 text."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: str) -> list[str]:
        try:
            data = bytes(_BYTE_OF_CHARACTER[character] for character in token)
        except KeyError:  # an added token may be any text; the library then takes it literally
            data = token.encode("utf-8")
        return [self._utf8.decode(data)]

    def flush(self) -> list[str]:
        return [self._utf8.decode(b"", final=True)]


class _StripHead:
    """Drops up to `count` times a character from the start of the whole answer."""

    def __init__(self, content: str, count: int) -> None:
        self._content = content
        self._left = count

    def push(self, token: str) -> list[str]:
        while self._left and token:
            if not token.startswith(self._content):
                self._left = 0
                break
            token = token[len(self._content) :]
            self._left -= 1
        return [token]

    def flush(self) -> list[str]:
        return []


class _AtTheEnd:
    """Any other decoder: asked once, when all tokens are there."""

    def __init__(self, decoder: Decoder | None) -> None:
        self._decoder = decoder
        self._tokens: list[str] = []

    def push(self, token: str) -> list[str]:
        self._tokens.append(token)
        return []

    def flush(self) -> list[str]:
        tokens, self._tokens = self._tokens, []
        if self._decoder is None:
            return [" ".join(tokens)]
        return [self._decoder.decode(tokens)]


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's alphabet: printable Latin-1 stands for itself, the rest follows 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


_BYTE_OF_CHARACTER = _byte_alphabet()

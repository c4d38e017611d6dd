"""What asking a question gives."""

from __future__ import annotations

from dataclasses import dataclass

from atp_runtime.chunk import Chunk
from atp_runtime.decoder_results import PointResult
from atp_runtime.statistics import Statistics
from atp_runtime.vision import Photo


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model said, and how.

    Attributes:
        text: The answer.
        ids: Its tokens, an end-of-sequence token included.
        finish_reason: "eos", "stop", "length" or "context", see `GeneratedText`.
        points: What happened at each pruning point of this turn; empty if it had no image.
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

"""Accuracy against budget: a table and a picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_SIZE = (960, 600)
_LEFT, _RIGHT, _TOP, _BOTTOM = 96, 40, 72, 88
_PAPER, _INK, _FAINT, _GRID = (255, 255, 255), (32, 36, 42), (92, 98, 106), (226, 229, 233)
_LINE, _CHOSEN = (30, 99, 180), (200, 70, 30)
_FONT, _TITLE = 16, 20
_TICKS = 6


@dataclass(frozen=True)
class CurvePoint:
    """One pruning, and what it gives.

    Attributes:
        label: "unpruned", "bundle" as it was, "fitted" to the target, or the factor by which its
            mean counts differ from those of the bundle.
        tokens: Visual tokens of an image, averaged over all layers and samples.
        speedup: Of the decoder's prefill over the unpruned one.
        first_token_ms: By the latency model; None without one.
        score: The mean, 0 to 1.
        low: The lower end of its 95 % interval.
        high: The upper one.
    """

    label: str
    tokens: float
    speedup: float
    first_token_ms: float | None
    score: float
    low: float
    high: float


def curve_csv(points: Sequence[CurvePoint]) -> str:
    """The table, by falling tokens."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", "tokens", "speedup", "first_token_ms", "score", "low", "high"])
    for it in _sorted(points)[::-1]:
        times = "" if it.first_token_ms is None else f"{it.first_token_ms:.2f}"
        numbers = [f"{it.tokens:.2f}", f"{it.speedup:.3f}", times]
        writer.writerow([it.label, *numbers, *(f"{v:.4f}" for v in (it.score, it.low, it.high))])
    return text.getvalue()


def draw_curve(points: Sequence[CurvePoint], title: str, score_name: str) -> Image.Image:
    """The picture: score over tokens, intervals as bars, the fitted point marked.

    Args:
        points: At least one.
        title: Above it.
        score_name: Of the vertical axis.
    """
    page = Image.new("RGB", _SIZE, _PAPER)
    draw = ImageDraw.Draw(page)
    plot = _Plot(draw, max(it.tokens for it in points) * 1.05)
    plot.axes(title, score_name)
    ordered = _sorted(points)
    places = [plot.place(it.tokens, it.score) for it in ordered]
    draw.line(places, fill=_LINE, width=3, joint="curve")
    for it, (x, y) in zip(ordered, places, strict=True):
        colour = _CHOSEN if it.label == "fitted" else _LINE
        _, low = plot.place(it.tokens, it.low)
        _, high = plot.place(it.tokens, it.high)
        draw.line([(x, low), (x, high)], fill=colour, width=1)
        draw.ellipse([x - 5, y - 5, x + 5, y + 5], fill=colour)
        if it.label in ("unpruned", "bundle", "fitted"):
            draw.text((x, high - 8), it.label, colour, ImageFont.load_default(_FONT), anchor="ms")
    return page


def _sorted(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    return sorted(points, key=lambda it: it.tokens)


class _Plot:
    """Where values are on the page: tokens from 0, scores from 0 to 1."""

    def __init__(self, draw: ImageDraw.ImageDraw, most: float) -> None:
        self._draw = draw
        self._most = most
        self._width = _SIZE[0] - _LEFT - _RIGHT
        self._height = _SIZE[1] - _TOP - _BOTTOM

    def place(self, tokens: float, score: float) -> tuple[float, float]:
        x = _LEFT + self._width * tokens / self._most
        return x, _TOP + self._height * (1 - score)

    def axes(self, title: str, score_name: str) -> None:
        draw, font = self._draw, ImageFont.load_default(_FONT)
        draw.text((_LEFT, 24), title, _INK, ImageFont.load_default(_TITLE))
        draw.text((_LEFT, _TOP - 22), score_name, _FAINT, font)
        for percent in range(0, 101, 20):
            _, y = self.place(0, percent / 100)
            draw.line([(_LEFT, y), (_LEFT + self._width, y)], fill=_GRID)
            draw.text((_LEFT - 10, y), f"{percent} %", _FAINT, font, anchor="rm")
        step = _round_step(self._most / _TICKS)
        for number in range(int(self._most / step) + 1):
            x, y = self.place(number * step, 0)
            draw.line([(x, y), (x, y + 6)], fill=_FAINT)
            draw.text((x, y + 12), f"{number * step:g}", _FAINT, font, anchor="ma")
        words = "visual tokens of an image, averaged over all layers"
        middle = _LEFT + self._width / 2
        draw.text((middle, _SIZE[1] - 36), words, _FAINT, font, anchor="ma")


def _round_step(width: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50 ..."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(power * lead for lead in (1, 2, 5, 10) if power * lead >= width)

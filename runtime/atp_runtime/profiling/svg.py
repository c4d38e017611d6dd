"""Pictures of numbers as SVG: what the charts of the HTML report are drawn with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH = 920
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 12, 40


def rectangle(x: float, y: float, width: float, height: float, colour: str, title: str) -> str:
    """A bar that tells its title when pointed at."""
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(width, 0.5):.2f}" height="{height:.2f}" '
        f'class="{colour}"><title>{escape(title)}</title></rect>'
    )


def text(x: float, y: float, words: str, anchor: str = "start", css: str = "") -> str:
    """A line of text; `anchor` is "start", "middle" or "end"."""
    css = f' class="{css}"' if css else ""
    return f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}"{css}>{escape(words)}</text>'


def picture(height: float, parts: Sequence[str], told: str) -> str:
    """An SVG element as wide as the page; `told` is what it shows, for those who cannot see it."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(told)}">'
        f"{''.join(parts)}</svg>"
    )


class Axes:
    """A chart's frame: from numbers to places.

    Args:
        x: The least and the greatest number across.
        y: Likewise, upwards.
        height: Of the whole chart.
        logarithmic: Whether both axes are; all numbers must then be above 0.
    """

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        height: float = 260,
        *,
        logarithmic: bool = False,
    ) -> None:
        self._x, self._y = x, y
        self._height = height
        self._logarithmic = logarithmic

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Of a point."""
        across = self._share(x, self._x) * (WIDTH - _LEFT - _RIGHT) + _LEFT
        down = (1 - self._share(y, self._y)) * (self._height - _TOP - _BOTTOM) + _TOP
        return across, down

    def line(self, points: Sequence[tuple[float, float]], css: str) -> str:
        """Through points."""
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.place(*it) for it in points))
        return f'<polyline points="{places}" class="line {css}"/>'

    def dot(self, x: float, y: float, css: str, title: str) -> str:
        """A point that tells its title when pointed at."""
        across, down = self.place(x, y)
        told = f"<title>{escape(title)}</title>"
        return f'<circle cx="{across:.1f}" cy="{down:.1f}" r="5" class="{css}">{told}</circle>'

    def frame(self, across: str, upwards: str, names: Sequence[str] = ()) -> list[str]:
        """Lines with their numbers, and what the axes show.

        Args:
            across: What the horizontal axis shows.
            upwards: What the vertical one shows.
            names: Of the unit steps across, instead of numbers.
        """
        parts = []
        for value in _ticks(self._y, logarithmic=self._logarithmic):
            left, down = self.place(self._x[0], value)
            right, _ = self.place(self._x[1], value)
            parts.append(
                f'<line x1="{left}" y1="{down:.1f}" x2="{right}" y2="{down:.1f}" class="rule"/>'
            )
            parts.append(text(left - 8, down + 4, f"{value:g}", "end", "small"))
        ticks = [(value, f"{value:g}") for value in _ticks(self._x, logarithmic=self._logarithmic)]
        for value, told in [(at + 0.5, name) for at, name in enumerate(names)] or ticks:
            place, down = self.place(value, self._y[0])
            parts.append(text(place, down + 16, told, "middle", "small"))
        foot = self._height - 6
        parts.append(text((_LEFT + WIDTH - _RIGHT) / 2, foot, across, "middle", "small"))
        turned = f'transform="rotate(-90 14 {self._height / 2:.0f})"'
        corner = f'x="14" y="{self._height / 2:.0f}"'
        parts.append(
            f'<text {corner} {turned} text-anchor="middle" class="small">{escape(upwards)}</text>'
        )
        return parts

    def _share(self, value: float, ends: tuple[float, float]) -> float:
        if self._logarithmic:
            low, high, at = (math.log10(it) for it in (*ends, value))
        else:
            (low, high), at = ends, value
        return (at - low) / (high - low) if high > low else 0.5


def _ticks(ends: tuple[float, float], *, logarithmic: bool) -> list[float]:
    """Round numbers from one end to the other: powers of ten, or up to six even steps."""
    low, high = ends
    if logarithmic:
        powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        return [10.0**power for power in powers]
    if high <= low:
        return [low]
    rough = (high - low) / 5
    size = 10 ** math.floor(math.log10(rough))
    step = next(it * size for it in (1, 2, 5, 10) if it * size >= rough)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]

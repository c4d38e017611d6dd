"""A comparison as a picture: the score against what it costs, four times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from atp_runtime.policies.result import Comparison, PolicyResult
from atp_runtime.profiling.svg import WIDTH, Axes, text

_HEIGHT = 250
_LINE = 13  # between two labels
_CHARACTER = 6.6  # of a label, on average
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1d2230}.small{font-size:12px;fill:#5b6375}"
    ".rule{stroke:#dfe3ea}.policy{fill:#1273c4}.first{fill:#d9481c}.paper{fill:#fff}"
)
_COSTS: tuple[tuple[str, Callable[[PolicyResult], float]], ...] = (
    ("milliseconds to the first token", lambda it: 1e3 * it.first_token_seconds),
    ("tokens per second after it", lambda it: it.tokens_per_second),
    ("keys and values at the end of an answer, MiB", lambda it: it.cache_bytes / 2**20),
    ("GFLOP up to the first token", lambda it: it.gflops),
)


def comparison_svg(comparison: Comparison) -> str:
    """The picture, a file of its own."""
    told = f"{comparison.metric} of {len(comparison.results)} policies against what they cost"
    height = _HEIGHT * len(_COSTS)
    panels = [
        f'<g transform="translate(0 {_HEIGHT * number})">{"".join(panel)}</g>'
        for number, panel in enumerate(_panel(comparison, *cost) for cost in _COSTS)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(told)}"><style>{_STYLE}</style>'
        f'<rect width="{WIDTH}" height="{height}" class="paper"/>{"".join(panels)}</svg>\n'
    )


def _panel(comparison: Comparison, across: str, cost: Callable[[PolicyResult], float]) -> list[str]:
    results = comparison.results
    costs, scores = [cost(it) for it in results], [100 * it.score.mean for it in results]
    axes = Axes(_around(costs, least=0), _around(scores, least=0, most=100), _HEIGHT)
    parts = axes.frame(across, f"{comparison.metric}, %")
    taken: list[tuple[float, float, float]] = []
    for number, (it, x, y) in enumerate(zip(results, costs, scores, strict=True)):
        kind = "policy" if number else "first"
        parts.append(axes.dot(x, y, kind, f"{it.policy}: {y:.1f} %, {x:.1f} {across}"))
        parts.append(_label(it.policy, axes.place(x, y), taken))
    return parts


def _label(name: str, dot: tuple[float, float], taken: list[tuple[float, float, float]]) -> str:
    """Beside a dot, where no other label stands."""
    width = _CHARACTER * len(name)
    fits = dot[0] + 10 + width < WIDTH
    left = dot[0] + 10 if fits else dot[0] - 10 - width
    heights = (dot[1] + 4 + step * _LINE for step in (0, -1, 1, -2, 2, -3, 3))
    free = (y for y in heights if not any(_meet((left, y, width), it) for it in taken))
    height = next(free, dot[1] + 4)
    taken.append((left, height, width))
    return text(left, height, name, css="small")


def _meet(one: tuple[float, float, float], other: tuple[float, float, float]) -> bool:
    apart = one[0] + one[2] < other[0] or other[0] + other[2] < one[0]
    return not apart and abs(one[1] - other[1]) < _LINE


def _around(
    values: Sequence[float], *, least: float, most: float = float("inf")
) -> tuple[float, float]:
    """Ends of an axis, with room around the values."""
    low, high = min(values), max(values)
    room = (high - low) * 0.12 or max(abs(high), 1) * 0.1
    return max(low - room, least), min(high + room, most)

"""A curve as CSV and as a picture that stands by itself."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from tests.benchmarks.scaling.curves import AFTER, FIRST, Curve, Point

from atp_runtime.profiling.svg import Axes, picture, text

_HEIGHT = 320
_STYLE = """<style>
svg { background: #fff; font: 13px system-ui, sans-serif; } text { fill: #1d2230; }
.small { font-size: 12px; fill: #6c7486; } .rule { stroke: #dfe3ea; }
.line { fill: none; stroke-width: 2; } .line.first { stroke: #1273c4; }
.line.later { stroke: #d9481c; } circle.first, text.first { fill: #1273c4; }
circle.later, text.later { fill: #d9481c; }
</style>"""


def curve_csv(points: Sequence[Point]) -> str:
    """One line per point, times in milliseconds."""
    told = io.StringIO()
    lines = csv.writer(told, lineterminator="\n")
    lines.writerow(("value", "first_token_ms", "later_tokens_ms"))
    for it in points:
        times = (f"{1e3 * seconds:.6g}" for seconds in (it.first_seconds, it.later_seconds))
        lines.writerow((it.value, *times))
    return told.getvalue()


def curve_svg(curve: Curve, points: Sequence[Point], later: str = AFTER) -> str:
    """Both times against what is varied."""
    series = {
        "first": [(it.value, 1e3 * it.first_seconds) for it in points],
        "later": [(it.value, 1e3 * it.later_seconds) for it in points],
    }
    most = max(took for places in series.values() for _, took in places)
    axes = Axes((0, max(it.value for it in points) * 1.02), (0, most * 1.1), _HEIGHT)
    parts = axes.frame(curve.across, "milliseconds")
    names = {"first": FIRST, "later": later}
    for number, (css, places) in enumerate(series.items()):
        parts.append(axes.line(places, css))
        parts += [axes.dot(x, y, css, f"{names[css]}: {x:g}, {y:.1f} ms") for x, y in places]
        parts.append(text(84, 30 + 18 * number, names[css], css=css))
    drawn = picture(_HEIGHT, parts, curve.title)
    head, _, rest = drawn.partition(">")
    named = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{named}>{_STYLE}{rest}\n"

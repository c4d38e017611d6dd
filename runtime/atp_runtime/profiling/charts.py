"""The charts of a profile's HTML report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from atp_runtime.profiling.profile_file import Mode, Profile, Row
from atp_runtime.profiling.svg import WIDTH, Axes, picture, rectangle, text
from atp_runtime.profiling.timed_turn import DECODE, PREFILL

_BAR, _GAP, _LABELS = 44, 40, 70
_WIDE = 72  # a bar this wide has room for its name
_HOST = ("embed and splice", "embed and hand over", "hand over", "sample", "tokenise", "photo")


def waterfall(profile: Profile) -> str:
    """From the question to the first token, part by part, each mode in a line of its own."""
    longest = max(mode.first_token.median for mode in profile.modes.values())
    parts: list[str] = []
    for number, (name, mode) in enumerate(profile.modes.items()):
        top = number * (_BAR + _GAP) + 4
        parts.append(text(0, top + _BAR / 2 + 4, name))
        parts += _bars(mode, top, (WIDTH - _LABELS) / longest)
    height = len(profile.modes) * (_BAR + _GAP)
    return picture(height, parts, "what the time to the first token consists of")


def tokens(profile: Profile) -> str:
    """How many tokens each segment runs."""
    modes = {
        name: [
            (row.name, row.entering or 0.0)
            for row in mode.rows
            if row.phase == PREFILL and row.name.startswith("segment")
        ]
        for name, mode in profile.modes.items()
    }
    most = max(count for rows in modes.values() for _, count in rows)
    names = [_short(name) for name, _ in next(iter(modes.values()))]
    axes = Axes((0, len(names)), (0, most * 1.1), 240)
    parts = axes.frame("", "tokens", names)
    width = 0.8 / len(modes)
    for order, (name, rows) in enumerate(modes.items()):
        for number, (segment, count) in enumerate(rows):
            left, top = axes.place(number + 0.1 + order * width, count)
            right, foot = axes.place(number + 0.1 + (order + 1) * width, 0)
            told = f"{segment}, {name}: {count:.0f} tokens"
            parts.append(rectangle(left, top, right - left - 2, foot - top, name, told))
            parts.append(text((left + right) / 2, top - 3, f"{count:.0f}", "middle", "small"))
    return picture(240, parts, "tokens that each segment runs")


def roofline(profile: Profile) -> str:
    """Every stage's speed by the operations it has for each byte, below the machine's limits."""
    points = list(_points(profile))
    ceiling = profile.ceiling
    if ceiling is None or not points:
        return ""
    intensities = [it[0] for it in points]
    speeds = [it[1] for it in points]
    x = min(intensities) / 3, max(*intensities, 3 * ceiling.gflops / ceiling.gbps)
    y = min(speeds) / 3, ceiling.gflops * 2
    axes = Axes(x, y, 320, logarithmic=True)
    knee = ceiling.gflops / ceiling.gbps
    roof = [(x[0], max(x[0] * ceiling.gbps, y[0])), (knee, ceiling.gflops), (x[1], ceiling.gflops)]
    parts = axes.frame("operations per byte", "GFLOP/s")
    parts.append(axes.line(roof, "roof"))
    parts += [axes.dot(at, speed, mode, told) for at, speed, mode, told in points]
    return picture(320, parts, "speed of the stages against the machine's limits")


def memory(profile: Profile) -> str:
    """The process's memory during an answer of each mode."""
    curves = {name: mode.memory for name, mode in profile.modes.items() if mode.memory}
    if not curves:
        return ""
    samples = [sample for curve in curves.values() for sample in curve]
    sizes = [sample.resident_bytes / 2**20 for sample in samples]
    longest = max(sample.seconds for sample in samples)
    axes = Axes((0, max(longest, 1e-3)), (min(sizes) * 0.95, max(sizes) * 1.02 + 1), 240)
    parts = axes.frame("seconds", "MiB")
    for name, curve in curves.items():
        points = [(sample.seconds, sample.resident_bytes / 2**20) for sample in curve]
        parts.append(axes.line(points, name))
    return picture(240, parts, "memory during an answer")


def part_name(row: Row) -> str:
    """Of a row, as people say it."""
    return row.name if row.name == row.phase else f"{row.phase} {row.name}"


def _bars(mode: Mode, top: float, scale: float) -> Iterator[str]:
    left = float(_LABELS)
    for row in mode.rows:
        if row.phase == DECODE:
            continue
        width = row.seconds.median * scale
        told = f"{part_name(row)}: {1e3 * row.seconds.median:.2f} ms"
        yield rectangle(left, top, width, _BAR, _colour(row), told)
        if width >= _WIDE:
            yield text(left + 5, top + 18, _short(row.name), css="bar")
            yield text(left + 5, top + 34, f"{1e3 * row.seconds.median:.1f} ms", css="bar")
        left += width
    whole = f"{1e3 * mode.first_token.median:.1f} ms to the first token"
    yield text(_LABELS, top + _BAR + 16, whole, css="small")


def _short(name: str) -> str:
    return name.replace("segment_", "segment ")


def _colour(row: Row) -> str:
    if row.name.startswith("select"):
        return "select"
    if row.name in _HOST:
        return "host"
    if row.name.startswith("segment"):
        return "segment-even" if int(row.name.rpartition("_")[2]) % 2 == 0 else "segment-odd"
    return row.phase if row.phase == "vision" else "head"


def _points(profile: Profile) -> Iterator[tuple[float, float, str, str]]:
    """Operations per byte, GFLOP/s, the mode, and what to tell."""
    for name, mode in profile.modes.items():
        for row in _known(mode.rows):
            intensity = row[1] / row[2]
            told = f"{name}, {part_name(row[0])}: {row[1]:.1f} GFLOP/s, {row[2]:.1f} GB/s"
            yield intensity, row[1], name, told


def _known(rows: Sequence[Row]) -> Iterator[tuple[Row, float, float]]:
    for row in rows:
        if row.gflops and row.gbps:
            yield row, row.gflops, row.gbps

"""A profile for people at a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from atp_runtime.profiling.limits import share_of_ceiling
from atp_runtime.profiling.profile_file import DENSE, PRUNED, Mode, Profile, Row
from atp_runtime.profiling.sensors import STATE, SensorRow
from atp_runtime.profiling.shares import share_lines
from atp_runtime.profiling.timed_turn import DECODE, PHASES

_NAME = 22


def text_report(profile: Profile) -> list[str]:
    """The profile as lines."""
    return [*_head(profile), "", *_table(profile), "", *_tail(profile)]


def _head(profile: Profile) -> Iterator[str]:
    bundle, asked = profile.bundle, profile.asked
    yield f"{bundle.name}: {bundle.precision}, {bundle.layers} layers; {profile.setting}"
    questions = f"{asked.questions} questions of" if asked.questions > 1 else "a question about"
    yield f"{asked.runs} runs of {questions} {asked.source}, {asked.new_tokens} tokens each"
    if profile.ceiling:
        best = profile.ceiling
        yield f"the machine's best: {best.gflops:.0f} GFLOP/s, {best.gbps:.1f} GB/s"


def _table(profile: Profile) -> Iterator[str]:
    modes = [(name, profile.modes[name]) for name in (DENSE, PRUNED) if name in profile.modes]
    columns = "".join(f"{name + ' tokens':>15}{'ms':>10}{'of best':>9}" for name, _ in modes)
    yield f"{'':<{_NAME}}{columns}"
    names = dict.fromkeys((row.phase, row.name) for _, mode in modes for row in mode.rows)
    for phase in PHASES:
        per = ", each token" if phase == DECODE else ""
        mine = [name for part, name in names if part == phase]
        if mine:
            yield f"{phase}{per}"
        for name in mine:
            cells = "".join(_cells(profile, mode, phase, name) for _, mode in modes)
            yield f"  {name:<{_NAME - 2}}{cells}"
    firsts = [mode.first_token for _, mode in modes]
    yield _whole("first token", [it.median for it in firsts])
    yield _whole("  fastest", [it.minimum for it in firsts])
    yield _whole("  90 % of runs within", [it.p90 for it in firsts])
    tokens = [mode.token.median for _, mode in modes if mode.token]
    if len(tokens) == len(modes):
        yield _whole("each token after it", tokens)


def _cells(profile: Profile, mode: Mode, phase: str, name: str) -> str:
    row = next((it for it in mode.rows if (it.phase, it.name) == (phase, name)), None)
    if row is None:
        return " " * 34
    share = share_of_ceiling(row, profile.ceiling)
    told = f"{100 * share:.0f} %" if share is not None else ""
    return f"{_tokens(row):>15}{_ms(row.seconds.median):>10}{told:>9}"


def _tokens(row: Row) -> str:
    if row.entering is None or row.phase == DECODE:
        return "" if row.leaving is None or row.phase == DECODE else f"{row.leaving:.0f}"
    if row.entering == row.leaving:
        return f"{row.entering:.0f}"
    return f"{row.entering:.0f} > {row.leaving:.0f}"


def _whole(name: str, seconds: Sequence[float]) -> str:
    return f"{name:<{_NAME}}" + "".join(f"{'':>15}{_ms(it):>10}{'':>9}" for it in seconds)


def _tail(profile: Profile) -> Iterator[str]:
    for name, mode in profile.modes.items():
        yield (
            f"{name}: {mode.visual_tokens:.1f} visual tokens on average over the layers, "
            f"{mode.cache_bytes / 2**20:.1f} MiB of keys and values{_joules(mode)}"
        )
    yield from share_lines(profile)
    if profile.speedup:
        yield f"pruning brings the first token {profile.speedup:.2f} times sooner"
    cold = profile.cold
    yield (
        f"cold start: {_ms(cold.load_seconds)} ms to load, then {_ms(cold.first_token_seconds)} ms "
        f"to the first token; peak memory {profile.peak_memory_bytes / 2**20:.0f} MiB"
    )
    yield from (sensor_line(row) for row in profile.sensors)
    yield f"reading the clock took {1e3 * profile.clock_seconds:.3f} ms of each answer"


def sensor_line(row: SensorRow) -> str:
    """What a sensor showed."""
    if row.least is None or row.mean is None or row.most is None:
        return f"{row.name}: could not be read ({row.problem})"
    if row.unit == STATE:
        return f"{row.name} set in: up to {row.most:.0f}, on average {row.mean:.1f}"
    missing = f"; at times it could not be read ({row.problem})" if row.problem else ""
    return f"{row.name}: {row.mean:.1f} {row.unit}, {row.least:.1f} to {row.most:.1f}{missing}"


def _joules(mode: Mode) -> str:
    return "" if mode.joules is None else f", {mode.joules:.2f} J per answer"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"

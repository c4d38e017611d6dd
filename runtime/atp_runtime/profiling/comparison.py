"""Two profiles side by side, and whether the second is slower."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from atp_runtime.profiling.profile_file import Mode, Profile, Spread


@dataclass(frozen=True)
class Difference:
    """Of one time.

    Attributes:
        mode: "dense" or "pruned".
        name: "first token", "each token", or a phase and what runs in it.
        before: Of the first profile.
        after: Of the second.
        slower: Whether it counts as a regression: the median rose by more than the threshold and
            is above what nine of ten runs took before.
    """

    mode: str
    name: str
    before: Spread
    after: Spread
    slower: bool

    @property
    def change(self) -> float:
        """Of the median, as a share of what it was."""
        return self.after.median / self.before.median - 1 if self.before.median else 0.0

    @property
    def noise(self) -> float:
        """How far the runs of one profile are apart, minimum to 90 %, as a share of the median."""
        spreads = [it for it in (self.before, self.after) if it.median]
        return max(((it.p90 - it.minimum) / it.median for it in spreads), default=0.0)


@dataclass(frozen=True)
class Comparison:
    """All differences, and what makes them doubtful.

    Attributes:
        differences: First tokens and tokens, then stage by stage; what only one profile has is
            not among them.
        cautions: In what the profiles differ besides their times.
    """

    differences: tuple[Difference, ...]
    cautions: tuple[str, ...]

    @property
    def regressions(self) -> tuple[Difference, ...]:
        """Of whole answers; a stage alone fails nothing."""
        return tuple(it for it in self.differences if it.slower and it.name in WHOLE)


FIRST, EACH = "first token", "each token"
WHOLE = (FIRST, EACH)


def compare_profiles(before: Profile, after: Profile, threshold: float) -> Comparison:
    """Compares the modes that both have.

    Args:
        before: What it was.
        after: What it is.
        threshold: The share by which a median may rise.
    """
    differences = [
        Difference(mode, name, one, other, _slower(one, other, threshold))
        for mode in before.modes
        if mode in after.modes
        for name, one, other in _pairs(before.modes[mode], after.modes[mode])
    ]
    return Comparison(tuple(differences), tuple(_cautions(before, after)))


def write_comparison(comparison: Comparison) -> list[str]:
    """The comparison as lines for people."""
    lines = [f"{'':<32}{'before':>11}{'after ms':>11}{'change':>9}{'noise':>8}"]
    for it in comparison.differences:
        name = f"{it.mode}, {it.name}"
        told = "  slower" if it.slower else ""
        times = f"{1e3 * it.before.median:>11.2f}{1e3 * it.after.median:>11.2f}"
        lines.append(f"{name:<32}{times}{100 * it.change:>+8.1f}%{100 * it.noise:>7.1f}%{told}")
    return lines + [f"note: {caution}" for caution in comparison.cautions]


def _pairs(before: Mode, after: Mode) -> Iterator[tuple[str, Spread, Spread]]:
    yield FIRST, before.first_token, after.first_token
    if before.token and after.token:
        yield EACH, before.token, after.token
    others = {(row.phase, row.name): row for row in after.rows}
    for row in before.rows:
        other = others.get((row.phase, row.name))
        if other:
            yield f"{row.phase} {row.name}", row.seconds, other.seconds


def _slower(before: Spread, after: Spread, threshold: float) -> bool:
    return after.median > before.median * (1 + threshold) and after.median > before.p90


def _cautions(before: Profile, after: Profile) -> Iterator[str]:
    if before.bundle.graphs != after.bundle.graphs:
        names = f"{before.bundle.name} and {after.bundle.name}"
        yield f"the bundles differ: {names} have other graphs"
    if before.setting != after.setting:
        yield f"measured on {before.setting}, then on {after.setting}"
    if before.asked.source != after.asked.source:
        yield f"asked about {before.asked.source}, then about {after.asked.source}"
    if before.asked.new_tokens != after.asked.new_tokens:
        yield f"answers of {before.asked.new_tokens}, then of {after.asked.new_tokens} tokens"
    missing = sorted(set(before.modes) ^ set(after.modes))
    if missing:
        yield f"only one of them has {' and '.join(missing)}"

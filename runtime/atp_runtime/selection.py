"""Which visual tokens live: the rules that turn a segment's scores into kept tokens.

A segment that ends at a pruning point returns two scores per token of its sequence. The
point's rule looks at those of the visual tokens, image by image, and says who stays. Text
tokens are never shown to a rule, so no rule can drop them; the order never changes.

The rules themselves are in `atp_runtime.pruning_rules`. What they share is done once, here:
`min_keep` and `max_keep`, ties (the earlier token stays), scores that are not numbers, and
saying so when nothing was dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from atp_runtime.atp import AtpWeights, load_pruning_weights
from atp_runtime.errors import CheckFailedError, InputError
from atp_runtime.manifest import Manifest
from atp_runtime.merges import Merges, Shares
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.pruning_rules import KeepAll, rule
from atp_runtime.rule import ImageScores, Rule, Verdict
from atp_runtime.schema import from_json, to_json

BoolArray = npt.NDArray[np.bool_]
IndexArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class VisualTokens:
    """The n visual tokens of a sequence, in its order.

    Attributes:
        index: int64 [n], rising: where each stands in the current sequence.
        image: int64 [n]: the image each belongs to, counted through the conversation.
        row: int64 [n]: the row of its patch, -1 for a feature that has no place on the
            grid, such as a class token or one that others were merged into.
        column: int64 [n]: the column of its patch, -1 likewise.
        hidden: Downloads their hidden states, float32 [n, hidden], for rules that ask; None where a
            rule is asked about scores alone.
        attention: Downloads what each asked token pays to each of them, float32 [rows, n], of a
            point that has `rows`; likewise.
    """

    index: IndexArray
    image: IndexArray
    row: IndexArray
    column: IndexArray
    hidden: Callable[[], FloatArray] | None = None
    attention: Callable[[], FloatArray] | None = None

    def __len__(self) -> int:
        return len(self.index)

    def survivors(self, kept: BoolArray, merges: Merges | None = None) -> VisualTokens:
        """The tokens left by `kept` (bool [n]), where they stand once the others are gone."""
        gone_before = np.cumsum(~kept)
        row, column = self.row.copy(), self.column.copy()
        if merges is not None:
            row[merges.place] = column[merges.place] = -1
        return VisualTokens(
            (self.index - gone_before)[kept], self.image[kept], row[kept], column[kept]
        )


@dataclass(frozen=True)
class Selection:
    """What a rule decided.

    Attributes:
        kept: bool [n], per visual token; one in whose place a merged one stands counts as kept.
        note: Says so when the rule did nothing, or less than its name promises; it counts
            images from 1.
        diagnostics: Per image, by its number: "tokens", "kept" and what the rule measured,
            such as "theta_r" and "theta_s"; with a `Limit` also "wanted", what would have been
            kept without it; of a rule that merges also "merged", how many of the kept ones were
            made of others.
        merges: Of which tokens, if there are such.
    """

    kept: BoolArray
    note: str | None = None
    diagnostics: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    merges: Merges | None = None

    def keep_indices(self, visual: VisualTokens, tokens: int) -> IndexArray:
        """Every position of a sequence of `tokens` but the dropped visual ones: int64 [kept].

        A merged token has the position of the one in whose place it stands.
        """
        stays = np.ones(tokens, dtype=np.bool_)
        stays[visual.index[~self.kept]] = False
        return np.flatnonzero(stays)


SelectTokens = Callable[[PruningPoint, FloatArray, FloatArray, bool, VisualTokens], Selection]

Limit = Callable[[int, int], int]
"""How many tokens of all images may stay: from how many the rule keeps, and the fewest there may
be, which is `min_keep` of each image, or one."""


_OfImage = Callable[[Any], Callable[[], FloatArray] | None]
"""From an index of NumPy to what gives that part of an array."""


def check_parameters(point: PruningPoint) -> Rule:
    """The point's rule with its parameters.

    Raises:
        InputError: The rule is unknown, or a parameter is unknown, of another type or out of
            range; the message names the point.
    """
    return from_json(
        rule(point.rule),
        to_json(point.parameters),
        source=f"{_name(point)}, rule {point.rule!r}",
        fix="export the bundle again with atp-export.",
    )


def _name(point: PruningPoint) -> str:
    return f"pruning point before layer {point.before_layer}"


class PointSelector:
    """The rule of one pruning point, ready to be asked.

    Args:
        point: From the manifest.
        weights: The bundle's ATP modules by prefix, see `load_pruning_weights`.

    Raises:
        InputError: See `check_parameters`; or the rule's weights are not there, or it merges tokens
            or looks at rows of attention and the point does not say so.
    """

    def __init__(self, point: PruningPoint, weights: Mapping[str, AtpWeights]) -> None:
        self._rule = check_parameters(point)
        self._decide = self._rule.prepare(weights, point.weights)
        self._name = _name(point)
        if self._rule.merges and not point.merges:
            raise InputError(
                f"{self._name}: the rule {point.rule!r} merges tokens",
                why="the graph behind the point was not exported for that.",
                fix="export the bundle again, with a policy whose point says that it merges.",
            )
        if self._rule.reads_rows and not point.rows:
            raise InputError(
                f"{self._name}: the rule {point.rule!r} looks at each row of attention",
                why="the graph before the point was not exported to give them.",
                fix="export the bundle again, with a policy whose point says that it has rows.",
            )

    @property
    def keeps_all(self) -> bool:
        """Whether it never drops a token, whatever the scores."""
        return isinstance(self._rule, KeepAll) and self._rule.max_keep is None

    def __call__(
        self,
        scores_self: FloatArray,
        scores_cross: FloatArray,
        has_text: bool,
        visual: VisualTokens,
        limit: Limit | None = None,
    ) -> Selection:
        """Says which visual tokens stay.

        Args:
            scores_self: float32 [kept], as the segment returns them: the whole sequence.
            scores_cross: float32 [kept], likewise.
            has_text: Whether text follows the last visual token; if not, cross scores are
                not looked at.
            visual: The sequence's visual tokens, n of them.
            limit: Asked how many may stay; the images share what it takes away.

        Raises:
            CheckFailedError: A visual token's score is NaN or infinite.
        """
        images = _by_image(visual.image)
        shown = self._shown(scores_self, scores_cross, has_text, visual)
        verdicts = [self._decide(shown(at)) for at in images.values()]
        wanted = [self._bounded(verdict) for verdict in verdicts]
        counts = self._limited(wanted, limit) if limit and images else wanted
        kept = np.zeros(len(visual), dtype=np.bool_)
        merged = []
        notes = [] if images else ["no visual tokens are left to prune"]
        diagnostics = {}
        for (image, at), verdict, want, count in zip(
            images.items(), verdicts, wanted, counts, strict=True
        ):
            more = {"wanted": want} if limit else {}
            kept[at], shares = _split(verdict, count)
            if verdict.merge is not None:
                merged.append((at, shares))
                more["merged"] = len(shares)
            tokens = len(verdict.priority)
            diagnostics[image] = {"tokens": tokens, "kept": count, **more, **verdict.measured}
            said = self._notes(verdict, count)
            # People count from 1, as the pictures of --show-pruning do.
            notes += [f"image {image + 1}: {note}" if len(images) > 1 else note for note in said]
        merges = Merges.joined(merged, len(visual)) if merged else None
        if merges is not None:
            kept[merges.place] = True
        return Selection(kept, "; ".join(notes) or None, diagnostics, merges)

    def _shown(
        self,
        scores_self: FloatArray,
        scores_cross: FloatArray,
        has_text: bool,
        visual: VisualTokens,
    ) -> Callable[[IndexArray | slice], ImageScores]:
        """Gives what the rule sees of the visual tokens in some places; see `__call__`."""
        own = self._finite("scores.self", scores_self[visual.index])
        cross = self._finite("scores.cross", scores_cross[visual.index])
        hidden = self._downloaded("hidden states", visual.hidden)
        attention = self._downloaded("attention rows", visual.attention)
        return lambda at: ImageScores(
            own[at],
            cross[at],
            has_text,
            visual.row[at],
            visual.column[at],
            hidden(at),
            attention((slice(None), at)),
        )

    def _downloaded(self, name: str, download: Callable[[], FloatArray] | None) -> _OfImage:
        """Gives an image's part of what is downloaded for all, at once and if it is asked for."""
        if download is None:
            return lambda _part: None
        every = cache(lambda: self._finite(name, download()))
        return lambda part: lambda: every()[part]

    def _finite(self, name: str, scores: FloatArray) -> FloatArray:
        bad = np.count_nonzero(~np.isfinite(scores))
        if bad:
            raise CheckFailedError(
                f"{self._name}: {bad} of {scores.size} {name} are NaN or infinite",
                why="which visual tokens to keep cannot be told from them.",
                fix="run atp-export verify on the bundle; if it is fp16, try --precision fp32.",
            )
        return scores

    def _bounded(self, verdict: Verdict) -> int:
        highest = self._rule.max_keep
        count = verdict.count if highest is None else min(verdict.count, highest)
        return min(max(count, self._rule.min_keep), len(verdict.priority))

    def _limited(self, wanted: Sequence[int], limit: Limit) -> list[int]:
        fewest = [min(count, max(self._rule.min_keep, 1)) for count in wanted]
        allowed = min(max(limit(sum(wanted), sum(fewest)), sum(fewest)), sum(wanted))
        spare = [count - least for count, least in zip(wanted, fewest, strict=True)]
        shares = _shares(allowed - sum(fewest), spare)
        return [least + share for least, share in zip(fewest, shares, strict=True)]

    def _notes(self, verdict: Verdict, kept: int) -> list[str]:
        notes = [verdict.note] if verdict.note else []
        if verdict.count == kept == len(verdict.priority):
            notes.append(verdict.idle)
        elif kept == len(verdict.priority):
            notes.append(f"all {kept} tokens stay: min_keep is {self._rule.min_keep}")
        return notes


def _by_image(image: IndexArray) -> dict[int, IndexArray | slice]:
    """Where the tokens of each image are, by its number."""
    if len(image) == 0:
        return {}
    if (image == image[0]).all():
        return {int(image[0]): slice(None)}
    return {int(number): np.flatnonzero(image == number) for number in np.unique(image)}


def _split(verdict: Verdict, count: int) -> tuple[BoolArray, Shares]:
    """The tokens that stay, and those that are made of the others.

    Where fewer go on than the rule wants, at least half of them are such as stay. A token made of a
    single one is that one, and stays.

    Args:
        verdict: Of n tokens.
        count: How many go on.

    Returns:
        bool [n], of equal priority the earlier; float64 [merged, n], together `count` tokens.
    """
    merged = min(verdict.merged, count if count >= verdict.count else count // 2)
    kept = np.zeros(len(verdict.priority), dtype=np.bool_)
    kept[np.argsort(-verdict.priority, kind="stable")[: count - merged]] = True
    if verdict.merge is None or merged == 0:
        return kept, np.zeros((0, len(kept)))
    shares = verdict.merge(np.flatnonzero(~kept), merged)
    alone = np.count_nonzero(shares, axis=1) == 1
    kept |= shares[alone].any(axis=0)
    return kept, shares[~alone]


def _shares(total: int, weights: Sequence[int]) -> list[int]:
    """Whole numbers that add up to `total`, in proportion to the weights and none above its own.

    Args:
        total: At most the sum of the weights.
        weights: 0 or more.
    """
    if total == sum(weights):
        return list(weights)
    ends = [total * end // sum(weights) for end in accumulate(weights, initial=0)]
    return [end - begin for begin, end in pairwise(ends)]


class Selectors:
    """The rules of all pruning points of a bundle; what the decoder asks between segments.

    Args:
        points: From the manifest.
        weights: See `PointSelector`.

    Raises:
        InputError: See `PointSelector`.
    """

    def __init__(self, points: Iterable[PruningPoint], weights: Mapping[str, AtpWeights]) -> None:
        self._points = {point.before_layer: PointSelector(point, weights) for point in points}

    @classmethod
    def open(cls, bundle: Path, manifest: Manifest) -> Selectors:
        """Those of a bundle directory, its ATP modules read.

        Raises:
            InputError: See `PointSelector` and `load_pruning_weights`.
        """
        points = [stage.pruning for stage in manifest.segments if stage.pruning]
        file = manifest.pruning_weights
        return cls(points, load_pruning_weights(bundle / file) if file else {})

    @classmethod
    def keeping_all(cls, manifest: Manifest) -> Selectors:
        """Those that drop nothing, at a bundle's pruning points."""
        layers = (stage.pruning.before_layer for stage in manifest.segments if stage.pruning)
        return cls([PruningPoint(layer, "keep_all", {}) for layer in layers], {})

    @property
    def keeps_all(self) -> bool:
        """Whether no point ever drops a token, as in a dense bundle."""
        return all(selector.keeps_all for selector in self._points.values())

    def __call__(
        self,
        point: PruningPoint,
        scores_self: FloatArray,
        scores_cross: FloatArray,
        has_text: bool,
        visual: VisualTokens,
        limit: Limit | None = None,
    ) -> Selection:
        """Asks the point's rule; see `PointSelector.__call__`."""
        select = self._points[point.before_layer]
        return select(scores_self, scores_cross, has_text, visual, limit)


def keeps_all(select: SelectTokens) -> bool:
    """Whether it is known that `select` never drops a token, whatever the scores."""
    return isinstance(select, Selectors) and select.keeps_all

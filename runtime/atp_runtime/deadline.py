"""Tightens pruning on the way, so that the first token comes by a deadline.

Segments run one after another and between two of them the host decides anyway, so at every
pruning point it is known what has elapsed and how many tokens are left. With the device's measured
times that tells how many the point may keep at most. What the rule alone would keep is never
exceeded, and each point looks at the clock anew: an earlier one's error is the next one's matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from atp_runtime.errors import InputError
from atp_runtime.latency.model import Entering, Latency, segments_seconds
from atp_runtime.manifest import Manifest
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import (
    FloatArray,
    Selection,
    Selectors,
    SelectTokens,
    VisualTokens,
)
from atp_runtime.token_flow import tokens_entering


@dataclass(frozen=True)
class Prospect:
    """What a pruning point would cause, were it to keep so many tokens.

    Attributes:
        kept: The tokens of all images.
        seconds: From the question to the first token, the spread of the rest included.
    """

    kept: int
    seconds: float


@dataclass(frozen=True)
class _Sequence:
    """Tokens that reach a pruning point, and the images that the visual ones are of."""

    text: int
    visual: int
    images: int


class DeadlineSelectors:
    """A bundle's rules under a deadline; a `SelectTokens`.

    Args:
        select: The rules: what `Session.model.select` is at first.
        manifest: The bundle's.
        latency: What its stages take here.
        seconds: From the question to the first token.
        clock: Seconds, as those given to `begin`.

    Raises:
        InputError: `seconds` is not positive, the bundle has no pruning point, or `select` is a
            rule of the caller's.

    Attributes:
        seconds: The deadline.
    """

    def __init__(
        self,
        select: SelectTokens,
        manifest: Manifest,
        latency: Latency,
        seconds: float,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        if not 0 < seconds < float("inf"):
            raise InputError(
                f"a deadline of {seconds} seconds",
                why="no token can come by then.",
                fix="choose a time such as 400ms.",
            )
        layers = [it.pruning.before_layer for it in manifest.segments if it.pruning]
        if not layers:
            raise InputError(
                "a deadline for a bundle that prunes nothing",
                why="fewer visual tokens are what saves time, and it has no pruning point.",
                fix="leave the deadline away, or export the checkpoint without --dense.",
            )
        if not isinstance(select, Selectors):
            raise InputError(
                "a deadline for another rule than the bundle's",
                why="only the bundle's rules can tell which token they would drop next.",
                fix="set the deadline on a session just opened.",
            )
        self.seconds = seconds
        self._selectors = select
        self._manifest = manifest
        self._latency = latency
        self._clock = clock
        self._began = clock()

    def begin(self, moment: float) -> None:
        """A question came at that moment of the clock."""
        self._began = moment

    def __call__(
        self,
        point: PruningPoint,
        scores_self: FloatArray,
        scores_cross: FloatArray,
        has_text: bool,
        visual: VisualTokens,
    ) -> Selection:
        """Asks the point's rule, and keeps no more than there is time for."""
        sequence = _Sequence(
            text=len(scores_self) - len(visual),
            visual=len(visual),
            images=len(np.unique(visual.image)),
        )
        found: list[Prospect] = []

        def limit(wanted: int, fewest: int) -> int:
            found.append(self._most(point, sequence, wanted, fewest))
            return found[0].kept

        selection = self._selectors(point, scores_self, scores_cross, has_text, visual, limit)
        if not found:
            return selection
        wanted = sum(int(it["wanted"]) for it in selection.diagnostics.values())
        note = self._note(wanted, found[0])
        notes = "; ".join(filter(None, (selection.note, note)))
        return replace(selection, note=notes or None)

    def _most(self, point: PruningPoint, sequence: _Sequence, wanted: int, fewest: int) -> Prospect:
        """The most tokens, of those wanted, that leave enough time; `fewest` if none do."""
        elapsed = self._clock() - self._began
        share = wanted / sequence.visual

        def prospect(kept: int) -> Prospect:
            rest = self._rest(point, sequence, kept, share)
            return Prospect(kept, elapsed + rest * self._latency.spread)

        best = prospect(wanted)
        if best.seconds <= self.seconds:
            return best
        low, high = fewest, wanted
        while low < high:  # the time never falls with the tokens
            middle = (low + high + 1) // 2
            fits = prospect(middle).seconds <= self.seconds
            low, high = (middle, high) if fits else (low, middle - 1)
        return prospect(low)

    def _rest(self, point: PruningPoint, sequence: _Sequence, kept: int, share: float) -> float:
        """Seconds from here to the logits.

        Later points are expected to keep the share that this one's rule wants, as rules fall by
        about equal factors from point to point; if they want more, they are tightened in turn.
        """
        segments, here = self._manifest.segments, point.before_layer
        begin = next(number for number, it in enumerate(segments) if it.layers[0] == here)

        def left(later: PruningPoint, alive: float) -> float:
            least = sequence.images * max(int(later.parameters.get("min_keep", 0)), 1)
            return max(alive * share, min(least, alive))

        visual = tokens_entering(segments[begin:], float(sequence.visual), left, first=float(kept))
        entering = [Entering(sequence.text, math.ceil(tokens)) for tokens in visual]
        # What is left of this point, and sampling behind the head, take no longer than a point.
        ends = self._latency.between(entering[0].tokens)
        return ends + segments_seconds(self._manifest, self._latency, entering, begin=begin)

    def _note(self, wanted: int, found: Prospect) -> str | None:
        deadline = f"deadline {1e3 * self.seconds:.0f} ms"
        late = found.seconds > self.seconds
        expected = f", and still {1e3 * found.seconds:.0f} ms are expected" if late else ""
        if found.kept < wanted:
            return f"{deadline}: tightened from {wanted} to {found.kept} tokens{expected}"
        if late:
            return f"{deadline}: no fewer than {found.kept} tokens may stay{expected}"
        return None

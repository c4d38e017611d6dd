"""What a deadline makes of the rules, on a clock that the tests turn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atp_runtime.deadline import DeadlineSelectors
from atp_runtime.errors import InputError
from atp_runtime.latency.model import Latency
from atp_runtime.manifest import Manifest, read_manifest
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import Selection, Selectors, VisualTokens

TEXT, VISUAL = 5, 60
PER_TOKEN = 0.001
POINTS = {2: {"keep": 40}, 3: {"keep": 20}}


class LinearLatency(Latency):
    """A millisecond per token and stage, half of one at a pruning point."""

    def __init__(self, spread: float = 1.0) -> None:
        self.spread = spread

    def stage(self, name: str, tokens: int, visual: int = 0) -> float:
        return PER_TOKEN * tokens

    def between(self, tokens: int) -> float:
        return PER_TOKEN / 2


class Clock:
    """Says what it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def pruned(manifest: Manifest, parameters: dict[int, dict[str, Any]] = POINTS) -> Manifest:
    """The manifest with top-k points of these parameters."""
    stages = [
        replace(it, pruning=PruningPoint(it.layers[1], "top_k", parameters[it.layers[1]]))
        if it.pruning
        else it
        for it in manifest.stages
    ]
    return replace(manifest, stages=tuple(stages))


class Prefill:
    """A prefill of the hand-made bundle's stages under a deadline, in virtual time.

    Three segments with points before layers 2 and 3. Scores fall from token to token.
    """

    def __init__(
        self, manifest: Manifest, seconds: float, *, spread: float = 1.0, images: int = 1
    ) -> None:
        self.manifest, self.clock = manifest, Clock()
        self.latency = LinearLatency(spread)
        points = [stage.pruning for stage in manifest.segments if stage.pruning]
        self.select = DeadlineSelectors(
            Selectors(points, {}), manifest, self.latency, seconds, self.clock
        )
        self.began = self.clock.now
        self.select.begin(self.began)
        image = np.arange(VISUAL) * images // VISUAL
        self.visual = VisualTokens(np.arange(VISUAL), image, np.arange(VISUAL), image)

    def point(self, number: int) -> Selection:
        tokens = TEXT + len(self.visual)
        scores = -np.arange(tokens, dtype=np.float32)
        point = self.manifest.segments[number].pruning
        assert point
        selection = self.select(point, scores, scores, True, self.visual)
        self.visual = self.visual.survivors(selection.kept)
        return selection

    def run(self, slower: float = 1.0) -> float:
        """All of it, each stage `slower` than the model has it; seconds from the question."""
        for number, stage in enumerate(self.manifest.segments):
            tokens = TEXT + len(self.visual)
            self.clock.now += slower * self.latency.stage(stage.name, tokens)
            if stage.pruning:
                self.clock.now += slower * self.latency.between(tokens)
                self.point(number)
        self.clock.now += slower * self.latency.stage("head", 1)
        return self.clock.now - self.began


@pytest.fixture(scope="module")
def manifest(hand_made: Path) -> Manifest:
    return pruned(read_manifest(hand_made))


def test_with_time_enough_the_rules_keep_what_they_want(manifest: Manifest) -> None:
    prefill = Prefill(manifest, 10.0)
    for number, kept in enumerate((40, 20)):
        selection = prefill.point(number)
        assert selection.kept.sum() == kept
        assert selection.note is None
        assert selection.diagnostics[0]["wanted"] == kept


def test_with_less_time_the_best_tokens_are_left_and_it_is_said(manifest: Manifest) -> None:
    prefill = Prefill(manifest, 0.065)
    prefill.clock.now += 0.020
    # 45 ms are left: half a one for this point and the next, 5 + k and 5 + ceil(2k/3) tokens, and
    # the head's one: k = 20 needs 1 + 25 + 19 + 1 = 46 and k = 19 one or two less.
    selection = prefill.point(0)
    assert np.flatnonzero(selection.kept).tolist() == list(range(19))
    assert selection.note == "deadline 65 ms: tightened from 40 to 19 tokens"
    assert selection.diagnostics[0]["wanted"] == 40


def test_the_spread_of_the_measurements_is_kept_free(manifest: Manifest) -> None:
    steady, shaky = (Prefill(manifest, 0.08, spread=spread) for spread in (1.0, 1.3))
    assert shaky.point(0).kept.sum() < steady.point(0).kept.sum()


def test_what_cannot_be_met_is_said_and_one_token_is_left(manifest: Manifest) -> None:
    prefill = Prefill(manifest, 0.001)
    prefill.clock.now += 0.5
    selection = prefill.point(0)
    assert selection.kept.sum() == 1
    assert selection.note is not None
    assert "tightened from 40 to 1 tokens, and still 51" in selection.note
    assert "no fewer than 1 tokens may stay" in (prefill.point(1).note or "")


def test_min_keep_is_honoured_for_every_image(manifest: Manifest) -> None:
    fixed = pruned(manifest, {2: {"keep": 20, "min_keep": 7}, 3: {"keep": 20, "min_keep": 7}})
    selection = Prefill(fixed, 1e-6, images=3).point(0)
    assert [it["kept"] for it in selection.diagnostics.values()] == [7, 7, 7]


def test_images_share_what_is_taken_away(manifest: Manifest) -> None:
    selection = Prefill(manifest, 0.075, images=2).point(0)
    kept = [int(it["kept"]) for it in selection.diagnostics.values()]
    wanted = [int(it["wanted"]) for it in selection.diagnostics.values()]
    assert sum(kept) < sum(wanted)
    assert max(kept) - min(kept) <= 1


def test_a_turn_without_images_is_left_alone(manifest: Manifest) -> None:
    prefill = Prefill(manifest, 1e-6)
    nothing = np.arange(0)
    prefill.visual = VisualTokens(nothing, nothing, nothing, nothing)
    assert prefill.point(0).note == "no visual tokens are left to prune"


@settings(max_examples=150, deadline=None)
@given(
    deadline=st.floats(0.02, 0.3),
    spread=st.floats(1.0, 1.5),
    slowness=st.floats(0.5, 1.0),
    least=st.integers(0, 12),
)
def test_the_first_token_is_in_time_wherever_the_fewest_tokens_would_be(
    manifest: Manifest, deadline: float, spread: float, slowness: float, least: int
) -> None:
    fixed = pruned(
        manifest, {2: {"keep": 40, "min_keep": least}, 3: {"keep": 20, "min_keep": least}}
    )
    slower = 1 + (spread - 1) * slowness  # within what was measured
    begins = slower * (TEXT + VISUAL + 0.5) * PER_TOKEN
    fewest = TEXT + max(least, 1)
    needed = begins + spread * (2 * fewest + 1 + 1) * PER_TOKEN
    taken = Prefill(fixed, deadline, spread=spread).run(slower)
    assert taken <= deadline + 1e-9 or needed > deadline


@settings(max_examples=60, deadline=None)
@given(deadline=st.floats(0.05, 0.3))
def test_not_a_token_more_is_dropped_than_must_be(manifest: Manifest, deadline: float) -> None:
    kept = [Prefill(manifest, deadline + more).point(0).kept.sum() for more in (0.0, 0.003)]
    assert kept[0] <= kept[1] <= 40
    if 1 < kept[0] < 40:  # three milliseconds are at least a token's at both segments behind it
        assert kept[1] > kept[0]


def test_each_question_has_its_own_time(manifest: Manifest) -> None:
    prefill = Prefill(manifest, 10.0)
    prefill.clock.now += 60
    prefill.select.begin(prefill.clock.now)
    assert prefill.point(0).kept.sum() == 40


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_deadline_that_is_no_time_is_refused(manifest: Manifest, seconds: float) -> None:
    with pytest.raises(InputError, match="deadline"):
        Prefill(manifest, seconds)


def test_a_bundle_that_prunes_nothing_is_refused(manifest: Manifest) -> None:
    dense = replace(manifest, stages=tuple(replace(it, pruning=None) for it in manifest.stages))
    with pytest.raises(InputError, match="prunes nothing"):
        DeadlineSelectors(Selectors([], {}), dense, LinearLatency(), 1.0)


def test_a_rule_of_the_callers_is_refused(manifest: Manifest) -> None:
    with pytest.raises(InputError, match="another rule"):
        DeadlineSelectors(lambda *_: Selection(np.ones(0, bool)), manifest, LinearLatency(), 1.0)

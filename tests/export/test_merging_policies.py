"""Policies that merge tokens against independent readings of their papers, in plain loops."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.export.layouts import image_layout

from atp_export.cli import main as atp_export
from atp_export.policies import make_policy
from atp_runtime.errors import CheckFailedError
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.segment_entry import Entry
from atp_runtime.selection import PointSelector, VisualTokens

WIDTH = 8
States = dict[int, np.ndarray]


@dataclass(frozen=True)
class Pattern:
    """Scores of a sequence, the hidden states that leave the layer, and where its images are."""

    own: np.ndarray
    cross: np.ndarray
    hidden: np.ndarray
    images: tuple[range, ...]
    has_text: bool

    def visual(self) -> VisualTokens:
        index = np.array([at for image in self.images for at in image], dtype=np.int64)
        number = np.repeat(np.arange(len(self.images)), [len(image) for image in self.images])
        return VisualTokens(index, number, index, index, lambda: self.hidden[index])


def patterns(count: int = 200) -> Iterator[Pattern]:
    """Among them ties, nobody attended to, a single token, no image, two images, no text behind."""
    random = np.random.default_rng(0)
    for number in range(count):
        images, begin = image_layout(random, number)
        has_text = number % 7 != 0
        tokens = begin + 4 * has_text
        scores = random.normal(size=(2, tokens))
        hidden = random.normal(size=(tokens, WIDTH))
        if number % 4 == 0:  # ties
            scores, hidden = np.round(scores), (hidden > 0).astype(float)
        cross = np.exp(scores[0]) / np.exp(scores[0]).sum() * (number % 11 != 0)
        yield Pattern(
            scores[1].astype(np.float32),
            cross.astype(np.float32),
            hidden.astype(np.float32),
            images,
            has_text,
        )


def left_by(point: PruningPoint, pattern: Pattern) -> States:
    """The states that enter the layer behind the point, by the places that they take."""
    visual, tokens = pattern.visual(), len(pattern.cross)
    select = PointSelector(point, {})
    selection = select(pattern.own, pattern.cross, pattern.has_text, visual)
    entry = Entry.of(selection, visual, tokens)
    pool = np.concatenate([pattern.hidden, entry.merge_weights @ pattern.hidden])
    assert len(entry.place) == tokens - len(visual) + selection.kept.sum()
    return dict(zip(entry.place.tolist(), pool[entry.keep_indices], strict=True))


def text_of(pattern: Pattern) -> States:
    seen = {at for image in pattern.images for at in image}
    return {at: row for at, row in enumerate(pattern.hidden) if at not in seen}


def rounded(number: float) -> int:
    return int(np.floor(number + 0.5))


def ranked(pattern: Pattern, tokens: list[int]) -> list[int]:
    """The best first, of equal ones the earlier."""
    scores = pattern.cross if pattern.has_text else pattern.own
    return sorted(tokens, key=lambda at: (-scores[at], at))


def check_equal(found: States, expected: States) -> None:
    assert found.keys() == expected.keys()
    for at, state in expected.items():
        np.testing.assert_allclose(found[at], state, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.3, 0.0, 0.9, 1.0])
def test_illava_makes_one_token_of_those_attended_to_least(ratio: float) -> None:
    (point,) = make_policy("illava", {"ratio": ratio}, "here").points(32)
    assert (point.before_layer, point.queries, point.merges) == (8, "last", True)
    for pattern in patterns():
        expected = text_of(pattern)
        for image in pattern.images:
            order = ranked(pattern, list(image))
            count = rounded((1 - ratio) * len(order))
            expected |= {at: pattern.hidden[at] for at in order[:count]}
            rest = sorted(order[count:])
            weight = {at: float(pattern.cross[at]) * pattern.has_text for at in rest}
            if not any(weight.values()):
                weight = dict.fromkeys(rest, 1.0)
            if rest:
                total = sum(weight[at] * pattern.hidden[at].astype(float) for at in rest)
                expected[max(rest, key=lambda at: weight[at])] = total / sum(weight.values())
        check_equal(left_by(point, pattern), expected)


def clusters(hidden: dict[int, np.ndarray], count: int) -> list[list[int]]:
    """Density peaks with 5 nearest neighbours, token by token."""
    tokens = sorted(hidden)
    apart = {(a, b): float(((hidden[a] - hidden[b]) ** 2).mean()) for a in tokens for b in tokens}
    density = {}
    for a in tokens:
        nearest = sorted(apart[a, b] for b in tokens if b != a)[:5]
        density[a] = float(np.exp(-np.mean(nearest))) if nearest else 1.0
    merit = {}
    for a in tokens:
        denser = [b for b in tokens if (-density[b], b) < (-density[a], a)]
        far = max(apart[a, b] for b in tokens)
        merit[a] = density[a] * min((apart[a, b] for b in denser), default=far) ** 0.5
    centres = sorted(sorted(tokens, key=lambda a: (-merit[a], a))[:count])
    found: dict[int, list[int]] = {centre: [] for centre in centres}
    for a in tokens:
        found[a if a in found else min(centres, key=lambda c: (apart[a, c], c))].append(a)
    return list(found.values())


@pytest.mark.parametrize("keep", [0, 3, 20])
def test_sparsevlm_recycles_the_best_of_the_dropped(keep: int) -> None:
    (point,) = make_policy("sparsevlm", {"keep": [keep], "layers": [3]}, "here").points(32)
    assert (point.rule, point.queries, point.merges) == ("recycle", "raters", True)
    recycled = 0
    for pattern in patterns():
        expected = text_of(pattern)
        for image in pattern.images:
            order = ranked(pattern, list(image))
            expected |= {at: pattern.hidden[at] for at in order[:keep]}
            best = order[keep:][: rounded(0.3 * len(order[keep:]))]
            states = {at: pattern.hidden[at].astype(float) for at in best}
            groups = clusters(states, max(1, rounded(len(best) / 10))) if best else []
            expected |= {min(group): np.mean([states[a] for a in group], 0) for group in groups}
            recycled += len(groups)
        check_equal(left_by(point, pattern), expected)
    assert recycled > 50


def test_sparsevlm_without_recycling_drops_them() -> None:
    points = make_policy("sparsevlm", {"recycle": False}, "here").points(32)
    assert [(point.rule, point.merges) for point in points] == [("top_k", False)] * 3


def test_hidden_states_that_are_not_numbers_are_refused() -> None:
    (point,) = make_policy("sparsevlm", {"keep": [3], "layers": [3]}, "here").points(32)
    pattern = next(it for it in patterns() if it.images and len(it.images[0]) > 9)
    pattern.hidden[pattern.images[0]] = np.nan
    with pytest.raises(CheckFailedError, match="hidden states are NaN"):
        left_by(point, pattern)


@pytest.mark.parametrize(
    "words",
    [
        ("illava", "--dialect", "both"),
        ("illava", "--precision", "fp16", "--set", "layer=2"),
        ("sparsevlm", "--set", "keep=9,3", "--set", "layers=1,3"),
        ("sparsevlm", "--set", "redundant=0.5", "--set", "layers=1,3"),
        ("visionzip+illava", "--set", "visionzip.keep=8", "--set", "visionzip.contextual=3"),
    ],
    ids=" ".join,
)
def test_bundles_compute_what_the_merging_checkpoint_does(
    tiny: Any, tmp_path: Path, words: tuple[str, ...]
) -> None:
    out = tmp_path / "bundle"
    options = ("--precision", "fp32", "--quiet", "--policy")
    assert atp_export([str(tiny.checkpoint), str(out), *options, *words]) == 0
    parity = json.loads((out / "reports" / "parity.json").read_text())
    assert parity["passed"] is True

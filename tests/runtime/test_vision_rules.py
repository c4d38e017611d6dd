"""Rules before the decoder against independent readings of their papers, on made-up attention."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from atp_runtime.errors import InputError
from atp_runtime.merging_rules import Contextual, Outliers
from atp_runtime.reduction import NOWHERE, Reduction
from atp_runtime.vision_rules import (
    VISION_RULES,
    ClassAttention,
    Inflection,
    MaxMinDistance,
    vision_rule,
)

WIDTH, KEY_WIDTH = 5, 16
Given = dict[str, np.ndarray]


def patterns(count: int = 200) -> Iterator[Given]:
    """What a vision stage gives for an image; among them ties, one token, and outliers."""
    random = np.random.default_rng(0)
    for number in range(count):
        tokens = 1 if number % 20 == 0 else int(random.integers(2, 40))
        scores = random.gamma(0.3, size=tokens)
        vectors = random.normal(size=(3, tokens, KEY_WIDTH))
        if number % 4 == 0:
            # Ties that every order of summation leaves exact.
            scores = random.integers(1, 5, size=tokens) / 8.0
            vectors = np.where(random.random(vectors.shape) < 0.5, -1.0, 1.0)
            vectors[:, tokens // 2 :] = vectors[:, : tokens - tokens // 2]
        features, keys, means = vectors.astype(np.float32)
        yield {
            "scores.class": scores.astype(np.float32),
            "scores.similarity": (scores - 0.5).astype(np.float32),
            "image_features": features,
            "keys": keys,
            "keys.mean": means,
        }


def highest(scores: Sequence[float], count: int) -> list[int]:
    """The tokens with the highest scores, of equal ones the earlier."""
    return sorted(sorted(range(len(scores)), key=lambda at: (-scores[at], at))[:count])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True)) / (
        math.sqrt(sum(float(x) ** 2 for x in a)) * math.sqrt(sum(float(y) ** 2 for y in b))
    )


def quantile(values: Sequence[float], share: float) -> float:
    """By linear interpolation between the two values around it."""
    ordered, place = sorted(values), share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def made(reduction: Reduction, tokens: int) -> np.ndarray:
    """The shares of all features in each token, float64 [kept, tokens]."""
    return reduction.of(np.eye(tokens))


@pytest.mark.parametrize("keep", [1, 4, 64])
def test_class_attention_keeps_what_the_class_token_attends_to_most(keep: int) -> None:
    for image in patterns():
        found = ClassAttention(keep).reduce(image)
        assert found.place.tolist() == highest(image["scores.class"].tolist(), keep)
        assert found.mixing is None


@pytest.mark.parametrize("keep", [1, 2, 7, 64])
def test_max_min_distance_takes_the_farthest_from_those_it_has(keep: int) -> None:
    for image in patterns():
        rows = image["image_features"]
        everyone = range(len(rows))
        apart = [[1 - cosine(rows[a], rows[b]) for b in everyone] for a in everyone]
        lonely = [min((apart[a][b] for b in everyone if b != a), default=0.0) for a in everyone]
        chosen = [max(everyone, key=lambda at: (lonely[at], -at))]
        while len(chosen) < min(keep, len(rows)):
            others = [at for at in everyone if at not in chosen]
            chosen.append(max(others, key=lambda at: (min(apart[at][c] for c in chosen), -at)))
        assert MaxMinDistance(keep).reduce(image).place.tolist() == sorted(chosen)


def test_inflection_keeps_what_comes_up_to_the_point_farthest_from_the_chord() -> None:
    cut = 0
    for image in patterns():
        scores = image["scores.similarity"].astype(np.float64)
        curve = [np.array(point) for point in enumerate(sorted(scores.tolist(), reverse=True))]
        along = curve[-1] - curve[0]
        length = math.hypot(*along) or 1.0
        away = [abs(along[0] * (p - curve[0])[1] - along[1] * (p - curve[0])[0]) for p in curve]
        straight = max(away) / length < 1e-9
        count = len(curve) if straight else int(np.argmax(away)) + 1
        found = Inflection().reduce(image).place.tolist()
        assert found == highest(scores.tolist(), count)
        cut += len(found) < len(curve)
    assert cut > 100


@pytest.mark.parametrize(("dominant", "contextual"), [(1, 1), (5, 2), (3, 30), (60, 4)])
def test_contextual_averages_the_rest_around_evenly_spaced_targets(
    dominant: int, contextual: int
) -> None:
    for image in patterns():
        tokens = len(image["scores.class"])
        best = highest(image["scores.class"].tolist(), dominant)
        rest = [at for at in range(tokens) if at not in best]
        count = min(contextual, len(rest))
        targets = [rest[number * (len(rest) // count)] for number in range(count)]
        groups: dict[int, list[int]] = {target: [target] for target in targets}
        for at in rest:
            if at not in targets:
                keys = image["keys.mean"]
                likeness = [cosine(keys[at], keys[target]) for target in targets]
                groups[targets[likeness.index(max(likeness))]].append(at)
        expected = np.zeros((len(best) + count, tokens))
        for row, members in enumerate([*([at] for at in best), *groups.values()]):
            expected[row, members] = 1 / len(members)
        found = Contextual(dominant, contextual).reduce(image)
        assert found.place.tolist() == [*best, *[NOWHERE] * count]
        np.testing.assert_allclose(made(found, tokens), expected, atol=1e-12)
        # Nothing of the image is lost.
        assert (made(found, tokens).sum(axis=0) > 0).all()


@pytest.mark.parametrize(("neighbours", "samples"), [(0, 0), (3, 0), (32, 0), (4, 3)])
def test_outliers_absorb_their_like_by_the_class_tokens_attention(
    neighbours: int, samples: int
) -> None:
    several = 0
    for image in patterns():
        scores = image["scores.class"].astype(np.float64).tolist()
        tokens = range(len(scores))
        third = quantile(scores, 0.75)
        bound = third + 1.5 * (third - quantile(scores, 0.25))
        kept = [at for at in tokens if scores[at] > bound] or highest(scores, 1)
        several += len(kept) > 1
        if samples:
            step = max(1, len(scores) // (samples * len(kept)))
            kept = sorted({*kept, *range(0, len(scores), step)})
        expected = np.zeros((len(kept), len(scores)))
        for row, center in enumerate(kept):
            keys = image["keys"]
            likeness = {at: cosine(keys[center], keys[at]) for at in tokens if at != center}
            like = sorted(likeness, key=lambda at: (-likeness[at], at))[:neighbours]
            total = sum(scores[at] for at in (center, *like))
            for at in (center, *like):
                expected[row, at] = scores[at] / total
        found = Outliers(neighbours, samples).reduce(image)
        assert found.place.tolist() == kept
        np.testing.assert_allclose(made(found, len(scores)), expected, atol=1e-9)
        assert len(found) <= Outliers(neighbours, samples).most(len(scores))
    assert several > 30


RULES = [
    ClassAttention(3),
    MaxMinDistance(3),
    Inflection(),
    Contextual(2, 2),
    Outliers(),
    Outliers(4, 3),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
@given(data=st.data(), tokens=st.integers(1, 30))
def test_every_rule_leaves_something_and_weighs_it_fully(
    rule: object, data: st.DataObject, tokens: int
) -> None:
    numbers = st.floats(0, 1, width=32)

    def draw(*shape: int) -> np.ndarray:
        return data.draw(arrays.arrays(np.float32, shape, elements=numbers))

    scores, vectors = draw(tokens), draw(tokens, 3)
    names = ("image_features", "keys", "keys.mean")
    image = {"scores.class": scores, "scores.similarity": scores, **dict.fromkeys(names, vectors)}
    found = rule.reduce(image)
    assert 1 <= len(found) <= rule.most(tokens) <= tokens
    placed = found.place[found.place != NOWHERE]
    assert placed.tolist() == sorted(set(placed.tolist()))
    shares = made(found, tokens)
    assert (shares >= 0).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_averages_come_in_the_features_dtype(dtype: str) -> None:
    features = np.array([[1, 2], [3, 6], [5, 7]], dtype=dtype)
    mixing = np.array([[0, 1, 0], [0.5, 0, 0.5]])
    found = Reduction(np.array([1, NOWHERE]), mixing).of(features)
    assert found.dtype == dtype
    assert found.tolist() == [[3, 6], [3, 4.5]]


@pytest.mark.parametrize("name", list(VISION_RULES))
def test_a_rule_is_found_by_name(name: str) -> None:
    assert vision_rule(name) is VISION_RULES[name]


def test_an_unknown_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="'best'") as refusal:
        vision_rule("best")
    assert "class_attention, max_min_distance" in refusal.value.why


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClassAttention(0),
        lambda: MaxMinDistance(-1),
        lambda: Contextual(0, 3),
        lambda: Contextual(3, 0),
        lambda: Outliers(-1),
        lambda: Outliers(3, -1),
    ],
)
def test_numbers_that_leave_nothing_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match="or more"):
        make()

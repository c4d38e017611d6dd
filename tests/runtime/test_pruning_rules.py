"""How many tokens each rule wants of an image, and which it wants most."""

from __future__ import annotations

import numpy as np
import pytest

from atp_runtime.errors import InputError
from atp_runtime.pruning_rules import RULES, KeepAll, KeepNone, rule
from atp_runtime.rule import ImageScores, Verdict
from atp_runtime.top_k_rules import TopK


def image(own: list[float], cross: list[float], *, has_text: bool = True) -> ImageScores:
    row = np.zeros(len(own), dtype=np.int64)
    column = np.arange(len(own), dtype=np.int64)
    scores = [np.array(values, dtype=np.float32) for values in (own, cross)]
    return ImageScores(scores[0], scores[1], has_text, row, column)


def ranking(verdict: Verdict) -> list[int]:
    return np.argsort(-verdict.priority, kind="stable").tolist()


@pytest.mark.parametrize(
    ("tokens", "ratio", "count"),
    [(576, 0.25, 144), (10, 0.25, 3), (9, 0.25, 2), (3, 0, 0), (3, 1, 3)],
)
def test_top_k_rounds_a_share_to_the_nearest_count(tokens: int, ratio: float, count: int) -> None:
    scores = [float(at) for at in range(tokens)]
    assert TopK(ratio=ratio).decide(image(scores, scores)).count == count


def test_top_k_never_wants_more_tokens_than_there_are() -> None:
    assert TopK(keep=7).decide(image([1, 2], [1, 2])).count == 2


@pytest.mark.parametrize(
    ("score", "order"), [("self", [2, 1, 0]), ("cross", [0, 1, 2]), ("mean", [1, 0, 2])]
)
def test_top_k_ranks_by_the_score_it_was_told(score: str, order: list[int]) -> None:
    # Scaled to 0..1 the sums are 1, 1.3 and 1.
    scores = image([0, 80, 100], [0.010, 0.005, 0.0])
    assert ranking(TopK(keep=1, score=score).decide(scores)) == order


@pytest.mark.parametrize("score", ["self", "cross", "mean"])
def test_top_k_ranks_by_self_scores_when_no_text_follows(score: str) -> None:
    verdict = TopK(keep=1, score=score).decide(image([1, 3, 2], [9, 0, 0], has_text=False))
    assert ranking(verdict) == [1, 2, 0]
    assert (verdict.note is not None) == (score == "cross")


def test_top_k_spreads_over_the_image_when_told_so() -> None:
    row, column = (grid.ravel() for grid in np.indices((24, 24)))
    scores = np.zeros(576, dtype=np.float32)
    photo = ImageScores(scores, scores, True, row, column)
    order = ranking(TopK(keep=9, score="grid").decide(photo))
    for stride in (2, 4, 8, 16):
        grid = np.flatnonzero((row % stride == 0) & (column % stride == 0))
        assert sorted(order[: len(grid)]) == grid.tolist()
    survivors = np.sort(order[:100])
    later = ImageScores(scores[:100], scores[:100], True, row[survivors], column[survivors])
    again = ranking(TopK(keep=9, score="grid").decide(later))
    assert survivors[again[:30]].tolist() == order[:30]


def test_a_token_without_a_place_is_no_part_of_a_grid() -> None:
    place = np.array([-1, 0, 1, 5])
    scores = np.zeros(4, dtype=np.float32)
    photo = ImageScores(scores, scores, True, place, place)
    assert ranking(TopK(keep=1, score="grid").decide(photo))[-1] == 0


def test_random_tokens_differ_between_images_and_are_all_equally_likely() -> None:
    random = np.random.default_rng(0)
    first = np.zeros(8)
    for _ in range(4000):
        own = random.normal(size=8)
        scores = image(own.tolist(), own.tolist())
        order = ranking(TopK(keep=1, score="random").decide(scores))
        assert order == ranking(TopK(keep=1, score="random").decide(scores))
        first[order[0]] += 1
    # 500 each, give or take: the standard deviation is 21.
    assert np.abs(first - 500).max() < 5 * 21


def test_keep_none_and_keep_all_want_none_and_all() -> None:
    scores = image([1, 2, 3], [1, 2, 3])
    assert KeepNone().decide(scores).count == 0
    assert KeepAll().decide(scores).count == 3


@pytest.mark.parametrize("name", ["atp", "top_k", "keep_none", "keep_all"])
def test_a_rule_is_found_by_name(name: str) -> None:
    assert rule(name) is RULES[name]


def test_an_unknown_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="'topk'") as refusal:
        rule("topk")
    assert "atp, top_k, merge_rest, recycle, keep_none, keep_all" in refusal.value.why

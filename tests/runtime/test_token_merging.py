"""Rules that merge tokens: how many go on, where they stand, and what is drawn of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atp_runtime.density_peaks import density_peaks
from atp_runtime.errors import InputError
from atp_runtime.merges import Merges
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.segment_entry import Entry
from atp_runtime.selection import PointSelector, Selection, VisualTokens

RULES = {"merge_rest": {"ratio": 0.7}, "recycle": {"keep": 6}}
SIDE = 6


def photos(count: int = 1, before: int = 2) -> VisualTokens:
    """The patches of some photos side by side, and hidden states that no two share."""
    number, patch = np.divmod(np.arange(count * SIDE**2), SIDE**2)
    hidden = np.random.default_rng(7).normal(size=(len(patch), 4)).astype(np.float32)
    row, column = np.divmod(patch, SIDE)
    return VisualTokens(before + np.arange(len(patch)), number, row, column, lambda: hidden)


def select(
    rule: str, visual: VisualTokens, seed: int = 0, limit: Any = None, **more: Any
) -> Selection:
    scores = np.random.default_rng(seed).random(2 + len(visual) + 3).astype(np.float32)
    parameters = {**RULES[rule], "score": "cross", **more}
    selector = PointSelector(PruningPoint(4, rule, parameters, merges=True), {})
    return selector(scores, scores, True, visual, limit)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(RULES)), st.integers(0, 9), st.integers(1, 3), st.integers(-3, 130))
def test_under_a_limit_exactly_as_many_go_on_as_it_allows(
    rule: str, seed: int, count: int, allowed: int
) -> None:
    visual, asked = photos(count), []

    def limit(wanted: int, fewest: int) -> int:
        asked.append((wanted, fewest))
        return allowed

    held = select(rule, visual, seed, limit)
    ((wanted, fewest),) = asked
    assert wanted == select(rule, visual, seed).kept.sum()
    assert held.kept.sum() == min(max(allowed, fewest), wanted)
    assert sum(it["kept"] for it in held.diagnostics.values()) == held.kept.sum()


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(RULES)), st.integers(0, 40), st.integers(0, 40))
def test_bounds_count_what_is_merged(rule: str, least: int, more: int) -> None:
    most = least + more
    held = select(rule, photos(2), min_keep=least, max_keep=most)
    for image in held.diagnostics.values():
        assert min(least, SIDE**2) <= image["kept"] <= most


@pytest.mark.parametrize("rule", RULES)
def test_what_is_merged_is_a_mean_of_dropped_tokens_of_one_photo(rule: str) -> None:
    visual = photos(3)
    selection = select(rule, visual)
    merges = selection.merges
    assert merges is not None
    assert len(merges) == sum(it["merged"] for it in selection.diagnostics.values()) == 3
    np.testing.assert_allclose(merges.shares.sum(axis=1), 1)
    assert ((merges.shares > 0).sum(axis=0) <= 1).all()
    stays = selection.kept.copy()
    stays[merges.place] = False
    assert not merges.shares[:, stays].any()
    for number, shares in enumerate(merges.shares):
        assert set(visual.image[shares > 0]) == {number}
        assert merges.place[number] == np.argmax(shares)


def test_a_merged_token_has_a_photo_and_no_place_on_it() -> None:
    visual = photos()
    selection = select("merge_rest", visual)
    assert selection.merges is not None
    left = visual.survivors(selection.kept, selection.merges)
    (place,) = selection.merges.place
    at = int(np.count_nonzero(selection.kept[:place]))
    assert (left.image[at], left.row[at], left.column[at]) == (0, -1, -1)
    assert np.count_nonzero(left.row < 0) == 1
    assert left.index.tolist() == list(range(2, 2 + len(left)))


def test_a_token_merged_of_one_is_that_token() -> None:
    visual = photos()
    selection = select("merge_rest", visual, ratio=35 / 36)
    assert selection.kept.all()
    assert selection.merges is not None
    assert len(selection.merges) == 0
    assert selection.note == "all 36 tokens stay: merge_rest keeps 0.9722 of them"


def test_an_entry_gathers_merged_tokens_from_behind_the_others() -> None:
    visual = VisualTokens(np.arange(1, 5), *np.zeros((3, 4), dtype=np.int64))
    merges = Merges.of(np.array([[0, 0.25, 0, 0.75]]))
    kept = np.array([True, False, False, True])
    entry = Entry.of(Selection(kept, merges=merges), visual, 6)
    assert entry.place.tolist() == [0, 1, 4, 5]
    assert entry.keep_indices.tolist() == [0, 1, 6, 5]
    assert entry.merge_weights.tolist() == [[0, 0, 0.25, 0, 0.75, 0]]
    unmerged = Entry.of(Selection(kept), visual, 6)
    assert unmerged.keep_indices.tolist() == [0, 1, 4, 5]
    assert unmerged.merge_weights.tolist() == [[0] * 6]


def test_a_rule_that_merges_is_refused_where_the_graph_cannot() -> None:
    with pytest.raises(InputError, match=r"merge_rest.*merges"):
        PointSelector(PruningPoint(4, "merge_rest", {"keep": 1}), {})


@pytest.mark.parametrize(
    ("more", "told"),
    [({"share": 1.5}, "share is 1.5"), ({"members": 0}, "members"), ({"neighbours": 0}, "neighb")],
)
def test_recycling_that_makes_no_sense_is_refused(more: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        select("recycle", photos(), **more)


@given(st.integers(1, 12), st.data())
def test_every_cluster_has_a_member(rows: int, data: Any) -> None:
    values = data.draw(
        st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=rows, max_size=rows)
    )
    count = data.draw(st.integers(1, rows))
    cluster = density_peaks(np.array(values, dtype=np.float32), count, 5)
    assert sorted(set(cluster.tolist())) == list(range(count))


def test_clusters_are_found_where_rows_lie_close() -> None:
    random = np.random.default_rng(2)
    centres = 20 * np.eye(3, 16)[np.arange(30) % 3]
    cluster = density_peaks(centres + random.normal(size=(30, 16)), 3, 5)
    assert cluster.tolist() == (cluster[np.arange(30) % 3]).tolist()
    assert len(set(cluster.tolist())) == 3

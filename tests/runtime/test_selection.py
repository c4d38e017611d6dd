"""What is kept at a pruning point and what is said of it, whatever the rule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.selection_prompts import joined, module_tensors, photo, random_prompt, selector

from atp_runtime.errors import CheckFailedError, InputError
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import Selection, check_parameters


@given(
    seed=st.integers(0, 10_000),
    rule=st.sampled_from([("atp", {}), ("top_k", {"ratio": 0.4}), ("keep_none", {})]),
    low=st.integers(0, 80),
    room=st.none() | st.integers(0, 80),
)
@settings(max_examples=80, deadline=None)
def test_text_and_order_are_never_touched_and_bounds_hold(
    seed: int, rule: tuple[str, dict[str, Any]], low: int, room: int | None
) -> None:
    name, parameters = rule
    prompt, high = random_prompt(seed), None if room is None else low + room
    parameters = parameters | {"min_keep": low, "max_keep": high}
    chosen = selector(name, parameters, module_tensors(seed))(
        prompt.scores_self, prompt.scores_cross, prompt.has_text, prompt.visual
    )
    length = len(prompt.scores_self)
    kept = chosen.keep_indices(prompt.visual, length)
    text = set(range(length)) - set(prompt.visual.index.tolist())
    assert kept.dtype == np.int64
    assert kept.tolist() == sorted(text | set(prompt.visual.index[chosen.kept].tolist()))
    left = prompt.visual.survivors(chosen.kept)
    assert kept[left.index].tolist() == prompt.visual.index[chosen.kept].tolist()
    for found in chosen.diagnostics.values():
        assert found["kept"] >= min(low, found["tokens"])
        assert high is None or found["kept"] <= high


def test_survivors_carry_their_image_and_place_to_their_new_position() -> None:
    visual = joined(photo(before=3, rows=2, columns=2), photo(before=9, rows=1, columns=2, image=1))
    left = visual.survivors(np.array([False, True, False, True, True, False]))
    assert left.index.tolist() == [3, 4, 7]
    assert left.image.tolist() == [0, 0, 1]
    assert left.row.tolist() == [0, 1, 0]
    assert left.column.tolist() == [1, 1, 0]


def test_selecting_does_not_change_its_arguments() -> None:
    prompt = random_prompt(4)
    arrays = [prompt.scores_self, prompt.scores_cross, prompt.visual.index, prompt.visual.row]
    copies = [array.copy() for array in arrays]
    arguments = prompt.scores_self, prompt.scores_cross, prompt.has_text, prompt.visual
    choose = selector("atp", {"min_keep": 2}, module_tensors(4))
    assert choose(*arguments).kept.tolist() == choose(*arguments).kept.tolist()
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def ask(rule: str, parameters: dict[str, Any], own: list[float]) -> Selection:
    scores = np.array(own, dtype=np.float32)
    visual = photo(rows=1, columns=len(own))
    return selector(rule, parameters, module_tensors(0))(scores, scores, True, visual)


def test_equal_scores_keep_the_earlier_tokens() -> None:
    assert ask("top_k", {"keep": 2}, [1, 5, 5, 5]).kept.tolist() == [False, True, True, False]
    assert ask("keep_none", {"min_keep": 2}, [3, 3, 3]).kept.tolist() == [True, True, False]


def test_min_keep_spares_the_best_when_the_rule_would_drop_all() -> None:
    assert ask("keep_none", {"min_keep": 1}, [3, 9, 4]).kept.tolist() == [False, True, False]


def test_max_keep_leaves_the_best_when_the_rule_would_keep_all() -> None:
    assert ask("keep_all", {"max_keep": 2}, [3, 9, 4]).kept.tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("rule", "parameters", "note"),
    [
        ("atp", {"strides": [1], "lambda_sample": -1}, "all 3 tokens are above the thresholds"),
        ("top_k", {"keep": 5}, "all 3 tokens stay: top_k keeps up to 5"),
        ("keep_all", {}, "all 3 tokens stay: the rule is keep_all"),
        ("keep_none", {"min_keep": 7}, "all 3 tokens stay: min_keep is 7"),
    ],
)
def test_a_selection_says_so_when_it_did_nothing(
    rule: str, parameters: dict[str, Any], note: str
) -> None:
    chosen = ask(rule, parameters, [3, 9, 4])
    assert chosen.kept.all()
    assert chosen.note == note


def test_a_selection_has_no_note_when_it_dropped_tokens() -> None:
    assert ask("top_k", {"keep": 1}, [3, 9, 4]).note is None


def test_a_note_names_the_image_counted_from_1_when_there_are_several() -> None:
    visual = joined(photo(rows=1, columns=2), photo(before=2, rows=1, columns=4, image=1))
    scores = np.arange(6, dtype=np.float32)
    chosen = selector("top_k", {"keep": 2})(scores, scores, True, visual)
    assert chosen.note == "image 1: all 2 tokens stay: top_k keeps up to 2"


def test_notes_of_several_images_are_joined_in_their_order() -> None:
    visual = joined(*(photo(before=2 * n, rows=1, columns=2, image=n) for n in range(3)))
    scores = np.arange(6, dtype=np.float32)
    note = selector("keep_all", {})(scores, scores, True, visual).note
    all_stay = "all 2 tokens stay: the rule is keep_all"
    assert note == "; ".join(f"image {number}: {all_stay}" for number in (1, 2, 3))


def test_a_selection_says_so_when_no_visual_token_is_left() -> None:
    scores = np.ones(4, dtype=np.float32)
    none = photo().survivors(np.zeros(36, dtype=bool))
    chosen = selector("atp", {}, module_tensors(0))(scores, scores, True, none)
    assert chosen.note == "no visual tokens are left to prune"
    assert chosen.keep_indices(none, 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("rule", ["atp", "top_k", "keep_none", "keep_all"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["scores.self", "scores.cross"])
def test_scores_that_are_no_numbers_are_refused_with_the_point(
    rule: str, bad: float, which: str
) -> None:
    scores = {name: np.ones(36, dtype=np.float32) for name in ("scores.self", "scores.cross")}
    scores[which][7] = bad
    choose = selector(rule, {"keep": 3} if rule == "top_k" else {}, module_tensors(0))
    with pytest.raises(CheckFailedError, match=f"before layer 4: 1 of 36 {which}"):
        choose(scores["scores.self"], scores["scores.cross"], True, photo())


def test_what_text_scores_is_not_looked_at() -> None:
    scores = np.array([np.nan, 1, 2, np.inf], dtype=np.float32)
    chosen = selector("top_k", {"keep": 1})(
        scores, scores, True, photo(before=1, rows=1, columns=2)
    )
    assert chosen.kept.tolist() == [False, True]


@pytest.mark.parametrize(
    ("rule", "parameters", "said"),
    [
        ("atp", {"lamda_sample": 3.0}, "lamda_sample"),
        ("atp", {"strides": [4, 2]}, "strides"),
        ("atp", {"strides": [0, 2]}, "strides"),
        ("atp", {"strides": 2}, "strides"),
        ("atp", {"lambda_sample": math.nan}, "lambda_sample"),
        ("atp", {"normalisation": "softmax"}, "min_max"),
        ("atp", {"redundancy": "text"}, "both, self, cross, none"),
        ("atp", {"redundancy": "none", "strides": []}, "no criterion"),
        ("atp", {"min_keep": -1}, "min_keep"),
        ("atp", {"min_keep": 5, "max_keep": 4}, "max_keep"),
        ("atp", {"min_keep": 2.5}, "min_keep"),
        ("top_k", {}, "exactly one"),
        ("top_k", {"keep": 3, "ratio": 0.5}, "exactly one"),
        ("top_k", {"keep": -3}, "keep"),
        ("top_k", {"ratio": 1.5}, "ratio"),
        ("top_k", {"ratio": math.nan}, "ratio"),
        ("top_k", {"keep": 3, "score": "both"}, "self, cross, mean"),
        ("keep_none", {"keep": 3}, "keep"),
    ],
)
def test_wrong_parameters_are_refused_with_the_point_and_their_name(
    rule: str, parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match="before layer 9") as refusal:
        check_parameters(PruningPoint(9, rule, parameters))
    assert said in refusal.value.what


def test_parameters_read_from_json_and_given_in_python_are_the_same() -> None:
    read = check_parameters(PruningPoint(4, "atp", {"strides": [2, 6], "lambda_sample": 3}))
    assert read == check_parameters(PruningPoint(4, "atp", {"strides": (2, 6)}))

"""What ATP keeps at a pruning point, against a reading of the rule in plain loops."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.selection_prompts import (
    PREFIX,
    Prompt,
    joined,
    module_tensors,
    photo,
    random_prompt,
    selector,
)


def oracle_statistics(values: list[float]) -> list[float]:
    if len(values) == 1:
        return [values[0], 0.0, *[values[0]] * 5]
    twentieths = statistics.quantiles(values, n=20, method="inclusive")
    cuts = [twentieths[at] for at in (1, 4, 9, 14, 17)]
    return [statistics.fmean(values), statistics.pstdev(values), *cuts]


def oracle_scaled(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [0.0 if high == low else (value - low) / (high - low) for value in values]


def oracle_threshold(features: list[float], tensors: dict[str, np.ndarray], head: str) -> float:
    logit = float(tensors[f"{PREFIX}{head}.bias"][0])
    for unit in range(32):
        hidden = float(tensors[PREFIX + "shared.bias"][unit])
        for at, feature in enumerate(features):
            hidden += float(tensors[PREFIX + "shared.weight"][unit, at]) * feature
        logit += float(tensors[f"{PREFIX}{head}.weight"][0, unit]) * max(hidden, 0.0)
    return 1 / (1 + math.exp(-logit))


def oracle_redundancy(own: float, cross: float, has_text: bool, made_of: str) -> float:
    if made_of == "self" or not has_text:
        return own
    return cross if made_of == "cross" else (own + cross) / 2


def oracle_spatial(row: int, column: int, strides: list[int], lambda_sample: float) -> float:
    for stride in sorted(strides, reverse=True):
        if row >= 0 and row % stride == 0 and column % stride == 0:
            return 1 - lambda_sample * (1 / stride**2)
    return 0.0


def oracle_image(
    prompt: Prompt, members: list[int], tensors: dict[str, np.ndarray], options: dict[str, Any]
) -> tuple[list[int], tuple[float, float]]:
    """The members of `visual` that stay, and both thresholds."""
    visual = prompt.visual
    own = [float(prompt.scores_self[visual.index[m]]) for m in members]
    raw = [float(prompt.scores_cross[visual.index[m]]) for m in members]
    scaled, cross = oracle_scaled(own), oracle_scaled(raw)
    constant = len(set(scaled)) == 1 or len(set(cross)) == 1
    correlation = 0.0 if constant else statistics.correlation(scaled, cross)
    features = [*oracle_statistics(scaled), *oracle_statistics(cross), correlation]
    features.append(math.log(math.fsum(raw) + 1e-6))
    theta_r = oracle_threshold(features, tensors, "redundancy")
    theta_s = oracle_threshold(features, tensors, "spatial")
    ranked = []
    for at, member in enumerate(members):
        above = []
        made_of = options.get("redundancy", "both")
        if made_of != "none":
            red = oracle_redundancy(scaled[at], cross[at], prompt.has_text, made_of)
            above.append(red - theta_r)
        if options["strides"]:
            place = int(visual.row[member]), int(visual.column[member])
            spatial = oracle_spatial(*place, options["strides"], options["lambda_sample"])
            above.append(spatial - theta_s)
        kept = any(margin > 0 for margin in above)
        ranked.append((not kept, -max(above), member))
    ranked.sort()
    count = sum(1 for dropped, *_ in ranked if not dropped)
    count = max(min(count, options["max_keep"]), options["min_keep"])
    return [member for *_, member in ranked[:count]], (theta_r, theta_s)


@pytest.mark.parametrize("batch", range(4))
@pytest.mark.parametrize(
    "ablation",
    [{}, {"redundancy": "self"}, {"redundancy": "cross"}, {"redundancy": "none"}, {"strides": []}],
    ids=["atp", "self only", "cross only", "spatial only", "redundancy only"],
)
def test_atp_keeps_what_the_rule_says_when_read_in_plain_loops(
    batch: int, ablation: dict[str, Any]
) -> None:
    outcomes = set()
    for seed in range(50 * batch, 50 * batch + 50):
        prompt, tensors = random_prompt(seed), module_tensors(seed)
        options = {"strides": [2, 4], "lambda_sample": 3.0, "min_keep": 0, "max_keep": 1000}
        if seed % 4 == 0:
            options |= {"min_keep": seed % 9, "max_keep": seed % 9 + 3, "strides": [2, 3, 5]}
        options |= ablation
        found = selector("atp", options, tensors)(
            prompt.scores_self, prompt.scores_cross, prompt.has_text, prompt.visual
        )
        expected = np.zeros(len(prompt.visual), dtype=bool)
        for image in sorted(set(prompt.visual.image.tolist())):
            members = [m for m, of in enumerate(prompt.visual.image) if of == image]
            stay, theta = oracle_image(prompt, members, tensors, options)
            expected[stay] = True
            measured = found.diagnostics[image]
            assert (measured["theta_r"], measured["theta_s"]) == pytest.approx(theta, abs=1e-9)
            assert (measured["tokens"], measured["kept"]) == (len(members), len(stay))
            outcomes.add(0 < len(stay) < len(members))
        assert found.kept.tolist() == expected.tolist(), f"seed {seed}"
    assert outcomes == {True, False}


def test_images_are_judged_each_by_itself() -> None:
    random, tensors = np.random.default_rng(3), module_tensors(3)
    first, second = photo(before=2), photo(before=50, image=1)
    own, cross = random.normal(size=90).astype(np.float32), random.random(90, dtype=np.float32)
    own[50:] *= 100
    choose = selector("atp", {}, tensors)
    together = choose(own, cross, True, joined(first, second))
    alone = [choose(own, cross, True, image) for image in (first, second)]
    assert together.kept.tolist() == [*alone[0].kept, *alone[1].kept]
    assert together.diagnostics[1] == alone[1].diagnostics[1]


@given(seed=st.integers(0, 10_000), higher=st.tuples(st.floats(0, 6), st.floats(0, 6)))
@settings(max_examples=60, deadline=None)
def test_the_kept_set_shrinks_when_thresholds_rise(seed: int, higher: tuple[float, float]) -> None:
    prompt, tensors = random_prompt(seed), module_tensors(seed)
    raised = dict(tensors)
    for head, rise in zip(("redundancy", "spatial"), higher, strict=True):
        raised[f"{PREFIX}{head}.bias"] = tensors[f"{PREFIX}{head}.bias"] + np.float32(rise)
    arguments = prompt.scores_self, prompt.scores_cross, prompt.has_text, prompt.visual
    before = selector("atp", {}, tensors)(*arguments).kept
    after = selector("atp", {}, raised)(*arguments).kept
    assert not (after & ~before).any()


def test_cross_scores_are_not_looked_at_when_no_text_follows() -> None:
    random, choose = np.random.default_rng(8), selector("atp", {}, module_tensors(8))
    own, cross = random.random((2, 36), dtype=np.float32)
    found = choose(own, cross, False, photo())
    assert found.diagnostics == choose(own, np.zeros_like(cross), False, photo()).diagnostics
    assert found.diagnostics != choose(own, cross, True, photo()).diagnostics


@pytest.mark.parametrize("redundancy", ["both", "self", "cross", "none"])
def test_atp_says_so_when_it_should_judge_by_cross_scores_and_no_text_follows(
    redundancy: str,
) -> None:
    choose = selector("atp", {"redundancy": redundancy}, module_tensors(8))
    own, cross = np.random.default_rng(8).random((2, 36), dtype=np.float32)
    note = "no text follows the image, so its tokens are judged by their self scores"
    assert (choose(own, cross, False, photo()).note == note) == (redundancy == "cross")
    assert choose(own, cross, True, photo()).note is None


def test_a_bundle_that_does_not_name_the_redundancy_means_both() -> None:
    own, cross = np.random.default_rng(8).random((2, 36), dtype=np.float32)
    found, expected = (
        selector("atp", parameters, module_tensors(8))(own, cross, True, photo()).kept.tolist()
        for parameters in ({"strides": []}, {"strides": [], "redundancy": "both"})
    )
    assert found == expected
    for other in ("self", "cross"):
        parameters = {"strides": [], "redundancy": other}
        chosen = selector("atp", parameters, module_tensors(8))(own, cross, True, photo())
        assert chosen.kept.tolist() != expected


def test_the_thresholds_are_the_same_whatever_the_redundancy_is_made_of() -> None:
    own, cross = np.random.default_rng(8).random((2, 36), dtype=np.float32)
    found = set()
    for redundancy in ("both", "self", "cross", "none"):
        choose = selector("atp", {"redundancy": redundancy}, module_tensors(8))
        measured = choose(own, cross, True, photo()).diagnostics[0]
        found.add((measured["theta_r"], measured["theta_s"]))
    assert len(found) == 1


def test_normalisation_none_holds_raw_scores_against_the_thresholds() -> None:
    half = {name: np.zeros_like(value) for name, value in module_tensors(0).items()}
    own, cross = np.array([[0.8, 0.3, 0.7], [0.1, 0.3, 0.35]], dtype=np.float32)
    visual = photo(rows=1, columns=3)
    kept = {
        how: selector("atp", {"normalisation": how, "strides": []}, half)(own, cross, True, visual)
        for how in ("none", "min_max")
    }
    assert kept["none"].diagnostics[0]["theta_r"] == 0.5
    # Raw means 0.45, 0.3, 0.525; scaled means 0.5, 0.4, 0.9.
    assert kept["none"].kept.tolist() == [False, False, True]
    assert kept["min_max"].kept.tolist() == [False, False, True]
    own[:] += 0.2
    assert selector("atp", {"normalisation": "none", "strides": []}, half)(
        own, cross, True, visual
    ).kept.tolist() == [True, False, True]

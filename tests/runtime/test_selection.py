"""What is kept at a pruning point, against a reading of the rule in plain loops."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from atp_runtime.atp import AtpWeights
from atp_runtime.errors import CheckFailedError, InputError
from atp_runtime.manifest import Embedding, Manifest, Provenance, Stage, TextModel, VisionModel
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import (
    PointSelector,
    Selection,
    Selectors,
    VisualTokens,
    check_parameters,
    keeps_all,
)

PREFIX = "points.0."
SHAPES = {
    "shared.weight": (32, 16),
    "shared.bias": (32,),
    "redundancy.weight": (1, 32),
    "redundancy.bias": (1,),
    "spatial.weight": (1, 32),
    "spatial.bias": (1,),
}


def module_tensors(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    scale = {"shared.weight": 0.3, "redundancy.weight": 0.2, "spatial.weight": 0.3}
    return {
        PREFIX + name: (random.normal(size=shape) * scale.get(name, 0.5)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def selector(
    rule: str, parameters: dict[str, Any], tensors: dict[str, np.ndarray] | None = None
) -> PointSelector:
    weights = {PREFIX: AtpWeights.from_tensors(tensors, PREFIX)} if tensors else {}
    return PointSelector(PruningPoint(4, rule, parameters, PREFIX), weights)


def photo(*, before: int = 0, rows: int = 6, columns: int = 6, image: int = 0) -> VisualTokens:
    row, column = np.divmod(np.arange(rows * columns), columns)
    return VisualTokens(before + np.arange(len(row)), np.full_like(row, image), row, column)


def joined(*parts: VisualTokens) -> VisualTokens:
    names = ("index", "image", "row", "column")
    return VisualTokens(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


@dataclass(frozen=True)
class Prompt:
    scores_self: np.ndarray
    scores_cross: np.ndarray
    has_text: bool
    visual: VisualTokens


def random_prompt(seed: int) -> Prompt:
    """One or two images of any number of tokens left, with ties and constants among them."""
    random = np.random.default_rng(seed)
    parts, start = [], int(random.integers(0, 5))
    for image in range(int(random.integers(1, 3))):
        whole = photo(before=start, rows=8, columns=9, image=image)
        left = 1 if seed % 10 == 0 else int(random.integers(1, 73))
        chosen = np.sort(random.choice(72, left, replace=False))
        row = whole.row[chosen].copy()
        row[0] = -1 if seed % 3 == 0 else row[0]
        index = start + np.arange(left)
        parts.append(VisualTokens(index, whole.image[chosen], row, whole.column[chosen]))
        start += left + int(random.integers(0, 4))
    length = start + 3
    kinds = {
        0: lambda: random.normal(size=length) * 4,
        1: lambda: random.exponential(size=length) / length,
        2: lambda: random.integers(0, 5, size=length) / 4,
        3: lambda: np.full(length, 0.1),
    }
    own, cross = (kinds[int(random.choice(4, p=[0.4, 0.2, 0.3, 0.1]))]() for _ in range(2))
    has_text = seed % 7 != 0
    cross = np.abs(cross) * has_text
    return Prompt(own.astype(np.float32), cross.astype(np.float32), has_text, joined(*parts))


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


def top_k(before_layer: int, keep: int) -> PruningPoint:
    return PruningPoint(before_layer, "top_k", {"keep": keep})


def test_each_point_is_asked_by_its_own_parameters() -> None:
    points = [top_k(4, 3), top_k(9, 1)]
    select = Selectors(points, {})
    scores = np.arange(6, dtype=np.float32)
    visual = photo(rows=2, columns=3)
    assert [int(select(p, scores, scores, True, visual).kept.sum()) for p in points] == [3, 1]


def test_a_missing_module_is_refused_when_the_bundle_is_opened() -> None:
    weights = {PREFIX: AtpWeights.from_tensors(module_tensors(0), PREFIX)}
    for prefix in ("points.1.", None):
        with pytest.raises(InputError, match=r"points\.0\."):
            Selectors([PruningPoint(4, "atp", {}, prefix)], weights)


def manifest(pruning_weights: str | None) -> Manifest:
    point = PruningPoint(1, "atp", {}, PREFIX)
    stages = (
        Stage("segment_0", "segment", "onnx/segment_0.onnx", (), (), (), (0, 1), point),
        Stage("segment_1", "segment", "onnx/segment_1.onnx", (), (), (), (1, 2)),
    )
    return Manifest(
        format="atp-bundle",
        schema_version=1,
        precision="fp32",
        dialect="portable",
        opset=20,
        text=TextModel(2, 8, 2, 2, 4, 16, 32, 64),
        vision=VisionModel((12, 12), (6, 6), 36, 0, 0, 31),
        embedding=Embedding("weights/embed_tokens.npy", "float32"),
        axes={},
        stages=stages,
        processor="processor",
        pruning_weights=pruning_weights,
        provenance=Provenance("model", "0", "atp-export", {}),
        files={},
    )


def test_a_bundle_s_points_find_their_modules_in_its_weights_file(tmp_path: Path) -> None:
    tensors = module_tensors(5)
    (tmp_path / "pruning").mkdir()
    save_file(tensors, tmp_path / "pruning" / "atp_modules.safetensors")
    bundle = manifest("pruning/atp_modules.safetensors")
    point = bundle.segments[0].pruning
    assert point is not None
    prompt = random_prompt(5)
    arguments = prompt.scores_self, prompt.scores_cross, prompt.has_text, prompt.visual
    found = Selectors.open(tmp_path, bundle)(point, *arguments)
    assert found.diagnostics == selector("atp", {}, tensors)(*arguments).diagnostics


def test_a_bundle_without_the_weights_its_rule_needs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no weights"):
        Selectors.open(tmp_path, manifest(None))


def test_rules_are_known_to_keep_all_when_none_of_them_ever_drops_a_token() -> None:
    def selectors(*rules: tuple[str, dict[str, Any]]) -> Selectors:
        points = [PruningPoint(at, name, given) for at, (name, given) in enumerate(rules)]
        return Selectors(points, {})

    assert keeps_all(selectors())
    assert keeps_all(selectors(("keep_all", {}), ("keep_all", {"min_keep": 3})))
    assert not keeps_all(selectors(("keep_all", {}), ("keep_all", {"max_keep": 3})))
    assert not keeps_all(selectors(("keep_all", {}), ("top_k", {"ratio": 1.0})))
    assert not keeps_all(lambda _point, _own, _cross, _text, visual: Selection(visual.row >= 0))

"""The ATP arithmetic on cases small enough to compute by hand, and reading its weights."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.runtime.selection_prompts import SHAPES

from atp_runtime.atp import (
    FEATURES,
    HIDDEN,
    AtpWeights,
    load_pruning_weights,
    margins,
    normalise,
    redundancy_scores,
    score_features,
    spatial_scores,
    thresholds,
)
from atp_runtime.errors import InputError


def tensors(points: int = 1) -> dict[str, np.ndarray]:
    """The file's contents as the format describes them."""
    random = np.random.default_rng(0)
    return {
        f"points.{point}.{name}": random.normal(size=shape).astype(np.float32)
        for point in range(points)
        for name, shape in SHAPES.items()
    }


def constant_thresholds(theta_r: float, theta_s: float) -> AtpWeights:
    logits = [math.log(theta / (1 - theta)) for theta in (theta_r, theta_s)]
    shared = np.zeros((HIDDEN, FEATURES)), np.zeros(HIDDEN)
    return AtpWeights(shared, (np.zeros((2, HIDDEN)), np.array(logits)))


def test_normalise_maps_the_extremes_to_0_and_1() -> None:
    scaled = normalise(np.array([-2.0, 0.0, 6.0], dtype=np.float32))
    assert scaled.tolist() == [0.0, 0.25, 1.0]


@pytest.mark.parametrize("value", [0.0, 0.1, -7.0, 3e38])
def test_normalise_gives_0_when_all_scores_are_equal(value: float) -> None:
    assert normalise(np.full(5, value, dtype=np.float32)).tolist() == [0.0] * 5


def test_normalise_survives_the_whole_range_of_float32() -> None:
    largest = np.finfo(np.float32).max
    assert normalise(np.array([-largest, 0, largest])).tolist() == [0.0, 0.5, 1.0]


def test_normalise_leaves_scores_alone_when_told_none() -> None:
    scores = np.array([-2.0, 0.5], dtype=np.float32)
    assert normalise(scores, "none").tolist() == [-2.0, 0.5]


def test_redundancy_is_the_mean_of_both_scores_with_text_and_self_alone_without() -> None:
    s_self, s_cross = np.array([0.0, 1.0]), np.array([0.5, 0.5])
    assert redundancy_scores(s_self, s_cross, has_text=True).tolist() == [0.25, 0.75]
    assert redundancy_scores(s_self, s_cross, has_text=False).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("how", "with_text", "without"),
    [
        ("both", [0.25, 0.75], [0.0, 1.0]),
        ("self", [0.0, 1.0], [0.0, 1.0]),
        ("cross", [0.5, 0.5], [0.0, 1.0]),
        ("none", [-np.inf, -np.inf], [-np.inf, -np.inf]),
    ],
)
def test_redundancy_is_made_of_the_scores_that_are_asked_for(
    how: str, with_text: list[float], without: list[float]
) -> None:
    scores = np.array([0.0, 1.0]), np.array([0.5, 0.5])
    assert redundancy_scores(*scores, has_text=True, how=how).tolist() == with_text
    assert redundancy_scores(*scores, has_text=False, how=how).tolist() == without


def test_spatial_scores_take_the_sparsest_grid_of_a_24_by_24_photo() -> None:
    row, column = np.divmod(np.arange(576), 24)
    spatial = spatial_scores(row, column, lambda_sample=3.0, strides=(2, 4, 8))
    values, counts = np.unique(spatial, return_counts=True)
    # 3 x 3 of stride 8, 6 x 6 less those of stride 4, 12 x 12 less those of stride 2.
    assert values.tolist() == [0.0, 0.25, 0.8125, 0.953125]
    assert counts.tolist() == [432, 108, 27, 9]
    assert spatial[0] == spatial[8 * 24 + 16] == 0.953125
    assert spatial[4 * 24 + 16] == 0.8125
    assert spatial[6 * 24 + 16] == 0.25
    assert spatial[6 * 24 + 15] == 0.0


def test_spatial_scores_are_0_for_a_feature_without_a_place_even_on_a_grid_of_stride_1() -> None:
    row, column = np.array([-1, 1]), np.array([-1, 1])
    assert spatial_scores(row, column, lambda_sample=0.5, strides=(1,)).tolist() == [0.0, 0.5]


def test_spatial_scores_are_below_every_threshold_without_grids() -> None:
    row, column = np.divmod(np.arange(16), 4)
    assert set(spatial_scores(row, column, lambda_sample=3.0, strides=())) == {-np.inf}


def test_features_are_the_documented_statistics() -> None:
    s_self = np.array([0.5, 0.0, 1.0, 0.25, 0.75])
    features = score_features(s_self, 1 - s_self, math.e)
    statistics = [0.5, math.sqrt(0.125), 0.1, 0.25, 0.5, 0.75, 0.9]
    assert features == pytest.approx([*statistics, *statistics, -1.0, math.log(math.e + 1e-6)])


def test_features_of_a_single_token_have_no_spread_and_no_correlation() -> None:
    features = score_features(np.array([0.25]), np.array([0.5]), 0.0)
    expected = [0.25, 0, *[0.25] * 5, 0.5, 0, *[0.5] * 5, 0, math.log(1e-6)]
    assert features == pytest.approx(expected)


def test_correlation_is_0_when_one_score_is_constant_but_no_binary_fraction() -> None:
    constant = np.full(7, 0.1)
    features = score_features(np.linspace(0, 1, 7), constant, 0.7)
    assert features[8] == 0.0
    assert features[14] == 0.0


def test_thresholds_follow_the_formula_when_computed_term_by_term() -> None:
    part = tensors()
    weights = AtpWeights.from_tensors(part, "points.0.")
    features = np.linspace(-1, 1, 16)
    hidden = []
    for unit in range(32):
        total = float(part["points.0.shared.bias"][unit])
        for feature in range(16):
            total += float(part["points.0.shared.weight"][unit, feature]) * features[feature]
        hidden.append(max(total, 0.0))
    expected = []
    for head in ("redundancy", "spatial"):
        logit = float(part[f"points.0.{head}.bias"][0])
        for unit in range(32):
            logit += float(part[f"points.0.{head}.weight"][0, unit]) * hidden[unit]
        expected.append(1 / (1 + math.exp(-logit)))
    assert thresholds(features, weights) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("bias", "expected"), [(1e5, 1.0), (-1e5, 0.0)])
def test_thresholds_saturate_without_overflow_when_logits_are_huge(
    bias: float, expected: float
) -> None:
    shared = np.zeros((HIDDEN, FEATURES)), np.zeros(HIDDEN)
    weights = AtpWeights(shared, (np.zeros((2, HIDDEN)), np.full(2, bias)))
    assert thresholds(np.zeros(FEATURES), weights) == (expected, expected)


def test_margin_is_above_0_when_either_criterion_is_met_and_not_at_the_threshold_itself() -> None:
    theta_r, theta_s = thresholds(np.zeros(FEATURES), constant_thresholds(0.5, 0.25))
    assert (theta_r, theta_s) == pytest.approx((0.5, 0.25))
    redundancy, spatial = np.array([0.6, 0.4, 0.5, 0.4]), np.array([0.0, 0.9, 0.25, 0.2])
    kept = margins(redundancy, spatial, theta_r=0.5, theta_s=0.25) > 0
    assert kept.tolist() == [True, True, False, False]


def test_every_point_of_a_file_is_read(tmp_path: Path) -> None:
    written = tensors(points=11)
    save_file(written, tmp_path / "w.safetensors")
    read = load_pruning_weights(tmp_path / "w.safetensors")
    assert set(read) == {f"points.{point}." for point in range(11)}
    heads, biases = read["points.10."].heads
    assert heads[0] == pytest.approx(written["points.10.redundancy.weight"][0])
    assert heads[1] == pytest.approx(written["points.10.spatial.weight"][0])
    assert biases[1] == pytest.approx(written["points.10.spatial.bias"][0])


def broken(name: str, value: np.ndarray | None) -> dict[str, np.ndarray]:
    contents = tensors()
    contents.pop(name, None)
    return contents if value is None else {**contents, name: value}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("points.0.spatial.bias", None, "missing"),
        ("points.0.shared.weight", np.zeros((32, 15), np.float32), "[32, 15]"),
        ("points.0.shared.bias", np.full(32, np.nan, np.float32), "NaN"),
        ("points.0.extra.bias", np.zeros(1, np.float32), "unknown"),
        ("other.0.shared.bias", np.zeros(32, np.float32), "unknown"),
    ],
)
def test_a_file_is_refused_by_the_tensor_that_is_wrong(
    tmp_path: Path, name: str, value: np.ndarray | None, said: str
) -> None:
    save_file(broken(name, value), tmp_path / "w.safetensors")
    with pytest.raises(InputError) as refusal:
        load_pruning_weights(tmp_path / "w.safetensors")
    assert name in refusal.value.what
    assert said in refusal.value.what


@pytest.mark.parametrize("length", [0, 5, 200])
def test_a_file_that_was_cut_short_is_refused_by_name(tmp_path: Path, length: int) -> None:
    file = tmp_path / "w.safetensors"
    save_file(tensors(), file)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(InputError, match=r"w\.safetensors"):
        load_pruning_weights(file)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"w\.safetensors"):
        load_pruning_weights(tmp_path / "w.safetensors")

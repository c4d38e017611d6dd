from __future__ import annotations

import numpy as np
import pytest

from atp_calibration.quantisation.choice import migration_scale
from atp_calibration.quantisation.groups import Fold, Group
from atp_calibration.quantisation.layer_input import LayerInput, SeenTokens
from atp_calibration.quantisation.search import SearchOptions, search, weight_rows
from atp_calibration.quantisation.thresholds import METHODS

CHANNELS = 64
LAYERS = ("q.weight", "k.weight")
FOLDED = Group(LAYERS, CHANNELS, Fold(("norm.weight",)))
UNFOLDED = Group(LAYERS, CHANNELS, None)


@pytest.fixture(scope="module")
def outlying() -> LayerInput:
    """Normal activations with two channels fifty times as large, as LLaMA's norms give."""
    rows = np.random.default_rng(0).normal(size=(200, CHANNELS)).astype(np.float32)
    rows[:, [3, 40]] *= 50
    return entered(rows)


def entered(rows: np.ndarray) -> LayerInput:
    magnitudes = np.abs(rows)
    found = LayerInput(rows.shape[1])
    extreme = rows[magnitudes.max(axis=1).argmax()]
    largest, mean = magnitudes.max(axis=0), magnitudes.mean(axis=0)
    found.add(SeenTokens(len(rows), largest, mean, rows, extreme), np.random.default_rng(0))
    return found


@pytest.fixture(scope="module")
def weights() -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    return [generator.normal(size=(CHANNELS, 32)).astype(np.float32) * 0.05 for _ in LAYERS]


def total(group: Group, seen: LayerInput, weights: list[np.ndarray], **options: object) -> float:
    choice = search("segment_0", group, seen, weights, SearchOptions(**options))
    assert set(choice.errors) == set(LAYERS)
    return sum(choice.errors.values())


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_migration_pays_where_channels_differ(
    outlying: LayerInput, weights: list[np.ndarray], precision: str
) -> None:
    plain = total(UNFOLDED, outlying, weights, precision=precision)
    assert total(FOLDED, outlying, weights, precision=precision) < 0.8 * plain


def test_without_a_place_for_it_nothing_is_migrated(
    outlying: LayerInput, weights: list[np.ndarray]
) -> None:
    assert search("s", UNFOLDED, outlying, weights, SearchOptions("int8")).alpha is None


@pytest.mark.parametrize("method", METHODS)
def test_the_best_range_is_as_good_as_any_one(
    outlying: LayerInput, weights: list[np.ndarray], method: str
) -> None:
    alone = total(FOLDED, outlying, weights, precision="int8", ranges=method)
    # Thresholds within 2 % of each other count as one.
    assert total(FOLDED, outlying, weights, precision="int8") <= 1.02 * alone


def test_int4_leaves_activations_alone(outlying: LayerInput, weights: list[np.ndarray]) -> None:
    choice = search("s", FOLDED, outlying, weights, SearchOptions("int4"))
    assert choice.threshold is None


def test_int4_feeds_errors_back_where_inputs_go_together(weights: list[np.ndarray]) -> None:
    generator = np.random.default_rng(3)
    together = generator.normal(size=(300, 8)) @ generator.normal(size=(8, CHANNELS))
    options = SearchOptions("int4", block_size=16)
    fed_back = search("s", UNFOLDED, entered(together.astype(np.float32)), weights, options)
    assert fed_back.method == "gptq"


def test_int4_rounds_to_the_nearest_where_no_token_is_left_to_measure(
    weights: list[np.ndarray],
) -> None:
    rows = np.random.default_rng(3).normal(size=(2, CHANNELS)).astype(np.float32)
    options = SearchOptions("int4", block_size=16)
    assert search("s", UNFOLDED, entered(rows), weights, options).method is None


def test_smaller_blocks_are_more_exact(outlying: LayerInput, weights: list[np.ndarray]) -> None:
    errors = [
        total(UNFOLDED, outlying, weights, precision="int4", block_size=size)
        for size in (8, 16, 64)
    ]
    assert errors == sorted(errors)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_a_scale_is_positive_finite_and_one_on_average(
    outlying: LayerInput, weights: list[np.ndarray], precision: str, alpha: float
) -> None:
    scale = migration_scale(precision, alpha, outlying, weight_rows(weights))
    assert np.isfinite(scale).all()
    assert (scale > 0).all()
    assert np.log(scale).mean() == pytest.approx(0, abs=1e-5)
    assert scale[3] > np.median(scale)


def test_channels_that_are_always_zero_keep_their_scale(weights: list[np.ndarray]) -> None:
    rows = np.random.default_rng(0).normal(size=(50, CHANNELS)).astype(np.float32)
    rows[:, 7] = 0
    assert migration_scale("int8", 0.5, entered(rows), weight_rows(weights))[7] == 1

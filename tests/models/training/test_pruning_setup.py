"""The pruning that is trained for, and the targets that its layers cannot reach."""

from __future__ import annotations

import pytest

from atp_models.pruning_config import PruningConfig
from atp_models.training.options import PruningOptions
from atp_models.training.pruning_setup import (
    FLOOR,
    LAMBDA_ATP,
    lowest_mean,
    planned_config,
    training_config,
)
from atp_runtime.errors import InputError

PAPER = {"depth": 32, "tokens": 576}


def test_a_checkpoint_without_configuration_gets_the_papers_layers_and_a_floor() -> None:
    config = training_config(None, PruningOptions(), **PAPER)
    assert config == PruningConfig(layers=(4, 14, 24), min_keep=FLOOR, lambda_atp=LAMBDA_ATP)


def test_a_stored_configuration_is_kept_but_for_what_is_asked() -> None:
    stored = PruningConfig(layers=(8, 16), min_keep=9, lambda_atp=0.05, strides=(3,))
    config = training_config(stored, PruningOptions(target_tokens=200), **PAPER)
    assert config == PruningConfig(
        layers=(8, 16), min_keep=9, lambda_atp=0.05, strides=(3,), target_tokens=200
    )


def test_a_stored_configuration_without_floor_gets_one_unless_it_is_given() -> None:
    stored = PruningConfig(layers=(4, 14))
    assert training_config(stored, PruningOptions(), **PAPER).min_keep == FLOOR
    assert training_config(stored, PruningOptions(min_keep=1), **PAPER).min_keep == 1


def test_ablations_and_layers_may_be_asked_for() -> None:
    options = PruningOptions(layers=(2,), redundancy="cross", strides=())
    config = training_config(PruningConfig(layers=(4,)), options, **PAPER)
    assert (config.layers, config.redundancy, config.strides) == ((2,), "cross", ())


@pytest.mark.parametrize("target", [75, 72, 1])
def test_targets_below_what_the_first_layers_cost_are_refused_with_the_lowest(target: int) -> None:
    # 4 of 32 layers with 576 tokens, the others with 4: 75.5.
    with pytest.raises(InputError, match=f"{target} visual tokens cannot be reached") as refused:
        training_config(None, PruningOptions(target_tokens=target), **PAPER)
    assert "75.5" in refused.value.why
    assert "--target-tokens 76 or more" in refused.value.fix


def test_the_lowest_target_and_the_highest_are_accepted() -> None:
    for target in (76, 576):
        training_config(None, PruningOptions(target_tokens=target), **PAPER)


def test_targets_above_the_images_tokens_are_refused() -> None:
    with pytest.raises(InputError, match="577 visual tokens"):
        training_config(None, PruningOptions(target_tokens=577), **PAPER)


def test_lowest_mean_counts_every_layer() -> None:
    config = PruningConfig(layers=(2, 5), min_keep=3)
    assert lowest_mean(config, depth=8, tokens=10) == (2 * 10 + 6 * 3) / 8


@pytest.mark.parametrize(
    "options",
    [
        PruningOptions(layers=(4, 40)),
        PruningOptions(temperature_start=100.0, temperature_end=10.0),
        PruningOptions(layers=(0,)),
    ],
)
def test_impossible_configurations_are_refused(options: PruningOptions) -> None:
    with pytest.raises(InputError):
        training_config(None, options, **PAPER)


def test_a_decoder_without_any_place_to_prune_is_refused() -> None:
    with pytest.raises(InputError, match="no pruning layer"):
        training_config(None, PruningOptions(), depth=1, tokens=576)


def test_a_plan_gives_the_target_that_it_needs() -> None:
    config = PruningConfig(layers=(4, 14, 24), min_keep=4)
    # 4 layers with 576 tokens, 10 with 200, 10 with 100, 8 with 50.
    planned = planned_config(config, (200, 100, 50), **PAPER)
    assert planned.target_tokens == round((4 * 576 + 10 * 200 + 10 * 100 + 8 * 50) / 32)
    assert planned.layers == config.layers


@pytest.mark.parametrize(
    "keep", [(200, 100), (200, 100, 50, 20), (100, 200, 50), (577, 100, 50), (200, 100, 3)]
)
def test_a_plan_that_the_points_cannot_follow_is_refused(keep: tuple[int, ...]) -> None:
    config = PruningConfig(layers=(4, 14, 24), min_keep=4)
    with pytest.raises(InputError, match="is no plan for the points before layers"):
        planned_config(config, keep, **PAPER)

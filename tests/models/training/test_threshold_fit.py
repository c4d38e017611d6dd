"""Thresholds fitted to a plan, and the plan itself."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models.training.conftest import (
    FEATURES,
    LAYERS,
    MakeCheckpoint,
    Notes,
    load,
    pixels,
    random_modules,
    row_of,
)

from atp_models.atp import AtpModule, AtpModules
from atp_models.atp_losses import mean_tokens
from atp_models.pruning_config import PruningConfig
from atp_models.training.packing import PatchGrid
from atp_models.training.pruning_setup import lowest_mean
from atp_models.training.rows import make_batch
from atp_models.training.soft_decoder import SoftDecoder
from atp_models.training.threshold_fit import fit_thresholds, token_plan


@given(target=st.integers(76, 576))
def test_the_plan_falls_by_equal_factors_to_the_target(target: int) -> None:
    config = PruningConfig(layers=(4, 14, 24), min_keep=4, target_tokens=target)

    plan = token_plan(config, depth=32, tokens=576)

    mean = mean_tokens(torch.tensor(plan), layers=config.layers, depth=32, tokens=576)
    assert float(mean) == pytest.approx(target, abs=0.01)
    free = [count for count in (576.0, *plan) if count > 4.001]
    factors = [later / earlier for earlier, later in pairwise(free)]
    assert all(factor == pytest.approx(factors[0], rel=1e-3) for factor in factors)


def test_the_plan_of_the_lowest_target_is_the_floor_everywhere() -> None:
    config = PruningConfig(layers=(4, 14), min_keep=5)
    lowest = lowest_mean(config, depth=32, tokens=576)
    config = PruningConfig(layers=(4, 14), min_keep=5, target_tokens=int(lowest))
    assert token_plan(config, depth=32, tokens=576) == pytest.approx((5, 5))


@pytest.mark.parametrize(
    ("target", "fields"), [(12, {}), (30, {}), (18, {"strides": ()}), (18, {"redundancy": "self"})]
)
def test_fitted_thresholds_keep_what_is_planned(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid, target: int, fields: dict[str, object]
) -> None:
    config = PruningConfig(layers=(1, 3, 5), min_keep=2, target_tokens=target, **fields)  # type: ignore[arg-type]
    decoder = SoftDecoder(load(make_checkpoint()), AtpModules(config).initialise(), grid).eval()
    batches = [
        make_batch([row_of(3 + n, 5 + n % 3, seed=n)], FEATURES, pixel_values=pixels(1, seed=n))
        for n in range(10)
    ]
    plan = token_plan(config, depth=LAYERS, tokens=FEATURES)

    told = fit_thresholds(decoder, batches, plan, Notes())

    with torch.no_grad():
        found = [decoder(batch) for batch in batches]
    kept = torch.cat([it.counts for it in found], dim=1).mean(1)
    means = torch.cat([it.mean_tokens for it in found])
    assert kept.tolist() == pytest.approx(told)
    # Ten images, whole tokens.
    assert kept.tolist() == pytest.approx(plan, abs=1.0)
    assert float(means.mean()) == pytest.approx(target, abs=1.0)


def test_images_still_keep_different_numbers_of_tokens(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid
) -> None:
    config = PruningConfig(layers=(1, 3), min_keep=1, target_tokens=18)
    decoder = SoftDecoder(load(make_checkpoint()), AtpModules(config).initialise(), grid).eval()
    images = [pixels(1, seed=n) * (1 + n) for n in range(6)]
    batches = [make_batch([row_of(3, 5, seed=1)], FEATURES, pixel_values=it) for it in images]

    fit_thresholds(decoder, batches, (18.0, 9.0), Notes())

    with torch.no_grad():
        assert len({float(decoder(batch).counts[0]) for batch in batches}) > 1


def test_all_images_have_the_same_thresholds_whatever_the_modules_were(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid
) -> None:
    modules = random_modules((1, 3), seed=5, min_keep=1)
    decoder = SoftDecoder(load(make_checkpoint()), modules, grid).eval()
    images = [pixels(1, seed=n) * (1 + n) for n in range(6)]
    batches = [make_batch([row_of(3, 5, seed=1)], FEATURES, pixel_values=it) for it in images]

    fit_thresholds(decoder, batches, (18.0, 9.0), Notes())

    for module in modules.points:
        assert isinstance(module, AtpModule)
        scores = torch.rand(2, 20, 30, generator=torch.Generator().manual_seed(0))
        for thresholds in module.thresholds(scores[0], scores[1]):
            assert len(set(thresholds.tolist())) == 1

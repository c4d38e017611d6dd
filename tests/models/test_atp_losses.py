"""The loss terms, against the paper's own numbers and by hand."""

from __future__ import annotations

import pytest
import torch

from atp_models.atp_losses import atp_loss, mean_tokens, module_levels, target_loss

LAYERS = {"layers": (4, 14, 24), "depth": 32, "tokens": 576}


def test_mean_tokens_is_the_average_over_all_layers() -> None:
    # 4 layers of 576, 10 of 200, 10 of 100 and 8 of 20.
    counts = torch.tensor([200.0, 100.0, 20.0])
    assert float(mean_tokens(counts, **LAYERS)) == (4 * 576 + 10 * 200 + 10 * 100 + 8 * 20) / 32


def test_mean_tokens_is_all_of_them_when_nothing_is_pruned() -> None:
    assert float(mean_tokens(torch.full((3,), 576.0), **LAYERS)) == 576


def test_mean_tokens_cannot_be_below_what_the_first_layers_cost() -> None:
    # 72 even when every token goes at layer 4: the paper's 88 leaves little for the rest.
    assert float(mean_tokens(torch.zeros(3), **LAYERS)) == 72


def test_mean_tokens_of_a_batch_is_taken_prompt_by_prompt() -> None:
    counts = torch.tensor([[200.0, 0.0], [100.0, 0.0], [20.0, 0.0]])
    assert mean_tokens(counts, **LAYERS).tolist() == [170.75, 72.0]


@pytest.mark.parametrize("mean", [0.0, 144.0, 288.0])
def test_target_loss_is_the_relative_distance_on_either_side(mean: float) -> None:
    loss = target_loss(torch.tensor(mean), target=144, tokens=576)
    assert float(loss) == {0.0: 0.25, 144.0: 0.0, 288.0: 0.25}[mean]


def test_atp_loss_weighs_later_modules_more() -> None:
    counts = torch.tensor([288.0, 144.0, 72.0])
    loss = atp_loss(counts, levels=(1, 2, 3), tokens=576)
    assert float(loss) == 0.5 * 1 + 0.25 * 2 + 0.125 * 3


def test_mean_tokens_and_atp_loss_take_prompts_of_different_length() -> None:
    counts, tokens = torch.tensor([[200.0, 50.0]]), torch.tensor([576.0, 144.0])
    mean = mean_tokens(counts, layers=(8,), depth=32, tokens=tokens)
    assert mean.tolist() == [(8 * 576 + 24 * 200) / 32, (8 * 144 + 24 * 50) / 32]
    loss = atp_loss(counts, levels=(1.0,), tokens=tokens)
    torch.testing.assert_close(loss, torch.tensor([200 / 576, 50 / 144]))


@pytest.mark.parametrize("points", [1, 3, 6])
def test_module_levels_rise_evenly_to_one(points: int) -> None:
    levels = module_levels(points)
    assert levels == tuple(sorted(levels))
    assert levels[-1] == 1
    assert sum(levels) == pytest.approx((points + 1) / 2)


def test_the_target_holds_against_the_token_count_at_every_module_of_the_paper() -> None:
    counts = torch.tensor([100.0, 50.0, 20.0], requires_grad=True)
    mean = mean_tokens(counts, **LAYERS)
    loss = 0.2 * target_loss(mean, target=144, tokens=576)
    loss = loss + 0.01 * atp_loss(counts, levels=module_levels(3), tokens=576)
    loss.backward()
    assert counts.grad is not None
    # Below the target the sum still pulls upwards, also at the last module.
    assert float(mean.detach()) < 144
    assert (counts.grad < 0).all()


def test_losses_pull_every_module_s_count_down_by_the_layers_it_feeds() -> None:
    counts = torch.tensor([400.0, 300.0, 200.0], requires_grad=True)
    target_loss(mean_tokens(counts, **LAYERS), target=144, tokens=576).backward()
    assert counts.grad is not None
    torch.testing.assert_close(counts.grad * 576 * 32, torch.tensor([10.0, 10.0, 8.0]))

"""The training graph against the pruned reference, and against itself without short cuts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from tests.models.training.conftest import (
    FEATURES,
    LAYERS,
    SIDE,
    MakeCheckpoint,
    load,
    pixels,
    random_modules,
    row_of,
)
from torch import Tensor

from atp_models.atp import AtpModules
from atp_models.atp_losses import mean_tokens
from atp_models.reference import LlavaReference
from atp_models.reference_layers import Survivors
from atp_models.training.masking import images_of
from atp_models.training.packing import PatchGrid, thin_batch
from atp_models.training.rows import TokenRow, make_batch
from atp_models.training.soft_decoder import SoftDecoder
from atp_models.training.soft_state import SoftOutput

ROWS = {
    "text before and after": (row_of(5, 7, seed=1),),
    "no text after": (row_of(4, 0, seed=2),),
    "two images": (row_of(3, 2, 6, seed=3),),
    "rows of different length and images": (
        row_of(2, 9, seed=4),
        row_of(7, 1, 4, seed=5),
        row_of(8, seed=6),
        row_of(1, 0, seed=7),
    ),
}


def with_last_target(row: TokenRow) -> TokenRow:
    """Supervises the last token, or all that may be the last when it is a visual one."""
    last_text = int((row.features < 0).nonzero()[-1])
    targets = row.targets.clone()
    targets[min(last_text + 1, len(row) - 1) :] = 7
    return dataclasses.replace(row, targets=targets)


def last_logits(found: SoftOutput, rows: tuple[TokenRow, ...], *, dropped: bool) -> Tensor:
    """Logits [rows, vocabulary] of the last token of each row that inference keeps."""
    places, before = [], 0
    for row, mask in zip(rows, found.masks[-1], strict=True):
        stays = ((row.features < 0) | (mask[: len(row)] > 0.5))[row.targets >= 0]
        # What is masked but not dropped predicts, too.
        last = int(stays.sum()) - 1 if dropped else int(stays.nonzero()[-1])
        places.append(before + last)
        before += int(stays.sum()) if dropped else len(stays)
    return found.logits[places]


def run_reference(
    reference: LlavaReference, modules: AtpModules, row: TokenRow, images: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Logits [1, vocabulary] of the last position, and per point the kept tokens' places."""
    visual = row.features >= 0
    features = reference.see(images).features if len(images) else None
    hidden = reference.embed(row.ids, features)
    layers = modules.config.layers
    asking = dict.fromkeys(layers, "text")
    patch = row.features % FEATURES
    keep: dict[int, Survivors] = {}
    left, kept = torch.arange(len(row)), []
    for number, layer in enumerate(layers):
        scores = reference.pruned(asking).forward(hidden, visual, keep).layers[layer - 1].scores
        assert scores is not None
        seen = visual[left]
        stays = torch.ones(len(left), dtype=torch.bool)
        stays[seen] = modules[number].keep_mask(
            scores.own[seen],
            scores.cross[seen],
            row.features[left][seen] // FEATURES,
            patch[left][seen] // SIDE,
            patch[left][seen] % SIDE,
            has_text=not bool(visual[-1]),
        )
        keep[layer] = Survivors.unmerged(stays.nonzero().flatten(), len(stays))
        left = left[stays]
        kept.append(left[visual[left]])
    return reference.pruned(asking).forward(hidden, visual, keep).logits, kept


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("layers", [(1, 4), (1, 3, 5)], ids=["two points", "three points"])
@pytest.mark.parametrize(("temperature", "drop_below"), [(math.inf, 0.0), (1e7, 0.0), (1e7, 1e-4)])
def test_training_graph_is_the_pruned_reference_when_the_temperature_is_infinite(
    make_checkpoint: MakeCheckpoint,
    grid: PatchGrid,
    rows: tuple[TokenRow, ...],
    layers: tuple[int, ...],
    temperature: float,
    drop_below: float,
) -> None:
    checkpoint = make_checkpoint()
    modules = random_modules(layers, seed=3, min_keep=2, max_keep=20)
    decoder = SoftDecoder(load(checkpoint), modules, grid, drop_below=drop_below).eval()
    reference = LlavaReference.load(checkpoint)
    rows = tuple(with_last_target(row) for row in rows)
    images = pixels(sum(row.images for row in rows))

    with torch.no_grad():
        found = decoder(make_batch(rows, FEATURES, pixel_values=images), temperature)

    last = last_logits(found, rows, dropped=drop_below > 0 or math.isinf(temperature))
    shown = 0
    for number, row in enumerate(rows):
        own = images[shown : shown + row.images]
        shown += row.images
        logits, kept = run_reference(reference, modules, row, own)
        torch.testing.assert_close(last[number : number + 1], logits, atol=1e-4, rtol=1e-4)
        for point, places in enumerate(kept):
            assert (
                found.masks[point, number] > 0.5
            ).nonzero().flatten().tolist() == places.tolist()
            assert float(found.counts[point, number]) == pytest.approx(len(places), abs=1e-3)
        assert not row.images or 0 < len(kept[-1]) <= len(kept[0]) < row.images * FEATURES


def test_soft_graph_comes_closer_to_the_hard_one_when_the_temperature_rises(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid
) -> None:
    decoder = SoftDecoder(load(make_checkpoint()), random_modules((1, 3, 5)), grid)
    batch = make_batch([row_of(5, 7, answer=3)], FEATURES, pixel_values=pixels(1))

    with torch.no_grad():
        hard = decoder(batch, math.inf).logits
        apart = [float((decoder(batch, t).logits - hard).abs().max()) for t in (10, 100, 1e3, 1e6)]

    assert apart[0] > apart[1] > apart[2] >= apart[3]
    assert apart[3] < 1e-4


def gradients(decoder: SoftDecoder, output: SoftOutput) -> dict[str, Tensor]:
    decoder.zero_grad()
    output.loss.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in decoder.named_parameters()
        if parameter.grad is not None
    }


def assert_same_training(one: SoftOutput, other: SoftOutput, decoder: SoftDecoder) -> None:
    torch.testing.assert_close(one.loss, other.loss, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.logits, other.logits, atol=1e-4, rtol=1e-4)
    first, second = gradients(decoder, one), gradients(decoder, other)
    assert first.keys() == second.keys()
    assert any(name.startswith("atp.") for name in first)
    for name, gradient in first.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(second[name], gradient, atol=1e-4 * max(scale, 1e-2), rtol=1e-4)


def test_dropping_changes_neither_loss_nor_gradients_when_what_goes_is_faint(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid
) -> None:
    llava, modules = load(make_checkpoint()), random_modules((1, 3, 5), min_keep=1)
    batch = make_batch(
        [row_of(5, 7, answer=3), row_of(2, 3, 9, answer=2)], FEATURES, pixel_values=pixels(3)
    )
    whole = SoftDecoder(llava, modules, grid)
    short = SoftDecoder(llava, modules, grid, drop_below=1e-6)

    one, other = whole(batch, 100.0), short(batch, 100.0)

    assert int((other.masks[-1] == 0).sum()) > int((one.masks[-1] == 0).sum())
    assert_same_training(one, other, whole)


def test_checkpointing_changes_neither_loss_nor_gradients(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid
) -> None:
    decoder = SoftDecoder(load(make_checkpoint()), random_modules((1, 4)), grid).train()
    batch = make_batch([row_of(5, 7, answer=3)], FEATURES, pixel_values=pixels(1))

    one = decoder(batch, 20.0)
    decoder.activation_checkpointing_enable()
    assert_same_training(one, decoder(batch, 20.0), decoder)


def test_eager_attention_gives_the_same_when_rows_are_filled_up(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid
) -> None:
    modules = random_modules((2, 4))
    batch = make_batch(
        [row_of(5, 7, answer=3), row_of(2, answer=1)], FEATURES, pixel_values=pixels(1)
    )
    for attached in (modules, None):
        one, other = (
            SoftDecoder(load(make_checkpoint(), kind), attached, grid)(batch, 30.0)
            for kind in ("sdpa", "eager")
        )
        torch.testing.assert_close(one.logits, other.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"vision": "siglip", "strategy": "full", "feature_layer": [1, -2]},
        {"vision": "dinov2", "feature_layer": -1},
    ],
    ids=["clip", "siglip", "dinov2"],
)
def test_dense_graph_is_transformers_forward(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid, options: dict[str, object]
) -> None:
    llava = load(make_checkpoint(**options)).eval()
    row = row_of(5, 2, 7, answer=4)
    images = pixels(2)
    decoder = SoftDecoder(llava, None, grid).eval()

    with torch.no_grad():
        found = decoder(make_batch([row], FEATURES, pixel_values=images))
        expected = llava(input_ids=row.ids[None], pixel_values=images).logits[0, -5:-1]
        cached = make_batch([row], FEATURES, tower_features=decoder.tower_features(images))
        again = decoder(cached)

    torch.testing.assert_close(found.logits, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(again.logits, found.logits)
    assert found.targets.tolist() == row.ids[-4:].tolist()
    assert float(found.loss) == pytest.approx(
        float(torch.nn.functional.cross_entropy(expected, row.ids[-4:])), abs=1e-4
    )


def test_losses_are_the_papers_sums_over_the_soft_counts(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid
) -> None:
    modules = random_modules((2, 4), target_tokens=12, lambda_target=0.3, lambda_atp=0.07)
    decoder = SoftDecoder(load(make_checkpoint()), modules, grid)
    rows = [row_of(5, 7, answer=3), row_of(2, 3, 9, answer=2), row_of(9, answer=1)]

    found = decoder(make_batch(rows, FEATURES, pixel_values=pixels(3)), 10.0)

    per_image = found.counts[:, :2] / torch.tensor([1, 2])
    mean = mean_tokens(per_image, layers=(2, 4), depth=LAYERS, tokens=FEATURES)
    atp = (per_image[0] / FEATURES * 0.5 + per_image[1] / FEATURES * 1.0).mean()
    target = (mean.mean() - 12).abs() / FEATURES
    torch.testing.assert_close(found.mean_tokens, torch.cat((mean, torch.zeros(1))))
    torch.testing.assert_close(found.atp_loss, atp)
    torch.testing.assert_close(found.target_loss, target)
    torch.testing.assert_close(found.loss, found.lm_loss + 0.07 * atp + 0.3 * target)


def test_target_of_thinned_images_is_the_same_share_of_what_they_enter_with(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid
) -> None:
    modules = random_modules((2, 4), target_tokens=12)
    decoder = SoftDecoder(load(make_checkpoint()), modules, grid)
    batch = make_batch(
        [row_of(5, 7, answer=3), row_of(3, 2, answer=2)], FEATURES, pixel_values=pixels(2)
    )
    thinned = thin_batch(batch, grid, torch.tensor([2, 1]), torch.tensor([[1, 0], [0, 0]]))

    found = decoder(thinned, 10.0)

    share = (found.mean_tokens / thinned.visual.sum(1)).mean()
    torch.testing.assert_close(found.target_loss, (share * FEATURES - 12).abs() / FEATURES)


def test_sampling_grids_lie_on_the_tokens_that_a_thinned_image_has(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid
) -> None:
    batch = make_batch([row_of(5, 7, answer=3)], FEATURES, pixel_values=pixels(1))
    thinned = thin_batch(batch, grid, torch.tensor([2]), torch.tensor([[1, 0]]))
    decoder = SoftDecoder(load(make_checkpoint()), random_modules((2,)), grid)
    scores, left = decoder.scores_at(thinned, 0)

    (image,) = images_of(scores, left, grid)

    places = list(zip(image.grid_row.tolist(), image.grid_column.tolist(), strict=True))
    rows, columns = (sorted(set(axis)) for axis in zip(*places, strict=True))
    assert places == [(row, column) for row in rows for column in columns]
    assert (rows, columns) == (list(range(len(rows))), list(range(len(columns))))
    assert len(places) < FEATURES


def test_only_layers_behind_the_first_point_are_differentiated_when_modules_alone_learn(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid
) -> None:
    llava = load(make_checkpoint()).requires_grad_(False)
    decoder = SoftDecoder(llava, random_modules((2, 4)), grid)
    entered = {}
    for number, layer in enumerate(llava.model.language_model.layers):
        layer.register_forward_hook(
            lambda _m, inputs, _o, number=number: entered.update({number: inputs[0].requires_grad})
        )

    decoder(
        make_batch([row_of(5, 7, answer=3)], FEATURES, pixel_values=pixels(1)), 10.0
    ).loss.backward()

    # The mask first acts inside layer 2, so what enters layer 3 is the first to depend on it.
    assert entered == {0: False, 1: False, 2: False, 3: True, 4: True, 5: True}
    learnt = {name for name, value in decoder.named_parameters() if value.grad is not None}
    assert learnt == {f"atp.{name}" for name, _ in decoder.atp.named_parameters()}  # type: ignore[union-attr]


def test_text_alone_gives_no_gradient_but_can_be_differentiated(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid
) -> None:
    llava = load(make_checkpoint()).requires_grad_(False)
    decoder = SoftDecoder(llava, random_modules((2, 4)), grid)

    found = decoder(make_batch([row_of(9, answer=3)], FEATURES), 10.0)
    found.loss.backward()

    assert float(found.loss.detach()) == float(found.lm_loss)
    assert not any(float(it.grad.abs().max()) for it in decoder.parameters() if it.grad is not None)


def test_at_least_min_keep_tokens_stay_bright_when_thresholds_let_none_pass(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid
) -> None:
    modules = random_modules((1, 3), min_keep=4)
    with torch.no_grad():
        for point in modules.points:
            for head in (point.redundancy, point.spatial):
                head.bias.fill_(50)
    decoder = SoftDecoder(load(make_checkpoint()), modules, grid)

    found = decoder(
        make_batch([row_of(2, 1, 4, answer=2)], FEATURES, pixel_values=pixels(2)), 1000.0
    )

    assert found.counts.flatten().tolist() == pytest.approx([8, 8], abs=1e-3)
    assert float(found.masks[1].max()) == 1


def test_every_image_keeps_tokens_by_its_own_thresholds(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid
) -> None:
    decoder = SoftDecoder(load(make_checkpoint()), random_modules((1,), seed=4), grid)
    row = row_of(3, 2, 6, answer=2)
    images = pixels(2)
    images[1] *= 3

    found = decoder(make_batch([row], FEATURES, pixel_values=images))

    mask = found.masks[0, 0, row.features >= 0].view(2, FEATURES)
    assert int(mask[0].sum()) != int(mask[1].sum())


@pytest.mark.parametrize(
    "fields",
    [{"redundancy": "self"}, {"redundancy": "cross"}, {"redundancy": "none"}, {"strides": ()}],
)
def test_ablations_have_finite_gradients_and_the_same_limit(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid, fields: dict[str, Any]
) -> None:
    modules = random_modules((1, 3), min_keep=2, **fields)
    decoder = SoftDecoder(load(make_checkpoint()), modules, grid)
    rows = [row_of(5, 7, answer=3), row_of(4, 0)]
    batch = make_batch(rows, FEATURES, pixel_values=pixels(2))

    found = gradients(decoder, decoder(batch, 20.0))
    with torch.no_grad():
        hard, sharp = decoder(batch).logits, decoder(batch, 1e6).logits

    assert all(bool(value.isfinite().all()) for value in found.values())
    torch.testing.assert_close(sharp, hard, atol=1e-4, rtol=1e-4)

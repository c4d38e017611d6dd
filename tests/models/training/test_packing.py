"""Packed rows against separate ones, and rows with a part of their visual tokens."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tests.models.training.conftest import (
    FEATURES,
    IMAGE,
    SIDE,
    MakeCheckpoint,
    load,
    pixels,
    random_modules,
    row_of,
    text_ids,
)
from torch import Tensor

from atp_models.training.packing import PatchGrid, keep_features, pack, thin_batch, unpack
from atp_models.training.rows import TokenRow, make_batch, make_row
from atp_models.training.soft_decoder import SoftDecoder


def conversations(count: int, *, images: int = 1) -> list[TokenRow]:
    """Conversations about the same images, of different length, with the same beginning."""
    beginning = text_ids(4, 1) + ([IMAGE] * FEATURES + text_ids(2, 2)) * images
    rows = []
    for number in range(count):
        asked, answered = text_ids(3 + number, 10 + number), text_ids(2, 20 + number)
        ids = beginning + asked + answered + text_ids(3, 30 + number) + answered
        supervised = [False] * len(beginning + asked) + [True] * 2 + [False] * 3 + [True] * 2
        rows.append(make_row(ids, supervised, image_token_id=IMAGE, image_features=FEATURES))
    return rows


def trained(
    decoder: SoftDecoder, rows: list[TokenRow], images: Tensor, temperature: float = math.inf
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    decoder.zero_grad()
    found = decoder(make_batch(rows, FEATURES, pixel_values=images), temperature)
    found.loss.backward()
    named = decoder.named_parameters()
    return found.loss, found.logits, {n: p.grad for n, p in named if p.grad is not None}


@pytest.mark.parametrize("images", [1, 2])
def test_packed_conversations_train_like_separate_rows(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid, images: int
) -> None:
    rows = conversations(4, images=images)
    other = row_of(3, 4, answer=2)
    shown = pixels(images)
    decoder = SoftDecoder(load(make_checkpoint()), None, grid)
    copies = torch.cat((shown.repeat(4, 1, 1, 1), pixels(1, seed=9)))

    apart = trained(decoder, [*rows, other], copies)
    packed = pack(rows)
    together = trained(decoder, [packed, other], torch.cat((shown, pixels(1, seed=9))))

    assert len(packed) < sum(len(row) for row in rows) / 2
    torch.testing.assert_close(together[0], apart[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[1], apart[1], atol=1e-4, rtol=1e-4)
    for name, gradient in apart[2].items():
        torch.testing.assert_close(together[2][name], gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("temperature", [30.0, math.inf])
@pytest.mark.parametrize("layers", [(1, 3), (2, 4)])
def test_packed_conversations_are_pruned_like_separate_rows(
    make_checkpoint: MakeCheckpoint,
    grid: PatchGrid,
    images: int,
    temperature: float,
    layers: tuple[int, ...],
) -> None:
    rows = conversations(3, images=images)
    others = [row_of(3, 4, answer=2), row_of(6, answer=3)]
    shown, last = pixels(images), pixels(1, seed=9)
    modules = random_modules(layers, min_keep=3)
    decoder = SoftDecoder(load(make_checkpoint()), modules, grid)
    copies = torch.cat((shown.repeat(3, 1, 1, 1), last))

    apart = trained(decoder, [*rows, *others], copies, temperature)
    counts = decoder(make_batch([*rows, *others], FEATURES, pixel_values=copies)).counts
    batch = make_batch([pack(rows), *others], FEATURES, pixel_values=torch.cat((shown, last)))
    packed = trained(decoder, [pack(rows), *others], torch.cat((shown, last)), temperature)
    found = decoder(batch)

    assert len(set(counts[0, :3].tolist())) > 1, "questions keep different tokens"
    assert found.counts.tolist() == counts.tolist()
    assert found.images.tolist() == [images] * 3 + [1, 0]
    torch.testing.assert_close(packed[0], apart[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed[1], apart[1], atol=1e-4, rtol=1e-4)
    for name, gradient in apart[2].items():
        torch.testing.assert_close(packed[2][name], gradient, atol=2e-5, rtol=1e-3)


def test_a_batch_without_blocks_is_as_it_was_when_taken_apart() -> None:
    rows = [row_of(3, 4, answer=2), row_of(6, answer=3)]
    batch = make_batch(rows, FEATURES, pixel_values=pixels(1))
    hidden = torch.randn(*batch.ids.shape, 5)

    apart, left = unpack(batch, hidden)

    assert torch.equal(left[batch.blocks >= 0], hidden[batch.blocks >= 0])
    for name, value in batch.tensors().items():
        assert torch.equal(getattr(apart, name), value), name


def test_packing_shares_the_prefix_and_restarts_positions_behind_it() -> None:
    rows = conversations(3)
    packed = pack(rows)
    shared = int((packed.blocks == 0).sum())

    assert shared == 4 + FEATURES + 2
    for number, row in enumerate(rows, start=1):
        block = packed.blocks == number
        assert packed.ids[block].tolist() == row.ids[shared:].tolist()
        assert packed.positions[block].tolist() == list(range(shared, len(row)))
        assert packed.targets[block].tolist() == row.targets[shared:].tolist()
    assert packed.images == 1


def test_packing_one_conversation_changes_nothing() -> None:
    row = row_of(3, 4, answer=2)
    assert pack([row]) is row


def test_packing_refuses_rows_that_differ_before_the_end_of_their_images() -> None:
    with pytest.raises(ValueError, match="before the end of their images"):
        pack([row_of(3, 4, answer=2, seed=1), row_of(3, 4, answer=2, seed=2)])


def test_packing_refuses_what_is_packed_already() -> None:
    with pytest.raises(ValueError, match="packed already"):
        pack([pack(conversations(2)), conversations(1)[0]])


def test_visual_tokens_left_out_leave_the_positions_of_the_others(grid: PatchGrid) -> None:
    row = row_of(3, 2, 5, answer=2)
    part = grid.subgrid(2, (1, 0))

    kept = keep_features(row, torch.cat((part, part)))

    assert int((kept.features >= 0).sum()) == 2 * FEATURES // 4
    assert kept.positions.tolist() == [
        place
        for place, feature in enumerate(row.features.tolist())
        if feature < 0 or (feature % FEATURES // SIDE % 2 == 1 and feature % SIDE % 2 == 0)
    ]
    assert kept.targets[kept.targets >= 0].tolist() == row.ids[-2:].tolist()
    assert kept.images == 2


def test_leaving_visual_tokens_out_is_hiding_their_keys(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid
) -> None:
    llava = load(make_checkpoint(), "eager").eval()
    row, images = row_of(3, 7, answer=3), pixels(1)
    part = grid.subgrid(3, (0, 2))
    decoder = SoftDecoder(load(make_checkpoint()), None, grid).eval()
    hidden = (row.features >= 0) & ~part[row.features.clamp_min(0)]
    causal = torch.ones(len(row), len(row)).tril().bool() & ~hidden
    mask = torch.zeros(len(row), len(row)).masked_fill(~causal, -1e9)[None, None]

    with torch.no_grad():
        found = decoder(make_batch([keep_features(row, part)], FEATURES, pixel_values=images))
        expected = llava(input_ids=row.ids[None], pixel_values=images, attention_mask=mask).logits

    torch.testing.assert_close(found.logits, expected[0, -4:-1], atol=1e-4, rtol=1e-4)


def test_features_without_a_place_are_on_every_subgrid() -> None:
    grid = PatchGrid.of((2, 2), prefix_tokens=1)
    assert grid.subgrid(2, (1, 1)).tolist() == [True, False, False, False, True]


def test_thinning_a_batch_is_leaving_tokens_out_of_its_rows(grid: PatchGrid) -> None:
    rows = [row_of(3, 2, 5, answer=2), row_of(4, answer=1), row_of(2, 7, answer=3)]
    offsets = [(0, 1), (1, 1), (1, 0)]

    thinned = thin_batch(
        make_batch(rows, FEATURES), grid, torch.full((len(rows),), 2), torch.tensor(offsets)
    )

    parts = [grid.subgrid(2, offset) for offset in offsets]
    left = [
        keep_features(row, torch.cat([part] * max(1, row.images)))
        for row, part in zip(rows, parts, strict=True)
    ]
    expected = dataclasses.replace(make_batch(left, FEATURES), strides=torch.tensor([2, 2, 2]))
    for name, value in expected.tensors().items():
        assert torch.equal(thinned.tensors()[name], value), name

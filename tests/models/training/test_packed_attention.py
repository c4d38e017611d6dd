"""Packed attention gives what the row's mask would give, values and gradients."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atp_models.training.packed_attention import PackedLayout, packed_attention

HEADS, KV_HEADS, WIDTH = 4, 2, 8


def masked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, blocks: torch.Tensor):
    """Every product, most of them masked: [1, tokens, heads, width]."""
    place = torch.arange(len(blocks))
    visible = place <= place.unsqueeze(1)
    visible &= (blocks == 0) | (blocks == blocks.unsqueeze(1))
    groups = HEADS // KV_HEADS
    key, value = (it.repeat_interleave(groups, dim=1) for it in (key, value))
    scores = query @ key.transpose(2, 3) / WIDTH**0.5
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(0, 99))
def test_packed_attention_equals_the_masked_one(prefix: int, lengths: list[int], seed: int) -> None:
    sizes = torch.tensor([prefix, *lengths])
    blocks = torch.arange(len(sizes)).repeat_interleave(sizes)
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(
            1, heads, len(blocks), WIDTH, generator=generator, dtype=torch.float64
        ).requires_grad_()
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    weights = torch.randn(1, len(blocks), HEADS, WIDTH, generator=generator, dtype=torch.float64)

    expected = masked(query, key, value, blocks)
    wanted = torch.autograd.grad((expected * weights).sum(), (query, key, value))
    found = packed_attention(query, key, value, PackedLayout.of(blocks), WIDTH**-0.5)
    got = torch.autograd.grad((found * weights).sum(), (query, key, value))

    torch.testing.assert_close(found, expected)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_blocks_of_like_length_are_computed_together() -> None:
    sizes = torch.tensor([5, 8, 30, 9, 31, 8])
    layout = PackedLayout.of(torch.arange(6).repeat_interleave(sizes))
    assert [group.tokens.shape for group in layout.groups] == [(3, 9), (2, 31)]
    assert layout.order.sort().values.tolist() == list(range(sum(sizes)))

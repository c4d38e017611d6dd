"""The PyTorch reference against Transformers' forward, masks and plain formulas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from atp_models.architecture import read_architecture
from atp_models.checkpoint import Checkpoint
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config
from atp_models.reference import LlavaReference
from atp_models.reference_layers import Survivors, attention_scores
from atp_models.reference_parts import ReferenceParts

IMAGE, PATCHES = 504, 16
CUT = 2


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[str, Path] = {}

    def checkpoint(**options: object) -> Path:
        name = repr(sorted(options.items()))
        if name not in made:
            made[name] = tmp_path_factory.mktemp("reference") / "checkpoint"
            write_random_checkpoint(made[name], tiny_config(**options))  # type: ignore[arg-type]
        return made[name]

    return checkpoint


@pytest.fixture(scope="module")
def reference(make: Callable[..., Path]) -> LlavaReference:
    return LlavaReference.load(make(kv_heads=2))


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def ids() -> Tensor:
    text = torch.randint(3, 500, (17,), generator=torch.Generator().manual_seed(2))
    image = torch.full((PATCHES,), IMAGE)
    return torch.cat((text[:6], image, text[6:9], image, text[9:]))


@pytest.fixture(scope="module")
def hidden(reference: LlavaReference, ids: Tensor, pixels: Tensor) -> Tensor:
    return reference.embed(ids, reference.see(pixels).features)


def test_pruned_equals_transformers_forward_when_nothing_is_dropped(
    reference: LlavaReference, ids: Tensor, pixels: Tensor, hidden: Tensor
) -> None:
    dense, pruned = reference.dense(), reference.pruned({1: "text", CUT: "last"})
    chunks = [(ids, pixels, hidden)]
    chunks += [(text, None, reference.embed(text)) for text in (ids[:1], ids[2:5])]

    for chunk, photos, states in chunks:
        expected = dense.forward(chunk, photos)
        found = pruned.forward(states, chunk == IMAGE)

        torch.testing.assert_close(found.logits, expected.logits)
        for layer, key, value in zip(found.layers, expected.keys, expected.values, strict=True):
            torch.testing.assert_close(layer.key, key)
            torch.testing.assert_close(layer.value, value)


def test_pruned_equals_hiding_the_dropped_keys_when_tokens_are_dropped(
    reference: LlavaReference, ids: Tensor, pixels: Tensor, hidden: Tensor
) -> None:
    dropped = torch.zeros(len(ids), dtype=torch.bool)
    dropped[(ids == IMAGE).nonzero().flatten()[1::3]] = True
    pruned = reference.pruned({CUT: "text"})
    keep = {CUT: Survivors.unmerged((~dropped).nonzero().flatten(), len(ids))}
    found = [pruned.forward(hidden, ids == IMAGE, keep)]
    found += [pruned.forward(reference.embed(ids[n : n + 1]), dropped[:1]) for n in (0, 3)]

    with hidden_keys(reference, dropped, from_layer=CUT):
        dense = reference.dense()
        expected = [dense.forward(ids, pixels)]
        expected += [dense.forward(ids[n : n + 1]) for n in (0, 3)]

    assert found[0].layers[CUT].key.shape[1] == len(ids) - int(dropped.sum())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.logits, b.logits)
    torch.testing.assert_close(found[0].layers[CUT].key, expected[0].keys[CUT][:, ~dropped])
    torch.testing.assert_close(found[2].layers[3].value, expected[2].values[3])


class hidden_keys:  # noqa: N801 - used like a function
    """Layers from `from_layer` on see no key of `dropped` tokens: Transformers' own forward."""

    def __init__(self, reference: LlavaReference, dropped: Tensor, *, from_layer: int) -> None:
        self._layers = reference.model.model.language_model.layers[from_layer:]
        self._dropped = dropped

    def __enter__(self) -> None:
        self._hooks = [
            layer.register_forward_pre_hook(self._hide, with_kwargs=True) for layer in self._layers
        ]

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hide(
        self, _module: object, arguments: tuple[Tensor], options: dict[str, Tensor]
    ) -> tuple[tuple[Tensor], dict[str, Tensor]]:
        mask = options["attention_mask"]
        tokens, keys = options["position_ids"].shape[1], int(options["position_ids"].max()) + 1
        if mask is None:
            mask = torch.zeros(1, 1, tokens, keys)
        mask = mask.clone()
        mask[..., : len(self._dropped)][..., self._dropped] = torch.finfo(torch.float32).min
        return arguments, {**options, "attention_mask": mask}


def test_survivors_keep_their_positions_and_the_next_chunk_goes_on_unpruned(
    reference: LlavaReference, ids: Tensor, hidden: Tensor
) -> None:
    kept = torch.tensor([*range(6), 9, *range(6 + PATCHES, len(ids))])
    run = reference.pruned({CUT: "text"})

    first = run.forward(hidden, ids == IMAGE, {CUT: Survivors.unmerged(kept, len(ids))})
    second = run.forward(reference.embed(ids[:1]), ids[:1] == IMAGE)

    assert first.layers[CUT - 1].tokens.positions.tolist() == list(range(len(ids)))
    assert first.layers[CUT].tokens.positions.tolist() == kept.tolist()
    assert [layer.tokens.positions.tolist() for layer in second.layers] == [[len(ids)]] * 4


def test_scores_agree_with_the_attention_that_transformers_returns(
    reference: LlavaReference, ids: Tensor, pixels: Tensor, hidden: Tensor
) -> None:
    scores = reference.pruned({CUT: "text"}).forward(hidden, ids == IMAGE).layers[CUT - 1].scores

    outputs = reference.model(ids[None], pixel_values=pixels[:], output_attentions=True)
    last = int((ids == IMAGE).nonzero()[-1])
    expected = outputs.attentions[CUT - 1][0].mean(0)[last + 1 :].mean(0)

    assert scores is not None
    torch.testing.assert_close(scores.cross, expected.detach())


def test_scores_are_computed_before_pruning_points_only(
    reference: LlavaReference, ids: Tensor, hidden: Tensor
) -> None:
    step = reference.pruned({1: "text", 3: "raters"}).forward(hidden, ids == IMAGE)

    assert [layer.scores is not None for layer in step.layers] == [True, False, True, False]


def test_scores_follow_the_papers_sums_when_written_as_loops() -> None:
    generator = torch.Generator().manual_seed(3)
    heads, kv_heads, tokens, width = 4, 2, 5, 6
    query = torch.randn(1, heads, tokens, width, generator=generator)
    key = torch.randn(1, kv_heads, tokens, width, generator=generator)
    weights = torch.rand(1, heads, tokens, tokens, generator=generator)
    visual = torch.tensor([False, True, True, False, False])

    asked = torch.tensor([False, False, False, True, True])
    scores = attention_scores(query, key, weights, visual, asked)

    for i in range(tokens):
        own = [
            float(query[0, head, j] @ key[0, head // 2, i]) / width**0.5
            for head in range(heads)
            for j in (1, 2)
        ]
        cross = [float(weights[0, head, t, i]) for head in range(heads) for t in (3, 4)]
        assert float(scores.own[i]) == pytest.approx(sum(own) / len(own), abs=1e-6)
        assert float(scores.cross[i]) == pytest.approx(sum(cross) / len(cross), abs=1e-6)


@pytest.mark.parametrize(
    ("visual", "own_is_zero"), [([False] * 3, True), ([False, True, True], False)]
)
def test_scores_are_zero_when_there_is_nobody_to_ask(visual: list[bool], own_is_zero: bool) -> None:
    ones = torch.ones(1, 2, 3, 4)

    nobody = torch.zeros(3, dtype=torch.bool)
    scores = attention_scores(ones, ones, torch.ones(1, 2, 3, 3), torch.tensor(visual), nobody)

    assert not scores.cross.any()
    assert bool((scores.own == 0).all()) == own_is_zero


@pytest.mark.parametrize(
    "options",
    [
        {"kv_heads": 2},
        {"vision": "siglip", "tied": True, "feature_layer": [1, -2], "mlp_bias": True},
        {"vision": "dinov2", "strategy": "full", "attention_bias": True},
    ],
    ids=["clip", "siglip", "dinov2"],
)
def test_parts_compute_what_the_whole_does(
    make: Callable[..., Path], options: dict[str, object], pixels: Tensor
) -> None:
    path = make(**options)
    whole = LlavaReference.load(path)
    checkpoint = Checkpoint.open(path)
    parts = ReferenceParts(checkpoint, read_architecture(checkpoint))
    ids = torch.tensor([7, 300, 11])

    seen = whole.see(pixels)
    hidden = parts.embed(ids)
    step = whole.pruned().forward(hidden, torch.zeros(3, dtype=torch.bool))

    torch.testing.assert_close(parts.see(pixels).features, seen.features)
    torch.testing.assert_close(parts.tower_states(pixels, 2), seen.states[:3])
    torch.testing.assert_close(hidden, whole.embed(ids))
    torch.testing.assert_close(parts.head(step.layers[-1].left)[-1:], step.logits)
    for number, found in parts.layer(3).state_dict().items():
        expected = whole.model.model.language_model.layers[3].state_dict()[number]
        assert torch.equal(found, expected)
    angles = [module(hidden, ids[None]) for module in (parts.rotary(), rotary_of(whole))]
    torch.testing.assert_close(*angles)


def rotary_of(reference: LlavaReference) -> torch.nn.Module:
    rotary: torch.nn.Module = reference.model.model.language_model.rotary_emb
    return rotary

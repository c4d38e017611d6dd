from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.runtime.forced_selection import keep_all
from transformers import LlavaForConditionalGeneration

from atp_models.random_configs import tiny_config
from atp_runtime.backends import open_backend
from atp_runtime.bundle import Bundle
from atp_runtime.context import CAPACITY_STEP, Context, ImageFeatures
from atp_runtime.decoder import SegmentedDecoder
from atp_runtime.embedding import EmbeddingTable
from atp_runtime.errors import InputError
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import Selection, Selectors, VisualTokens
from atp_runtime.vision import VisionEncoder

IMAGE, FEATURES = 504, 16
TEXT = list(range(20, 60))
PHOTO = [IMAGE] * FEATURES


def keep_every_second(
    _point: PruningPoint, _self: np.ndarray, _cross: np.ndarray, _text: bool, visual: VisualTokens
) -> Selection:
    return Selection(np.arange(len(visual)) % 2 == 0)


DENSE = Selectors([PruningPoint(layer, "keep_all", {}) for layer in (1, 2, 3)], {})


@dataclass
class Loaded:
    """A bundle's decoder, and features of three photos."""

    bundle: Bundle
    decoder: SegmentedDecoder
    images: list[ImageFeatures]

    def context(self) -> Context:
        return Context(self.bundle.manifest, EmbeddingTable.open(self.bundle), self.decoder)


@pytest.fixture(scope="module")
def load(export_bundle, photos: list[Path]) -> Iterator[Callable[[str], Loaded]]:
    backend, opened = open_backend(threads=1), []

    def load(precision: str) -> Loaded:
        bundle = Bundle.open(export_bundle(tiny_config(), precision=precision).bundle)
        vision, decoder = VisionEncoder(bundle, backend), SegmentedDecoder(bundle, backend, 1)
        opened.extend([vision, decoder])
        features = [vision.encode(vision.read(photo)) for photo in photos]
        return Loaded(bundle, decoder, [ImageFeatures(n, it) for n, it in enumerate(features)])

    yield load
    for it in opened:
        it.close()


@pytest.fixture(scope="module")
def loaded(load: Callable[[str], Loaded]) -> Loaded:
    return load("fp32")


@pytest.fixture(scope="module")
def model(tiny) -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(tiny.checkpoint).eval()


def reference(
    model: LlavaForConditionalGeneration, ids: list[int], images: list[ImageFeatures]
) -> np.ndarray:
    """Logits of the last token, all of the prompt run at once and unpruned."""
    hidden = model.get_input_embeddings()(torch.tensor(ids))
    if images:
        features = np.concatenate([image.tokens.values for image in images]).astype(np.float32)
        hidden[torch.tensor(ids) == IMAGE] = torch.from_numpy(features)
    with torch.no_grad():
        return model(inputs_embeds=hidden[None]).logits[0, -1].numpy()


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 0.05)])
def test_logits_are_those_of_transformers_when_nothing_is_pruned(
    load: Callable[[str], Loaded],
    model: LlavaForConditionalGeneration,
    precision: str,
    tolerance: float,
    images: int,
) -> None:
    loaded = load(precision)
    ids, shown = [1, *PHOTO * images, *TEXT], loaded.images[:images]
    found = loaded.context().prefill(ids, shown, keep_all, max_new_tokens=4)
    assert found.reused == 0
    np.testing.assert_allclose(found.result.logits, reference(model, ids, shown), atol=tolerance)


def test_caches_keep_what_they_hold_when_a_later_prompt_makes_them_grow(
    loaded: Loaded, model: LlavaForConditionalGeneration
) -> None:
    context = loaded.context()
    first, answer = [1, *PHOTO, *TEXT * 4], [7, 8, 9]
    context.prefill(first, loaded.images[:1], keep_all, max_new_tokens=4)
    for token in answer:
        context.feed(token)
    ids = [*first, *answer, *TEXT * 6, *PHOTO, 5]
    assert len(first) + 4 < CAPACITY_STEP < len(ids)
    found = context.prefill(ids, loaded.images[:2], keep_all, max_new_tokens=2 * CAPACITY_STEP)
    assert found.reused == len(first) + len(answer)
    expected = reference(model, ids, loaded.images[:2])
    np.testing.assert_allclose(found.result.logits, expected, atol=1e-4)


def test_caches_have_room_for_the_answer_when_the_prompt_fills_a_step(loaded: Loaded) -> None:
    context = loaded.context()
    context.prefill([1] * CAPACITY_STEP, [], keep_all, max_new_tokens=3)
    context.feed(7)
    context.feed(8)
    assert loaded.decoder.state.position == CAPACITY_STEP + 2


def test_fed_token_continues_the_prompt(
    loaded: Loaded, model: LlavaForConditionalGeneration
) -> None:
    context, ids = loaded.context(), [1, *PHOTO, *TEXT]
    context.prefill(ids, loaded.images[:1], keep_all, max_new_tokens=2)
    expected = reference(model, [*ids, 99], loaded.images[:1])
    np.testing.assert_allclose(context.feed(99), expected, atol=1e-4)


def test_pruned_caches_serve_a_later_turn_as_they_were_left(loaded: Loaded) -> None:
    context = loaded.context()
    first = [1, *PHOTO, *TEXT]
    pruned = context.prefill(first, loaded.images[:1], keep_every_second, max_new_tokens=4)
    context.feed(7)
    again = context.prefill([*first, 7, 8, 9], loaded.images[:1], keep_all, max_new_tokens=4)
    assert again.reused == len(first) + 1
    text = len(first) - FEATURES
    assert pruned.state.lengths == tuple(text + left for left in (16, 8, 4, 2))
    assert again.state.lengths == tuple(text + left + 3 for left in (16, 8, 4, 2))


def test_image_is_run_again_when_it_is_another_at_the_same_place(loaded: Loaded) -> None:
    context = loaded.context()
    context.prefill([1, *PHOTO, *TEXT], loaded.images[:1], keep_all, max_new_tokens=4)
    longer = [1, *PHOTO, *TEXT, 7]
    other = context.prefill(longer, loaded.images[1:2], keep_all, max_new_tokens=4)
    expected = loaded.context().prefill(longer, loaded.images[1:2], keep_all, max_new_tokens=4)
    assert other.reused == 0
    np.testing.assert_array_equal(other.result.logits, expected.result.logits)


def test_unpruned_image_serves_another_question_of_the_same_conversation(
    loaded: Loaded, model: LlavaForConditionalGeneration
) -> None:
    context = loaded.context()
    context.prefill([1, *PHOTO, *TEXT, 7, 8], loaded.images[:1], DENSE, max_new_tokens=4)
    other = [1, *PHOTO, *TEXT, 9, 10, 11]
    found = context.prefill(other, loaded.images[:1], DENSE, max_new_tokens=4)
    assert (found.reused, len(found.chunk)) == (1 + FEATURES + len(TEXT), 3)
    expected = reference(model, other, loaded.images[:1])
    np.testing.assert_allclose(found.result.logits, expected, atol=1e-4)


def test_unpruned_image_serves_another_conversation_as_a_fresh_context_would(
    loaded: Loaded, model: LlavaForConditionalGeneration
) -> None:
    shared, prompts = [1, *PHOTO, 5], ([21, 22], [23], [24, 25, 26], [21, 22])
    context = loaded.context()
    for place, question in enumerate(prompts):
        context.restart()
        ids = [*shared, *question]
        found = context.prefill(ids, loaded.images[:1], DENSE, max_new_tokens=4)
        assert found.reused == (0 if place == 0 else len(shared))
        expected = reference(model, ids, loaded.images[:1])
        np.testing.assert_allclose(found.result.logits, expected, atol=1e-4)
        fed = context.feed(30 + place)
        expected = reference(model, [*ids, 30 + place], loaded.images[:1])
        np.testing.assert_allclose(fed, expected, atol=1e-4)


@pytest.mark.parametrize("first", ["dense", "pruned"])
@pytest.mark.parametrize("second", ["dense", "pruned"])
def test_next_conversation_finds_what_a_fresh_context_would_whatever_the_rules(
    loaded: Loaded, first: str, second: str
) -> None:
    rules = {"dense": DENSE, "pruned": keep_every_second}
    ids = [1, *PHOTO, *TEXT]
    context = loaded.context()
    context.prefill(ids, loaded.images[:1], rules[first], max_new_tokens=4)
    for token in (7, 8):
        context.feed(token)
    context.restart()
    # Its beginning is all that the first conversation had, the answer included.
    longer = [*ids, 7, 8, 9]
    found = context.prefill(longer, loaded.images[:1], rules[second], max_new_tokens=4)
    fresh = loaded.context().prefill(longer, loaded.images[:1], rules[second], max_new_tokens=4)
    both_dense = (first, second) == ("dense", "dense")
    assert found.reused == (len(ids) + 2 if both_dense else 0)
    assert found.state == fresh.state
    np.testing.assert_allclose(found.result.logits, fresh.result.logits, atol=1e-5)


def test_nothing_is_reused_behind_what_is_forgotten(loaded: Loaded) -> None:
    context, ids = loaded.context(), [1, *PHOTO, *TEXT]
    first = context.prefill(ids, loaded.images[:1], DENSE, max_new_tokens=4)
    context.forget()
    again = context.prefill(ids, loaded.images[:1], DENSE, max_new_tokens=4)
    assert again.reused == 0
    assert again.state == first.state
    np.testing.assert_allclose(again.result.logits, first.result.logits, atol=1e-5)
    assert again.embedding_seconds > 0


def test_conversation_that_prunes_goes_on_after_one_that_did_not(loaded: Loaded) -> None:
    context, ids = loaded.context(), [1, *PHOTO, *TEXT]
    context.prefill(ids, loaded.images[:1], DENSE, max_new_tokens=4)
    context.restart()
    context.prefill(ids, loaded.images[:1], keep_every_second, max_new_tokens=4)
    context.feed(7)
    later = context.prefill([*ids, 7, 8], loaded.images[:1], keep_every_second, max_new_tokens=4)
    assert later.reused == len(ids) + 1


def test_image_is_run_as_a_whole_when_the_prompt_ends_with_it(loaded: Loaded) -> None:
    context = loaded.context()
    context.prefill([1, *PHOTO, 5], loaded.images[:1], DENSE, max_new_tokens=4)
    found = context.prefill([1, *PHOTO], loaded.images[:1], DENSE, max_new_tokens=4)
    assert (found.reused, len(found.chunk.visual())) == (1, FEATURES)


def test_generated_placeholder_is_not_taken_for_an_image(loaded: Loaded) -> None:
    context = loaded.context()
    context.prefill([1, *TEXT], [], keep_all, max_new_tokens=FEATURES + 1)
    for token in PHOTO:
        context.feed(token)
    found = context.prefill([1, *TEXT, *PHOTO, 5], loaded.images[:1], keep_all, max_new_tokens=4)
    assert found.reused == 1 + len(TEXT)
    assert len(found.chunk.visual()) == FEATURES


def test_room_ends_where_the_models_positions_do(loaded: Loaded) -> None:
    limit, context = loaded.bundle.manifest.text.max_positions, loaded.context()
    context.prefill([1] * (limit - 1), [], keep_all, max_new_tokens=100)
    assert context.has_room()
    context.feed(7)
    assert not context.has_room()
    with pytest.raises(InputError, match=str(limit)):
        context.feed(7)


def test_prompt_is_refused_when_it_is_longer_than_the_models_positions(loaded: Loaded) -> None:
    limit, context = loaded.bundle.manifest.text.max_positions, loaded.context()
    context.check_fits([1] * limit, 0)
    with pytest.raises(InputError, match=f"{limit + 1} tokens, 16 of them for 1 image"):
        context.check_fits([*PHOTO, *[1] * (limit + 1 - FEATURES)], 1)

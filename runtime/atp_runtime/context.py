"""The part of a conversation that the decoder's caches hold.

A prompt is run from where it begins to differ from what was run before. Where nothing is pruned
that holds for the first prompt of a conversation, too: what an earlier one left is what a fresh
context would compute. The caches grow in steps, so that a conversation of any length takes only
the memory it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from atp_runtime.chunk import Chunk
from atp_runtime.decoder import SegmentedDecoder
from atp_runtime.decoder_results import DecoderState, PrefillResult
from atp_runtime.embedding import EmbeddingTable
from atp_runtime.errors import InputError
from atp_runtime.history import History
from atp_runtime.image_tokens import ImageTokens
from atp_runtime.manifest import Manifest
from atp_runtime.selection import FloatArray, SelectTokens, keeps_all

CAPACITY_STEP = 256


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """An image of the session.

    Attributes:
        number: Tells it from all others of the session, also from those of turns that failed.
        tokens: What the decoder gets of it.
    """

    number: int
    tokens: ImageTokens


@dataclass(frozen=True, eq=False)
class Prefill:
    """A prompt that was run.

    Attributes:
        reused: Its leading tokens that the caches held already.
        chunk: The others, which were run.
        result: What running them gave.
        state: The decoder's, behind them.
        embedding_seconds: What embedding their ids and splicing in the features took.
    """

    reused: int
    chunk: Chunk
    result: PrefillResult
    state: DecoderState
    embedding_seconds: float


class Context:
    """Runs the prompts and answers of one conversation after another.

    Args:
        manifest: The bundle's.
        embedding: Its embedding table.
        decoder: Its decoder, whose caches it takes over.

    Attributes:
        embedding: As given.
    """

    def __init__(
        self, manifest: Manifest, embedding: EmbeddingTable, decoder: SegmentedDecoder
    ) -> None:
        self._placeholder = manifest.vision.image_token_id
        self._text = manifest.text
        self.embedding = embedding
        self._decoder = decoder
        decoder.reset()
        self._history = History(decoder.state)
        self._begun = False

    def restart(self) -> None:
        """Begins another conversation, with the caches as far as no rule has had a say in them."""
        self._begun = False
        self._decoder.rewind(self._history.cut(self._history.unpruned()))

    def forget(self) -> None:
        """Begins another conversation with empty caches."""
        self._begun = False
        self._decoder.rewind(self._history.cut(0))

    def check_fits(self, ids: Sequence[int], images: int) -> None:
        """Makes sure that the model has positions for a prompt.

        Args:
            ids: As for `prefill`.
            images: How many it is about.

        Raises:
            InputError: The prompt is longer.
        """
        limit, visual = self._text.max_positions, ids.count(self._placeholder)
        if len(ids) > limit:
            raise InputError(
                f"the prompt has {len(ids)} tokens, {visual} of them for {images} image(s)",
                why=f"the model has {limit} positions; the whole conversation counts, and so do "
                "visual tokens that are pruned.",
                fix="shorten the question, use fewer images, or begin a new conversation.",
            )

    def prefill(
        self,
        ids: Sequence[int],
        images: Sequence[ImageFeatures],
        select: SelectTokens,
        *,
        max_new_tokens: int,
    ) -> Prefill:
        """Runs what of a prompt the caches do not hold yet.

        If it fails, the caches still serve what this prompt has in common with former ones.

        Args:
            ids: The whole conversation, one placeholder per token of an image.
            images: Of the whole conversation.
            select: Asked at every pruning point which visual tokens stay.
            max_new_tokens: Longest answer to come; the caches get room for it.

        Raises:
            InputError: The prompt is longer than the model's positions.
            MachineError: Memory does not suffice.
            CheckFailedError: Scores are not finite.
        """
        keys = self._keys(ids, images)
        whole = keeps_all(select)
        # What an earlier conversation left is not pruned; a rule that prunes starts afresh.
        reused = self._reusable(keys) if whole or self._begun else 0
        self._decoder.rewind(self._history.cut(reused))
        new = ids[reused:]
        first_image = _whole_images(images, ids[:reused].count(self._placeholder))
        shown = [image.tokens for image in images[first_image:]]
        places = [tokens.places for tokens in shown]
        chunk = Chunk.from_ids(new, self._placeholder, places, first_image)
        none = np.empty((0, self._text.hidden))
        began = perf_counter()
        features = np.concatenate([tokens.values for tokens in shown]) if shown else none
        hidden = self.embedding.splice(new, features, self._placeholder)
        embedding_seconds = perf_counter() - began
        self._decoder.grow(self._capacity(len(ids) + max_new_tokens))
        result = self._decoder.prefill(hidden, chunk, select)
        self._history.prefilled(keys[reused:], self._decoder.state, whole=whole)
        self._begun = True
        return Prefill(reused, chunk, result, self._decoder.state, embedding_seconds)

    def has_room(self) -> bool:
        """Whether one more token fits the model's positions and what its stages can take."""
        return self._decoder.has_room()

    def feed(self, token: int) -> FloatArray:
        """Runs one token of the answer; float32 [vocabulary] for the next."""
        logits = self._decoder.decode(self.embedding.rows([token])[None])
        self._history.decoded(token)
        return logits

    def _reusable(self, keys: Sequence[int]) -> int:
        """As `History.reusable`, but images are run as a whole."""
        reused = self._history.reusable(keys)
        while reused > 0 and keys[reused] < 0 and keys[reused] == keys[reused - 1]:
            reused -= 1
        return reused

    def _keys(self, ids: Sequence[int], images: Sequence[ImageFeatures]) -> list[int]:
        """For `History`: visual tokens are told apart by their image, below all ids."""
        numbers = (-1 - image.number for image in images for _ in range(len(image.tokens)))
        return [next(numbers) if token == self._placeholder else token for token in ids]

    def _capacity(self, tokens: int) -> int:
        needed = min(tokens, self._text.max_positions)
        return -(-needed // CAPACITY_STEP) * CAPACITY_STEP


def _whole_images(images: Sequence[ImageFeatures], visual: int) -> int:
    """How many of them the first `visual` visual tokens are."""
    ends = np.cumsum([len(image.tokens) for image in images])
    return int(np.searchsorted(ends, visual, side="right"))

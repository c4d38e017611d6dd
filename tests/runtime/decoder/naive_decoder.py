"""The hand-made bundle's decoder read token by token, and chunks to run on both."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from atp_runtime.chunk import Chunk

LAYERS = ((0, 2), (2, 3), (3, 5))
TEXT, IMAGE = -1, 0


@dataclass
class NaiveDecoder:
    """What the hand-made graphs compute (see ../conftest.py), in float64 and token by token."""

    head: np.ndarray
    position: int = 0
    keys: dict[int, list[np.ndarray]] = field(default_factory=dict)
    values: dict[int, list[np.ndarray]] = field(default_factory=dict)

    def run(
        self, hidden: np.ndarray, visual: set[int], masks: Sequence[Sequence[bool]]
    ) -> tuple[np.ndarray, list[list[int]], list[np.ndarray]]:
        """Logits, what is kept at each point (as tokens of this call) and scores.self, cross."""
        going = list(range(len(hidden)))
        rows = [hidden[token].astype(np.float64) for token in going]
        kept, scores = [], []
        for number, layers in enumerate(LAYERS):
            positions = [self.position + token for token in going]
            for layer in range(*layers):
                before = rows
                rows, new_keys = self.layer(layer, rows, positions)
            if number == len(LAYERS) - 1:
                break
            scores.append(self.scores(before, new_keys, going, visual))
            mask = iter(masks[number])
            stays = [token not in visual or next(mask) for token in going]
            rows = [row for row, stay in zip(rows, stays, strict=True) if stay]
            going = [token for token, stay in zip(going, stays, strict=True) if stay]
            kept.append(going)
        self.position += len(hidden)
        return rows[-1] @ self.head, kept, scores

    def layer(
        self, layer: int, rows: list[np.ndarray], positions: list[int]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        keys = self.keys.setdefault(layer, [])
        values = self.values.setdefault(layer, [])
        out, new = [], []
        for row, position in zip(rows, positions, strict=True):
            new.append((0.5 + 0.1 * layer) * row + 0.01 * position)
            keys.append(new[-1])
            values.append(0.3 * row - 0.02 * position + 0.1 * layer)
            out.append(np.tanh(row + (sum(keys) - 0.5 * sum(values)) / 16))
        return out, new

    @staticmethod
    def scores(
        queries: list[np.ndarray], keys: list[np.ndarray], going: list[int], visual: set[int]
    ) -> np.ndarray:
        places = [place for place, token in enumerate(going) if token in visual]
        width = len(queries[0])
        own = np.mean([queries[p] for p in places], axis=0) if places else np.zeros(width)
        end = max(visual, default=0)  # of the last image, whatever is left of it
        after = [place for place, token in enumerate(going) if token > end] if places else []
        text = np.mean([queries[p] for p in after], axis=0) if after else np.zeros(width)
        return np.array([[key @ own for key in keys], [key @ text for key in keys]])


def chunk_of(images: Sequence[int]) -> Chunk:
    image = np.array(images, dtype=np.int64)
    place = np.where(image >= 0, np.arange(len(image)), -1)
    return Chunk(image, place, place)


def hidden_of(seed: int, tokens: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, tokens, 8)).astype(np.float32)


def visual_of(images: Sequence[int]) -> set[int]:
    return {token for token, image in enumerate(images) if image >= 0}


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)

"""What enters a segment: which tokens of the segment before it, and what is made of the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atp_runtime.backends.base import Backend, DeviceArray, DeviceBuffer
from atp_runtime.selection import FloatArray, IndexArray, Selection, VisualTokens


@dataclass(frozen=True, eq=False)
class Entry:
    """What is left of a sequence of `tokens` tokens.

    Attributes:
        place: int64 [kept], rising: the tokens whose places are left.
        merged: int64 [merged], rising: those of them in whose place one made of others stands.
        weights: float32 [merged, tokens]: the share of each token in each of these.
    """

    place: IndexArray
    merged: IndexArray
    weights: FloatArray

    @classmethod
    def everything(cls, tokens: int) -> Entry:
        """Each token as it is."""
        every = np.arange(tokens)
        return cls(every, every[:0], np.zeros((0, tokens), dtype=np.float32))

    @classmethod
    def of(cls, selection: Selection, visual: VisualTokens, tokens: int) -> Entry:
        """What a rule leaves of a sequence with these visual tokens."""
        place, merges = selection.keep_indices(visual, tokens), selection.merges
        if merges is None:
            return cls(place, place[:0], np.zeros((0, tokens), dtype=np.float32))
        return cls(place, visual.index[merges.place], merges.weights(visual.index, tokens))

    @property
    def keep_indices(self) -> IndexArray:
        """int64 [kept]: `place`, but from `tokens` on for what is made of others."""
        indices = self.place.copy()
        made = self.weights.shape[1] + np.arange(len(self.merged))
        indices[np.searchsorted(self.place, self.merged)] = made
        return indices

    @property
    def merge_weights(self) -> FloatArray:
        """`weights`, or a row that nobody asks for: no axis of a graph is empty."""
        if len(self.weights):
            return self.weights
        return np.zeros((1, self.weights.shape[1]), dtype=np.float32)


def route_weights(place: IndexArray, visual: VisualTokens, scores: FloatArray) -> FloatArray:
    """How much of a routed layer's update tokens get: visual ones their score, text all of it.

    As in Mixture-of-Depths (arXiv 2404.02258, eq. 1), where the router's score is not squashed.

    Args:
        place: int64 [kept], rising: the tokens that go through the layer.
        visual: Of the sequence.
        scores: float32 [tokens], the router's.

    Returns:
        float32 [kept].
    """
    weights = np.ones(len(scores), dtype=np.float32)
    weights[visual.index] = scores[visual.index]
    return weights[place]


class MergeTable:
    """Device memory for `Entry.merge_weights`, of one sequence at a time.

    Args:
        backend: Whose memory is used.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._held: DeviceBuffer | None = None

    def write(self, weights: FloatArray) -> DeviceArray:
        """Writes float32 [merged, tokens].

        Raises:
            MachineError: There is not enough memory.
        """
        if self._held is None or self._held.nbytes < weights.nbytes:
            self._held = self._backend.allocate_shared(weights.nbytes)
        into = self._held.array(weights.shape, "float32")
        self._backend.write(into, weights)
        return into

"""Device memory that the segments share: hidden states in flight, and what a scorer takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from atp_runtime.backends.base import Backend, DeviceArray, item_size
from atp_runtime.manifest import Stage
from atp_runtime.selection import FloatArray, IndexArray, VisualTokens
from atp_runtime.tensor_names import ROUTE_WEIGHTS, ROUTER_SCORES, ROW_SCORES, SCORES

_INDICES = ("keep_indices", "position_ids", "past_length", "text_rows")
_FLOATS = ("visual_weights", "text_weights", ROUTE_WEIGHTS, ROUTER_SCORES, *SCORES)


@dataclass(frozen=True, eq=False)
class Scorer:
    """Which tokens a scorer asks, and on which it reports.

    Attributes:
        visual_weights: float32 [kept]: 1/|V| on visual tokens, else 0.
        text_rows: int64 [rows]: the text tokens whose attention is averaged; at least one.
        text_weights: float32 [rows]: 1/|T|; 0 for the one row of a sequence that has none.
        has_text: Whether there is text to ask.
    """

    visual_weights: FloatArray
    text_rows: IndexArray
    text_weights: FloatArray
    has_text: bool

    @classmethod
    def for_sequence(cls, visual: VisualTokens, tokens: int, behind: int | None = None) -> Scorer:
        """What a sequence needs.

        Args:
            visual: Its visual tokens.
            tokens: How many it has in all.
            behind: Where the text begins that is asked; None is behind the last visual token. They
                differ where all of the last image was pruned.
        """
        weights = np.zeros(tokens, dtype=np.float32)
        rows = np.arange(0)
        if len(visual):
            weights[visual.index] = 1 / len(visual)
            rows = np.arange(visual.index[-1] + 1 if behind is None else behind, tokens)
        if len(rows) == 0:
            none = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32)
            return cls(weights, *none, has_text=False)
        return cls(weights, rows, np.full(len(rows), 1 / len(rows), np.float32), has_text=True)

    def last_row(self) -> Scorer:
        """The same, but of the text only the last token is asked (FastV, arXiv 2403.06764)."""
        return self.asking(self.text_rows[-1:])

    def asking(self, rows: IndexArray) -> Scorer:
        """The same, but of the text only some tokens are asked.

        Args:
            rows: int64 [rows], their places; of a sequence without text nobody is.
        """
        if not self.has_text or len(rows) == 0:
            return self
        weights = np.full(len(rows), 1 / len(rows), dtype=np.float32)
        return replace(self, text_rows=rows, text_weights=weights)


class Workspace:
    """What segments read and write besides caches, for sequences of up to `tokens` tokens.

    Hidden states alternate between two blocks, so that one segment's output is the next
    one's input where it is.

    Args:
        backend: Whose memory is used.
        tokens: Tokens there is room for.
        hidden: D, the width of the hidden states.
        dtype: Theirs.

    Raises:
        MachineError: There is not enough memory.
    """

    def __init__(self, backend: Backend, tokens: int, hidden: int, dtype: str) -> None:
        self.tokens = tokens
        self._backend = backend
        self._width = hidden
        self._dtype = dtype
        states = tokens * hidden * item_size(dtype)
        self._states = (backend.allocate(states), backend.allocate(states))
        indices, floats = tokens * item_size("int64"), tokens * item_size("float32")
        self._indices = {name: backend.allocate_shared(indices) for name in _INDICES}
        self._floats = {name: backend.allocate_shared(floats) for name in _FLOATS}

    def hidden_states(self, segment: int, tokens: int) -> DeviceArray:
        """Where segment number `segment` finds its input: T [1, tokens, D].

        The input of one more than the last segment is the last one's output.
        """
        return self._states[segment % 2].array((1, tokens, self._width), self._dtype)

    def last_hidden_state(self, segment: int, tokens: int) -> DeviceArray:
        """The last position of `hidden_states(segment, tokens)`: T [1, 1, D]."""
        offset = (tokens - 1) * self._width * item_size(self._dtype)
        return self._states[segment % 2].array((1, 1, self._width), self._dtype, offset)

    def write_sequence(
        self, kept: IndexArray, positions: IndexArray, past: int
    ) -> dict[str, DeviceArray]:
        """Writes what every segment takes; returns it by the names of the inputs.

        Args:
            kept: int64 [kept]: which tokens of the previous segment's output enter.
            positions: int64 [kept]: their original positions.
            past: How many positions the segment's caches hold.
        """
        return {
            "keep_indices": self._write_indices("keep_indices", kept),
            "position_ids": self._write_indices("position_ids", positions[np.newaxis]),
            "past_length": self._write_indices("past_length", np.array([past])),
        }

    def write_scorer(self, scorer: Scorer) -> dict[str, DeviceArray]:
        """Writes what a scorer takes; returns it by the names of the inputs."""
        return {
            "visual_weights": self._write_floats("visual_weights", scorer.visual_weights),
            "text_rows": self._write_indices("text_rows", scorer.text_rows),
            "text_weights": self._write_floats("text_weights", scorer.text_weights),
        }

    def write_route_weights(self, weights: FloatArray) -> dict[str, DeviceArray]:
        """Writes what a routed layer takes; returns it by the name of the input."""
        return {ROUTE_WEIGHTS: self._write_floats(ROUTE_WEIGHTS, weights)}

    def outputs(
        self, number: int, stage: Stage, tokens: int, rows: int = 1
    ) -> dict[str, DeviceArray]:
        """Where a segment writes, except for its caches, by the names of the outputs.

        Args:
            number: The segment's.
            stage: The segment.
            tokens: That leave it: those that entered it, and those that skipped it.
            rows: Tokens that its scorer asks.
        """
        outputs = {"hidden_states_out": self.hidden_states(number + 1, tokens)}
        for name in stage.scores:
            if name == ROW_SCORES:
                room = self._backend.allocate_shared(rows * tokens * item_size("float32"))
                outputs[name] = room.array((rows, tokens), "float32")
            else:
                outputs[name] = self._floats[name].array((tokens,), "float32")
        return outputs

    def _write_indices(self, name: str, values: IndexArray) -> DeviceArray:
        into = self._indices[name].array(values.shape, "int64")
        self._backend.write(into, values)
        return into

    def _write_floats(self, name: str, values: FloatArray) -> DeviceArray:
        into = self._floats[name].array(values.shape, "float32")
        self._backend.write(into, values)
        return into

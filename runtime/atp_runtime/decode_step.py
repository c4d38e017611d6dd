"""One token through the decoder, in arrays that stay where they are from token to token.

Only the caches change, and where the backend does not record runs, the segments read and write
them in place. Recorded runs need shapes and addresses that repeat: they are given their past in
whole buckets, hidden behind `past_length` where it is not filled, and write the new keys and
values to a block of their own, from which one strided copy brings them to the caches. Runs are
recorded per stage rather than per token: segments come to the end of a bucket at different
tokens, and a recording of all of them would serve only where all their buckets are the same
again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from atp_runtime.backends.base import ALIGNMENT, Backend, DeviceArray, item_size
from atp_runtime.chunk import Chunk
from atp_runtime.decoder_parts import Head, Segment
from atp_runtime.segment_entry import Entry, MergeTable
from atp_runtime.tensor_names import MERGE_WEIGHTS, SCORES
from atp_runtime.workspace import Scorer, Workspace

# Positions. On average half a bucket is read in vain: 64 positions of a 7B model in FP16 are
# 34 MB of the 13 GB that a token reads. Halved, there would be twice as many graphs to record.
BUCKET = 128
# Of a stage; each keeps some memory of the host and the device. A long answer goes on through
# its buckets and a new question begins again with early ones.
_MOST_RECORDED = 8

_APART = ALIGNMENT // item_size("int64")

Arrays = dict[str, DeviceArray]
_MakeRun = Callable[[Segment, Arrays, Arrays], Callable[[], None]]


class DecodeStep:
    """The arrays of a decode step and the runs that use them.

    Args:
        backend: Whose memory is used.
        space: Hidden states and indices of one token; nobody else's.
        segments: In the order they run.
        heads: Likewise.
        text_row: What segments that tell visual tokens apart are told of a row of text, by the
            names of the inputs.

    Raises:
        MachineError: There is not enough memory.

    Attributes:
        hidden: T [1, 1, D]: where the token's embedding is expected.
        segments: Runs of the segments, in order; each adds a position to its cache.
        heads: Runs of the heads, in order.
    """

    def __init__(
        self,
        backend: Backend,
        space: Workspace,
        segments: Sequence[Segment],
        heads: Sequence[Head],
        text_row: Arrays,
    ) -> None:
        self._backend = backend
        self._caches = [segment.cache for segment in segments]
        self._numbers = np.zeros((1 + len(segments), _APART), dtype=np.int64)
        shared = backend.allocate_shared(self._numbers.nbytes)
        self._device_numbers = shared.array(self._numbers.shape, "int64")
        first = np.zeros(1, dtype=np.int64)
        constant = space.write_sequence(first, first, past=0)
        scorer = space.write_scorer(Scorer.for_sequence(Chunk.text(1).visual(), 1))
        routes = space.write_route_weights(np.ones(1, dtype=np.float32))
        merges = MergeTable(backend).write(Entry.everything(1).merge_weights)
        make: _MakeRun = _RecordedSegment if backend.replays else _DirectSegment
        self.hidden = space.hidden_states(0, 1)
        runs: list[Callable[[], None]] = []
        for segment in segments:
            inputs = {
                **constant,
                "hidden_states": space.hidden_states(segment.number, 1),
                "position_ids": shared.array((1, 1), "int64"),
                "past_length": shared.array((1,), "int64", (1 + segment.number) * ALIGNMENT),
            }
            if SCORES[0] in segment.stage.scores:
                inputs |= scorer
            if segment.stage.routed:
                inputs |= routes
            if segment.stage.merges:
                inputs[MERGE_WEIGHTS] = merges
            if segment.stage.tells_visual:
                inputs |= text_row
            runs.append(make(segment, inputs, space.outputs(segment.number, segment.stage, 1)))
        self.segments = tuple(runs)
        last = space.last_hidden_state(len(segments), 1)
        self.heads = tuple(
            head.loaded.repeatable({"hidden_states": last}, {"logits": head.logits})
            for head in heads
        )

    def write_numbers(self, position: int) -> None:
        """Writes the token's position, and how many positions each cache holds, at once."""
        self._numbers[:, 0] = [position, *(cache.length for cache in self._caches)]
        self._backend.write(self._device_numbers, self._numbers)


class _DirectSegment:
    """A segment that reads the past, and writes the new position, where the cache has them."""

    def __init__(self, segment: Segment, inputs: Arrays, outputs: Arrays) -> None:
        self._segment = segment
        self._inputs = inputs
        self._outputs = outputs

    def __call__(self) -> None:
        cache = self._segment.cache
        self._inputs.update(cache.past())
        self._outputs.update(cache.slots(1))
        self._segment.loaded.run(self._inputs, self._outputs)
        cache.commit(1)


class _RecordedSegment:
    """A segment with one repeatable run per bucket of its past."""

    def __init__(self, segment: Segment, inputs: Arrays, outputs: Arrays) -> None:
        self._segment = segment
        self._inputs = inputs
        self._new = segment.cache.new_block()
        self._outputs = outputs | segment.cache.named_outputs(self._new)
        self._runs: dict[int, Callable[[], None]] = {}

    def __call__(self) -> None:
        cache, positions = self._segment.cache, self._positions()
        run = self._runs.pop(positions, None)
        if run is None:
            inputs = self._inputs | cache.padded_past(positions)
            run = self._segment.loaded.repeatable(inputs, self._outputs)
        self._runs[positions] = run  # at the end: the longest unused one is the first
        if len(self._runs) > _MOST_RECORDED:
            del self._runs[next(iter(self._runs))]
        cache.clear_padding(positions)
        run()
        cache.append(self._new)

    def _positions(self) -> int:
        """The past's length rounded up, as far as cache and stage admit."""
        cache = self._segment.cache
        longest = self._segment.loaded.longest.get("past", cache.capacity)
        rounded = -(-max(cache.length, 1) // BUCKET) * BUCKET
        return max(cache.length, min(rounded, cache.capacity, longest))

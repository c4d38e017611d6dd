"""Runs the decoder segment by segment, asking between two of them which tokens go on.

A pruned token is gone from the next segment on: the segment's first operation gathers those
that stay; only of a routed layer do those that skip it come back behind it. Tokens keep their
original positions, and positions go on counting where the unpruned sequence ends, in later turns
and in decoding alike. So every segment's caches have a length of their own, while the position is
one for all.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from atp_runtime.backends.base import Backend, DeviceArray
from atp_runtime.bundle import Bundle
from atp_runtime.chunk import Chunk
from atp_runtime.decode_step import DecodeStep
from atp_runtime.decoder_parts import Segment, heads_side_by_side
from atp_runtime.decoder_results import DecoderState, PointResult, PrefillResult, StageCall
from atp_runtime.errors import InputError
from atp_runtime.kv_cache import SegmentCache
from atp_runtime.manifest import Stage
from atp_runtime.pruning_point import LAST, RATERS, PruningPoint
from atp_runtime.raters import raters
from atp_runtime.segment_entry import Entry, MergeTable, route_weights
from atp_runtime.selection import (
    FloatArray,
    IndexArray,
    Selection,
    SelectTokens,
    VisualTokens,
)
from atp_runtime.structure_tables import StructureTables
from atp_runtime.tensor_names import MERGE_WEIGHTS, ROW_SCORES, SCORES
from atp_runtime.workspace import Scorer, Workspace


@dataclass(frozen=True, eq=False)
class _Run:
    """A stage's run: a `StageCall` whose time is known when the device has got there."""

    stage: str
    tokens: int
    past: int
    began: Any
    ended: Any
    visual: int


class SegmentedDecoder:
    """The decoder of a bundle: its segments with their caches, and the head.

    Args:
        bundle: Where the graphs are.
        backend: What runs them.
        capacity: Positions a segment's caches have room for.

    Raises:
        InputError: A graph cannot be loaded.
        MachineError: There is not enough memory.

    Attributes:
        scorer: Says whom the scorers ask in a prefill, from its visual tokens, the number of all
            and where the text behind the last image begins. None, as the pruning points say; may be
            set, to prune by another rule.
    """

    scorer: Callable[[VisualTokens, int, int], Scorer] | None

    def __init__(self, bundle: Bundle, backend: Backend, capacity: int) -> None:
        manifest = bundle.manifest
        self._text = manifest.text
        self._backend = backend
        self._dtype = manifest.hidden_dtype
        with ExitStack() as loaded:
            segments = []
            for number, stage in enumerate(manifest.segments):
                cache = SegmentCache(backend, stage, manifest.text, capacity)
                graph = backend.load(bundle, stage)
                loaded.callback(graph.close)
                segments.append(Segment(number, stage, graph, cache))
            heads = []
            for stage in manifest.heads:
                graph = backend.load(bundle, stage)
                loaded.callback(graph.close)
                heads.append((stage, graph))
            self._loaded = loaded.pop_all()
        self._segments = tuple(segments)
        points = [segment.stage.pruning for segment in segments]
        self._rated = any(point is not None and point.queries == RATERS for point in points)
        vocabulary = manifest.text.vocabulary
        self._logits = backend.allocate_shared(vocabulary * 4).array((1, vocabulary), "float32")
        self._heads = heads_side_by_side(heads, self._logits)
        self._merges = MergeTable(backend)
        self._structure = StructureTables(backend, manifest)
        self._text_row = StructureTables(backend, manifest).write(Chunk.text(1).visual(), 1)
        self._step = self._make_step()
        self._space = self._workspace(1)
        self._position = 0
        self._runs: list[_Run] = []
        self.scorer = None

    def __enter__(self) -> SegmentedDecoder:
        """Returns itself; `close` is called at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the stages back; nothing can be run any more."""
        self._loaded.close()

    @property
    def state(self) -> DecoderState:
        """How far the conversation has come; `rewind` goes back to it."""
        return DecoderState(self._position, tuple(s.cache.length for s in self._segments))

    @property
    def calls(self) -> tuple[StageCall, ...]:
        """The runs of stages of the latest prefill or decode step."""
        return tuple(
            StageCall(
                it.stage, it.tokens, it.past, self._backend.seconds(it.began, it.ended), it.visual
            )
            for it in self._runs
        )

    def rewind(self, state: DecoderState) -> None:
        """Forgets everything after an earlier `state`.

        Raises:
            ValueError: The state is not of this conversation's past.
        """
        for segment, length in zip(self._segments, state.lengths, strict=True):
            segment.cache.truncate(length)
        self._position = state.position

    def reset(self) -> None:
        """Begins a new conversation."""
        self.rewind(DecoderState(0, (0,) * len(self._segments)))

    def grow(self, capacity: int) -> None:
        """Gives the caches room for `capacity` positions, keeping what they hold.

        Raises:
            MachineError: There is not enough memory.
        """
        if all(segment.cache.capacity >= capacity for segment in self._segments):
            return
        # What is recorded keeps the old caches from being freed.
        self._step = self._make_step()
        for segment in self._segments:
            segment.cache.grow(capacity)

    def has_room(self) -> bool:
        """Whether the model has a position, and every stage admits a past, for one more token."""
        admitted = all(
            segment.cache.length <= segment.loaded.longest.get("past", segment.cache.length)
            for segment in self._segments
        )
        return admitted and self._position < self._text.max_positions

    def check_room(self, tokens: int) -> None:
        """Makes sure that a chunk of `tokens` tokens can be run, before any work is done for it.

        Raises:
            InputError: There are no tokens, or more than there is room or positions for.
        """
        if tokens == 0:
            raise InputError(
                "the prompt has no tokens", why="there is nothing to answer.", fix="ask something."
            )
        limit = self._text.max_positions
        if self._position + tokens > limit:
            raise InputError(
                f"{tokens} tokens after {self._position} are more than {limit}",
                why="that is how many positions the model was trained for; pruned tokens count.",
                fix="shorten the prompt, use fewer images, or begin a new conversation.",
            )
        # No later segment can be fuller: each is entered by at most the tokens of this one.
        self._segments[0].cache.check_room(tokens)

    def prefill(
        self, hidden: npt.NDArray[Any], chunk: Chunk, select: SelectTokens
    ) -> PrefillResult:
        """Runs a prompt, or the new tokens of a later turn, pruning on the way.

        Args:
            hidden: T [1, N, D], embeddings with image features in their places.
            chunk: What the N tokens are.
            select: Asked at every pruning point which visual tokens stay.

        Raises:
            InputError: There are no tokens, more than there is room or positions for, or none
                are left after pruning. The decoder is then as it was before.
        """
        before = self.state
        try:
            return self._prefill(hidden, chunk, select)
        except BaseException:
            self.rewind(before)
            raise

    def decode(self, hidden: npt.NDArray[Any]) -> FloatArray:
        """Runs one more token.

        Args:
            hidden: T [1, 1, D], its embedding.

        Returns:
            float32 [vocabulary].

        Raises:
            InputError: There is no room or position for it. The decoder is then as it was before.
        """
        before = self.state
        try:
            return self._decode(hidden)
        except BaseException:
            self.rewind(before)
            raise

    def run_stage(
        self, stage: str, tokens: int, past: int, run: Callable[[], None], visual: int = 0
    ) -> None:
        """Runs a stage between two marks; every run of prefill and decode comes here.

        Args:
            stage: Its name.
            tokens: See `StageCall`.
            past: Likewise.
            run: What runs it.
            visual: See `StageCall`.
        """
        began = self._backend.mark()
        run()
        self._runs.append(_Run(stage, tokens, past, began, self._backend.mark(), visual))

    def _prefill(
        self, hidden: npt.NDArray[Any], chunk: Chunk, select: SelectTokens
    ) -> PrefillResult:
        self._runs = []
        self.check_room(len(chunk))
        space = self._room(len(chunk))
        flow = space.hidden_states(0, len(chunk))
        self._backend.write(flow, hidden)
        going = np.arange(len(chunk))
        entry, visual = Entry.everything(len(chunk)), chunk.visual()
        text = visual.index[-1] + 1 if len(visual) else len(chunk)
        judges = raters(hidden[0], visual.index) if self._rated else visual.index[:0]
        weights, points = np.ones(len(chunk), dtype=np.float32), []
        for segment in self._segments:
            running, stage = going[entry.place], segment.stage
            positions = self._position + running
            inputs = space.write_sequence(entry.keep_indices, positions, segment.cache.length)
            inputs["hidden_states"] = flow
            if stage.merges:
                inputs[MERGE_WEIGHTS] = self._merges.write(entry.merge_weights)
            if stage.routed:
                inputs |= space.write_route_weights(weights)
            else:
                going = running
            behind, asked = int(np.searchsorted(going, text)), np.searchsorted(going, judges)
            scorer = self._asked(stage.pruning, visual, len(going), behind, asked)
            if SCORES[0] in stage.scores:
                inputs |= space.write_scorer(scorer)
            if segment.stage.tells_visual:
                inputs |= self._structure.write(visual, len(going))
            outputs = space.outputs(segment.number, stage, len(going), len(scorer.text_rows))
            spared = int((visual.row >= 0).sum()) if stage.tells_visual else 0
            self._run_segment(segment, inputs, outputs, len(running), spared)
            flow, entry = outputs["hidden_states_out"], Entry.everything(len(going))
            if stage.pruning:
                scores, returns = self._scores(stage, outputs), stage.pruning.returns
                shown = replace(
                    visual,
                    hidden=partial(self._hidden, flow, visual.index),
                    attention=partial(self._attention, outputs, visual.index),
                )
                selection = select(stage.pruning, *scores, scorer.has_text, shown)
                entry = _survivors(stage.pruning, selection, visual, len(going))
                layer, kept = stage.pruning.before_layer, going[entry.place]
                points.append(PointResult(layer, going, kept, selection, returns))
                if returns:
                    weights = route_weights(entry.place, visual, scores[0])
                else:
                    visual = visual.survivors(selection.kept, selection.merges)
        logits = self._run_head(space.last_hidden_state(len(self._segments), len(going)))
        self._position += len(chunk)
        return PrefillResult(logits, tuple(points), self.calls)

    def _asked(
        self,
        point: PruningPoint | None,
        visual: VisualTokens,
        tokens: int,
        behind: int,
        judges: IndexArray,
    ) -> Scorer:
        if self.scorer is not None:
            return self.scorer(visual, tokens, behind)
        asked = Scorer.for_sequence(visual, tokens, behind)
        if point is None or point.queries not in (LAST, RATERS):
            return asked
        return asked.last_row() if point.queries == LAST else asked.asking(judges)

    def _decode(self, hidden: npt.NDArray[Any]) -> FloatArray:
        self._runs = []
        self.check_room(1)
        step = self._step
        self._backend.write(step.hidden, hidden)
        step.write_numbers(self._position)
        for segment, run in zip(self._segments, step.segments, strict=True):
            self.run_stage(segment.stage.name, 1, segment.cache.length, run)
        for head, run in zip(self._heads, step.heads, strict=True):
            self.run_stage(head.name, 1, 0, run)
        logits = self._last_logits()
        self._position += 1
        return logits

    def _run_segment(
        self,
        segment: Segment,
        inputs: dict[str, DeviceArray],
        outputs: dict[str, DeviceArray],
        tokens: int,
        visual: int,
    ) -> None:
        cache = segment.cache
        inputs |= cache.past()
        outputs |= cache.slots(tokens)
        run = partial(segment.loaded.run, inputs, outputs)
        self.run_stage(segment.stage.name, tokens, cache.length, run, visual)
        cache.commit(tokens)

    def _run_head(self, hidden: DeviceArray) -> FloatArray:
        for head in self._heads:
            arrays = {"hidden_states": hidden}, {"logits": head.logits}
            self.run_stage(head.name, 1, 0, partial(head.loaded.run, *arrays))
        return self._last_logits()

    def _last_logits(self) -> FloatArray:
        logits: FloatArray = self._download(self._logits)[0][0]
        return logits

    def _scores(
        self, stage: Stage, outputs: dict[str, DeviceArray]
    ) -> tuple[FloatArray, FloatArray]:
        """Self and cross scores; a router's stand for both."""
        found = self._download(*(outputs[name] for name in stage.scores if name != ROW_SCORES))
        return found[0], found[-1]

    def _attention(self, outputs: dict[str, DeviceArray], index: IndexArray) -> FloatArray:
        (rows,) = self._download(outputs[ROW_SCORES])
        chosen: FloatArray = rows[:, index]
        return chosen

    def _hidden(self, hidden: DeviceArray, index: IndexArray) -> FloatArray:
        (rows,) = self._download(hidden)
        chosen: FloatArray = rows[0, index]
        return chosen

    def _download(self, *arrays: DeviceArray) -> list[FloatArray]:
        # Downloads may be views of memory that the next run overwrites.
        return [np.array(it, dtype=np.float32) for it in self._backend.download_all(*arrays)]

    def _room(self, tokens: int) -> Workspace:
        if tokens > self._space.tokens:
            self._space = self._workspace(tokens)
        return self._space

    def _workspace(self, tokens: int) -> Workspace:
        return Workspace(self._backend, tokens, self._text.hidden, self._dtype)

    def _make_step(self) -> DecodeStep:
        space, rows = self._workspace(1), self._text_row
        return DecodeStep(self._backend, space, self._segments, self._heads, rows)


def _survivors(
    point: PruningPoint, selection: Selection, visual: VisualTokens, tokens: int
) -> Entry:
    entry = Entry.of(selection, visual, tokens)
    if len(entry.place) == 0:
        raise InputError(
            f"no token is left before layer {point.before_layer}",
            why=f"the rule {point.rule!r} dropped every visual token and the prompt has no text.",
            fix="ask a question about the image.",
        )
    return entry

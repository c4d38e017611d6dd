"""Measures what each stage of a bundle takes, token count by token count.

Nothing is timed apart from the path that answers questions: a sequence of each length is run
through the decoder with every token kept, so that all segments see it, and the decoder tells what
each stage took. The rules are asked as always and then overruled, so their time is in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from PIL import Image

from atp_runtime.bundle import Bundle
from atp_runtime.chunk import Chunk
from atp_runtime.conversation import Model
from atp_runtime.embedding import EmbeddingTable
from atp_runtime.errors import InputError
from atp_runtime.evaluation.machine import this_machine
from atp_runtime.latency.table import (
    FORMAT,
    SCHEMA_VERSION,
    LatencyTable,
    Setting,
    Timing,
    graphs_hash,
    timed_stages,
)
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import FloatArray, Selection, VisualTokens
from atp_runtime.session import Session

_TEXT_TOKENS = 32  # of a short question with its template

Told = Callable[[int, int], None]
"""Told the rounds that are done and the rounds there will be."""


def default_tokens(model: Model) -> tuple[int, ...]:
    """Lengths of sequences with a whole image, a half of it, down to a sixteenth, and text."""
    visual, longest = model.manifest.vision.most_tokens, model.manifest.text.max_positions
    lengths = {visual // part + _TEXT_TOKENS for part in (1, 2, 4, 8, 16)} | {_TEXT_TOKENS}
    return tuple(sorted(min(length, longest) for length in lengths))


@dataclass
class _Seconds:
    """What was measured, by stage and tokens."""

    stages: Mapping[str, Mapping[int, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    between: Mapping[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    prefill: Mapping[int, list[float]] = field(default_factory=lambda: defaultdict(list))


def measure(
    session: Session,
    bundle: Bundle,
    setting: Setting,
    tokens: Sequence[int],
    runs: int,
    warm_up: int,
    told: Told,
) -> LatencyTable:
    """Measures a table; the session is of no use for anything else meanwhile.

    The lengths take turns, so that a machine that gets slower does so for all of them.

    Args:
        session: Of the bundle, just opened.
        bundle: Likewise.
        setting: What the table is for.
        tokens: Lengths of the sequences, rising.
        runs: Of each length.
        warm_up: Before them.
        told: How far it is.

    Raises:
        InputError: A length is not from 1 to the model's positions, or a number of runs
            is too low.
    """
    _check(session.model, tokens, runs, warm_up)
    sweep = _Sweep(session.model, EmbeddingTable.open(bundle))
    for number in range(warm_up):
        sweep.time_all(tokens, _Seconds())
        told(number + 1, warm_up + runs)
    seconds = _Seconds()
    for number in range(runs):
        sweep.time_all(tokens, seconds)
        told(warm_up + number + 1, warm_up + runs)
    manifest = session.model.manifest
    return LatencyTable(
        format=FORMAT,
        schema_version=SCHEMA_VERSION,
        setting=setting,
        packages=this_machine(setting.threads).packages,
        graphs=graphs_hash(manifest),
        runs=runs,
        stages={name: _timings(seconds.stages[name]) for name in timed_stages(manifest)},
        between=_timings(seconds.between),
        prefill=_timings(seconds.prefill),
    )


class _Sweep:
    def __init__(self, model: Model, embedding: EmbeddingTable) -> None:
        self._model = model
        self._embedding = embedding
        self._points = sum(stage.pruning is not None for stage in model.manifest.segments)
        height, width = model.manifest.vision.image_size
        self._photo = model.vision.read(Image.new("RGB", (width, height), (127, 127, 127)))

    def time_all(self, tokens: Sequence[int], seconds: _Seconds) -> None:
        """One run of each."""
        self._time_vision(seconds)
        for length in tokens:
            self._time_prefill(length, seconds)

    def _time_vision(self, seconds: _Seconds) -> None:
        began = perf_counter()
        self._model.vision.encode(self._photo)
        features = self._model.manifest.vision.tokens
        seconds.stages["vision"][features].append(perf_counter() - began)

    def _time_prefill(self, length: int, seconds: _Seconds) -> None:
        decoder, hosts = self._model.decoder, 0.0

        def select(
            point: PruningPoint,
            scores_self: FloatArray,
            scores_cross: FloatArray,
            has_text: bool,
            visual: VisualTokens,
        ) -> Selection:
            nonlocal hosts
            began = perf_counter()
            self._model.select(point, scores_self, scores_cross, has_text, visual)
            hosts += perf_counter() - began
            return Selection(np.ones(len(visual), dtype=np.bool_))

        decoder.reset()
        decoder.grow(length)
        hidden = self._embedding.rows(np.zeros(length, dtype=np.int64))[None]
        chunk = _sequence(length, self._model.manifest.vision.most_tokens)
        began = perf_counter()
        result = decoder.prefill(hidden, chunk, select)
        whole = perf_counter() - began
        for call in result.calls:
            seconds.stages[call.stage][call.tokens].append(call.seconds)
        # What no stage took: the rules, and getting to and from them.
        others = whole - sum(call.seconds for call in result.calls)
        if self._points:
            seconds.between[length].append(max(others, hosts) / self._points)
        seconds.prefill[length].append(whole)


def _sequence(length: int, visual: int) -> Chunk:
    """Text behind an image, or behind a part of one; longer ones have text before it, too."""
    text = Chunk.text(length)
    image, row, column = text.image.copy(), text.row.copy(), text.column.copy()
    end = max(length - _TEXT_TOKENS, 0)
    begin = max(end - visual, 0)
    image[begin:end] = 0
    row[begin:end], column[begin:end] = 0, np.arange(end - begin)
    return Chunk(image, row, column)


def _timings(seconds: Mapping[int, Sequence[float]]) -> tuple[Timing, ...]:
    return tuple(
        Timing(tokens, float(np.median(taken)), float(np.percentile(taken, 95)))
        for tokens, taken in sorted(seconds.items())
    )


def _check(model: Model, tokens: Sequence[int], runs: int, warm_up: int) -> None:
    longest = model.manifest.text.max_positions
    rising = list(tokens) == sorted(set(tokens))
    if not tokens or not rising or tokens[0] < 1 or tokens[-1] > longest:
        raise InputError(
            f"token counts {', '.join(map(str, tokens)) or 'none'}",
            why=f"they must rise, from 1 to the model's {longest} positions.",
            fix="give some, such as --tokens 36,72,144,288,576, or leave the option away.",
        )
    if runs < 1 or warm_up < 0:
        raise InputError(
            f"{runs} runs behind {warm_up}", why="there is no median of none.", fix="choose more."
        )

"""What running the decoder reports."""

from __future__ import annotations

from dataclasses import dataclass

from atp_runtime.selection import FloatArray, IndexArray, Selection


@dataclass(frozen=True)
class StageCall:
    """One run of a stage.

    Attributes:
        stage: Its name.
        tokens: The tokens that were computed.
        past: The positions its caches held before.
        seconds: Wall time.
        visual: Those of the tokens that were spared work, see `atp_runtime.structure`.
    """

    stage: str
    tokens: int
    past: int
    seconds: float
    visual: int = 0


@dataclass(frozen=True, eq=False)
class PointResult:
    """What happened at one pruning point.

    Attributes:
        before_layer: The decoder layer that dropped tokens no longer enter.
        entered: int64: the chunk's tokens that were there, as indices into the chunk.
        kept: int64: those that go on, likewise.
        selection: What the rule said.
        returns: The others skip that layer alone.
    """

    before_layer: int
    entered: IndexArray
    kept: IndexArray
    selection: Selection
    returns: bool = False


@dataclass(frozen=True, eq=False)
class PrefillResult:
    """What a prefill found.

    Attributes:
        logits: float32 [vocabulary], of the chunk's last token.
        points: One per pruning point, in order.
        calls: The runs of stages, in order.
    """

    logits: FloatArray
    points: tuple[PointResult, ...]
    calls: tuple[StageCall, ...]


@dataclass(frozen=True)
class DecoderState:
    """How far a conversation has come.

    Attributes:
        position: Tokens so far, pruned ones included: the next token's position.
        lengths: Positions in the caches of each segment.
    """

    position: int
    lengths: tuple[int, ...]

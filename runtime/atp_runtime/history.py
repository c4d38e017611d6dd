"""What the caches hold of a conversation, and how far back they can go.

Generated tokens are never pruned, so the caches can be cut anywhere in an answer; inside a
prefilled turn they cannot, because each segment kept other tokens of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from atp_runtime.decoder_results import DecoderState
from atp_runtime.prompt import common_prefix


@dataclass(frozen=True)
class _Turn:
    """A prefill: `start` and `end` count ids of the conversation, `state` is that at `end`."""

    start: int
    end: int
    state: DecoderState


class History:
    """The token ids whose keys and values the caches hold, in order."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._turns: list[_Turn] = []

    def prefilled(self, ids: list[int], state: DecoderState) -> None:
        """Records a turn's ids and the decoder's state behind them."""
        start = len(self.ids)
        self.ids += ids
        self._turns.append(_Turn(start, len(self.ids), state))

    def decoded(self, token: int) -> None:
        """Records a generated token that was fed back."""
        self.ids.append(token)

    def reusable(self, ids: list[int]) -> int:
        """How many leading ids of a longer conversation the caches can serve.

        At least one id is left over to be run, because only running gives logits.
        """
        common = min(common_prefix(self.ids, ids), len(ids) - 1)
        following: _Turn | None = None
        for turn in reversed(self._turns):
            if common >= turn.end:
                return min(common, following.start) if following else common
            following = turn
        return 0

    def cut(self, length: int) -> DecoderState:
        """Forgets all ids from `length` on and returns the state to rewind the decoder to.

        Args:
            length: What `reusable` returned.
        """
        self._turns = [turn for turn in self._turns if turn.end <= length]
        self.ids = self.ids[:length]
        if not self._turns:
            return DecoderState(0, ())
        last = self._turns[-1]
        behind = length - last.end
        lengths = tuple(cached + behind for cached in last.state.lengths)
        return DecoderState(last.state.position + behind, lengths)

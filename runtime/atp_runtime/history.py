"""What the caches hold of a conversation, and how far back they can go.

Generated tokens are never pruned, so the caches can be cut anywhere in an answer. So can they
inside a prefill whose rule drops nothing; inside any other they cannot, because each segment kept
other tokens of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from atp_runtime.decoder_results import DecoderState


@dataclass(frozen=True)
class _Prefill:
    """Keys `start` to `end` of the history went in at once; `state` is the decoder's at `end`."""

    start: int
    end: int
    state: DecoderState
    whole: bool

    def shortened(self, length: int) -> _Prefill:
        """Of a whole one, the part before key `length`."""
        return replace(self, end=length, state=_moved(self.state, length - self.end))


class History:
    """The tokens whose keys and values the caches hold, in order.

    Every token has a key, a number: its id, or for a visual token whatever tells its image
    from all others, so that equal keys mean equal contents of the caches.

    Args:
        beginning: The decoder's state before the conversation.
    """

    def __init__(self, beginning: DecoderState) -> None:
        self._keys: list[int] = []
        self._prefills = [_Prefill(0, 0, beginning, whole=True)]

    def __len__(self) -> int:
        return len(self._keys)

    def prefilled(self, keys: Sequence[int], state: DecoderState, *, whole: bool = False) -> None:
        """Records a prefill and the decoder's state behind it.

        Args:
            keys: Of its tokens.
            state: The decoder's, behind it.
            whole: Whether its rule drops nothing, whatever the scores, so that the caches
                depend on the keys alone.
        """
        start = len(self._keys)
        # In this order, and the reverse one in `cut`: whatever Ctrl-C comes between, keys without
        # their prefill would be taken for an answer, while a prefill without keys is never used.
        self._prefills.append(_Prefill(start, start + len(keys), state, whole))
        self._keys += keys

    def decoded(self, token: int) -> None:
        """Records a generated token that was fed back."""
        self._keys.append(token)

    def reusable(self, keys: Sequence[int]) -> int:
        """How many leading tokens of a prompt the caches can serve.

        At least one is left over to be run, because only running gives logits.

        Args:
            keys: Of the whole prompt, not empty.
        """
        common = min(_common_prefix(self._keys, keys), len(keys) - 1)
        for prefill in reversed(self._prefills):
            if common >= prefill.end or (prefill.whole and common > prefill.start):
                break
            common = min(common, prefill.start)
        return common

    def unpruned(self) -> int:
        """How many leading tokens went in without any pruning."""
        pruned = (prefill.start for prefill in self._prefills if not prefill.whole)
        return min(pruned, default=len(self._keys))

    def cut(self, length: int) -> DecoderState:
        """Forgets all tokens from `length` on.

        Args:
            length: What `reusable` or `unpruned` returned, or less inside a whole prefill.

        Returns:
            The state to rewind the decoder to.
        """
        del self._keys[length:]
        left = [prefill for prefill in self._prefills if prefill.end == 0 or prefill.start < length]
        left[-1] = left[-1].shortened(min(length, left[-1].end))
        self._prefills = left
        return _moved(left[-1].state, length - left[-1].end)


def _moved(state: DecoderState, tokens: int) -> DecoderState:
    """The state so many unpruned tokens later, or earlier if negative."""
    return DecoderState(state.position + tokens, tuple(it + tokens for it in state.lengths))


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    for length, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return length
    return min(len(left), len(right))

"""What the caches hold of a conversation, and how far back they can go.

Generated tokens are never pruned, so the caches can be cut anywhere in an answer; inside a
prefill they cannot, because each segment kept other tokens of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atp_runtime.decoder_results import DecoderState


@dataclass(frozen=True)
class _Prefill:
    """Keys `start` to `end` of the history went in at once; `state` is the decoder's at `end`."""

    start: int
    end: int
    state: DecoderState


class History:
    """The tokens whose keys and values the caches hold, in order.

    Every token has a key, a number: its id, or for a visual token whatever tells its image
    from all others, so that equal keys mean equal contents of the caches.

    Args:
        beginning: The decoder's state before the conversation.
    """

    def __init__(self, beginning: DecoderState) -> None:
        self._keys: list[int] = []
        self._prefills = [_Prefill(0, 0, beginning)]

    def __len__(self) -> int:
        return len(self._keys)

    def prefilled(self, keys: Sequence[int], state: DecoderState) -> None:
        """Records a prefill and the decoder's state behind it."""
        start = len(self._keys)
        # In this order, and the reverse one in `cut`: whatever Ctrl-C comes between, keys without
        # their prefill would be taken for an answer, while a prefill without keys is never used.
        self._prefills.append(_Prefill(start, start + len(keys), state))
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
            if common >= prefill.end:
                break
            common = min(common, prefill.start)
        return common

    def cut(self, length: int) -> DecoderState:
        """Forgets all tokens from `length` on.

        Args:
            length: What `reusable` returned.

        Returns:
            The state to rewind the decoder to.
        """
        del self._keys[length:]
        self._prefills = [prefill for prefill in self._prefills if prefill.end <= length]
        last = self._prefills[-1]
        behind = length - last.end
        lengths = tuple(cached + behind for cached in last.state.lengths)
        return DecoderState(last.state.position + behind, lengths)


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    for length, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return length
    return min(len(left), len(right))

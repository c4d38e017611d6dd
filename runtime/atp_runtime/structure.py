"""Structural pruning: which work visual tokens are spared in every layer, whatever the image.

YOPO (arXiv 2410.06169) prunes the computation and not the tokens: a visual token attends to its
neighbours on the photo's grid alone, some heads neither serve it nor are shown it, it passes
through a part of the feed-forward block, and from some layer on no visual token is left. All of
that is decided when the bundle is made. A visual token is here one with a place on the grid: a
class token is treated as text is.
"""

from __future__ import annotations

from dataclasses import dataclass

FAST, MASKED = "fast", "masked"
KEPT, DROPPED = "1", "0"


@dataclass(frozen=True)
class Structure:
    """What the layers of a decoder do less for visual tokens.

    Attributes:
        window: Side, in patches, of the square of neighbours that a visual token attends to, its
            own place in the middle; odd. Beside them it sees what is cached and the text before it.
            None is the usual causal attention.
        heads: A string per layer, a character per query head: "1" is kept, "0" is not. In a head
            that is not kept, visual keys count in the softmax's denominator and their values count
            nothing, and visual tokens get nothing of it. None keeps all.
        ffn_ratio: r; visual tokens use the first 1/r of the feed-forward's channels.
        cut_layer: The layer that visual tokens no longer enter; None is never.
        mode: `FAST` skips the work. `MASKED` does all of it and hides the results, as the authors'
            code does; from the cut layer on visual tokens then go on, and their keys still count
            in the denominators.
    """

    window: int | None = None
    heads: tuple[str, ...] | None = None
    ffn_ratio: int = 1
    cut_layer: int | None = None
    mode: str = FAST

    def __post_init__(self) -> None:
        if self.window is not None and (self.window < 1 or self.window % 2 == 0):
            raise ValueError(f"window is {self.window}, it must be odd and positive")
        if self.ffn_ratio < 1:
            raise ValueError(f"ffn_ratio is {self.ffn_ratio}, it must be 1 or more")
        if self.mode not in (FAST, MASKED):
            raise ValueError(f"mode {self.mode!r} is neither {FAST!r} nor {MASKED!r}")
        for layer, row in enumerate(self.heads or ()):
            if not row or set(row) - {KEPT, DROPPED}:
                raise ValueError(f"heads of layer {layer} are {row!r}, they must be 1s and 0s")

    def covers(self, layer: int) -> bool:
        """Whether visual tokens, spared some work, come through a layer."""
        return self.mode == MASKED or self.cut_layer is None or layer < self.cut_layer

    def kept_heads(self, layer: int, heads: int) -> tuple[int, ...]:
        """The query heads of a layer that are kept, of `heads`."""
        if self.heads is None:
            return tuple(range(heads))
        return tuple(head for head, mark in enumerate(self.heads[layer]) if mark == KEPT)

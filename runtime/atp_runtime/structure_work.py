"""The arithmetic that is left where visual tokens are spared work.

Two countings. `structured_flops` has every product that a segment's graph computes. `paper_flops`
is YOPO's (arXiv 2410.06169), of visual tokens alone: it reproduces the paper's 7.63 T and 14.89 T
of LLaVA-1.5-7B and -13B, and scales all four projections with the kept heads, though keys stay
whole where the softmax's denominators are to stay what they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atp_runtime.manifest import TextModel
from atp_runtime.structure import Structure
from atp_runtime.structure_rows import Blocks


@dataclass(frozen=True)
class PrefillRows:
    """The rows of one prefill.

    Attributes:
        visual: Tokens with a place on a grid.
        others: All others.
        past: Cached positions.
    """

    visual: int
    others: int
    past: int = 0


def structured_flops(
    text: TextModel,
    structure: Structure,
    grid: tuple[int, int],
    layers: Sequence[int],
    rows: PrefillRows,
) -> int:
    """Floating-point operations of the matrix products of some layers, as executed.

    A product of [m, k] and [k, n] has 2 m k n. Windows are computed in whole blocks, also where
    tokens were pruned; of those that stayed, as many blocks are counted as they could fill.

    Args:
        text: The decoder's dimensions.
        structure: What visual tokens are spared; each of the layers is covered by it.
        grid: Rows and columns of patches.
        layers: Which.
        rows: That go through them.
    """
    return sum(_layer_flops(text, structure, grid, layer, rows) for layer in layers)


def paper_flops(text: TextModel, tokens: int, structure: Structure | None = None) -> float:
    """The paper's count of visual tokens' operations: L (2n(4d^2 + 3dm) + 4n^2 d).

    With a structure, layers from the cut on count nothing, d^2 and d take the share of heads that
    are kept in the layer, m is divided by the ratio, and of n keys those in the window count.

    Args:
        text: The decoder's dimensions; its hidden size is d, its feed-forward's width m.
        tokens: n, visual tokens.
        structure: None is the whole model.
    """
    spared = structure or Structure()
    last = text.layers if spared.cut_layer is None else spared.cut_layer
    keys = tokens if spared.window is None else min(spared.window**2, tokens)
    d, m = text.hidden, text.intermediate / spared.ffn_ratio
    total = 0.0
    for layer in range(last):
        share = len(spared.kept_heads(layer, text.heads)) / text.heads
        total += 2 * tokens * (4 * share * d * d + 3 * d * m) + 4 * tokens * keys * d
    return total


def _layer_flops(
    text: TextModel, structure: Structure, grid: tuple[int, int], layer: int, rows: PrefillRows
) -> int:
    kept = len(structure.kept_heads(layer, text.heads))
    tokens, kv_share = rows.visual + rows.others, text.kv_heads / text.heads
    width, all_width = kept * text.head_dim, text.heads * text.head_dim
    # Queries and outputs of all heads, keys and values of fewer; keys are whole.
    of_visual = 2 * width + int(kv_share * (all_width + width))
    of_others = 2 * all_width + 2 * int(kv_share * all_width)
    channels = text.intermediate // structure.ffn_ratio
    linear = rows.visual * (of_visual + 3 * channels)
    linear += rows.others * (of_others + 3 * text.intermediate)
    if structure.window is None:
        pairs = tokens * (tokens + rows.past) * all_width
    else:
        pairs = rows.others * (tokens + rows.past) * all_width
        blocks = Blocks.of(structure.window, grid)
        images, rest = divmod(rows.visual, grid[0] * grid[1])
        count = images * -(-grid[0] // blocks.rows) + -(-rest // blocks.queries)
        pairs += count * blocks.queries * (rows.past + rows.others + blocks.keys) * width
    return 2 * linear * text.hidden + 4 * pairs

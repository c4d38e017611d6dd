"""What a bundle's manifest says of a place where visual tokens are dropped, merged or routed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atp_runtime.tensor_names import ROUTER_SCORES, ROW_SCORES, SCORES

QUERIES = TEXT, LAST, RATERS = "text", "last", "raters"


@dataclass(frozen=True)
class PruningPoint:
    """What happens between a segment and the next one.

    Attributes:
        before_layer: The decoder layer (0-indexed) that pruned tokens no longer enter.
        rule: Name of the selection rule, see `atp_runtime.selection`.
        parameters: The rule's numbers, by name.
        weights: Prefix of the point's tensors in `Manifest.pruning_weights`, or None.
        queries: Whose attention the cross scores are: `TEXT`, the mean of all text behind the last
            image; `LAST`, that of the last token alone; `RATERS`, the mean of the text that
            resembles the image most, see `atp_runtime.raters`.
        merges: Whether the rule may merge tokens; the segment behind the point then takes
            `MERGE_WEIGHTS`.
        returns: The layer behind the point is routed: tokens that the rule does not choose skip it
            by the residual and come back behind it. The rule decides by `ROUTER_SCORES`, given to
            it as both scores, and the segment, which is that layer alone, takes `ROUTE_WEIGHTS`.
        rows: Whether the rule looks at `ROW_SCORES`, too.
    """

    before_layer: int
    rule: str
    parameters: Mapping[str, Any]
    weights: str | None = None
    queries: str = TEXT
    merges: bool = False
    returns: bool = False
    rows: bool = False

    def __post_init__(self) -> None:
        if self.queries not in QUERIES:
            raise ValueError(f"queries {self.queries!r} is none of {', '.join(QUERIES)}")

    @property
    def scores(self) -> tuple[str, ...]:
        """The outputs of the segment before it that the rule decides by."""
        if self.returns:
            return (ROUTER_SCORES,)
        return (*SCORES, ROW_SCORES) if self.rows else SCORES

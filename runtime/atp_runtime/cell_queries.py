"""What a vision stage made of a photo that it compressed to a few cells (QueCC, 2411.03312)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atp_runtime.reduction import NOWHERE, Given, Reduction, VisionRule, check_count

COMPRESS = "cell_queries"
"""What a manifest calls `CellQueries`."""


@dataclass(frozen=True)
class CellQueries(VisionRule):
    """Each cell of the photo became one token before the projector, inside the graph.

    Attributes:
        grid: Cells along each side.
    """

    needs = ()
    grid: int

    def __post_init__(self) -> None:
        check_count("grid", self.grid)

    def reduce(self, given: Given) -> Reduction:  # noqa: ARG002 - the graph has done it
        """All that came out of the graph; a cell is no patch, so they lie nowhere."""
        return Reduction(np.full(self.grid**2, NOWHERE), inside=True)

    def most(self, tokens: int) -> int:  # noqa: ARG002 - it is always as many
        """One of each cell."""
        return self.grid**2

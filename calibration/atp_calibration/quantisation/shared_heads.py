"""Query heads that share a head of values: grouped-query attention (arXiv 2305.13245)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class SharedHeads:
    """How the channels that attention mixes come from the columns of v.

    Attributes:
        sharing: Query heads of each head of values.
        head_dim: Channels of a head.
    """

    sharing: int
    head_dim: int

    def tied(
        self, values: npt.NDArray[np.float64], reduce: Callable[..., Any]
    ) -> npt.NDArray[np.float64]:
        """What channels that come from the same column have in common, for each of them.

        Args:
            values: Of channels, [heads * head_dim].
            reduce: Makes one number of several, such as `numpy.max`.

        Returns:
            Likewise.
        """
        apart = values.reshape(-1, self.sharing, self.head_dim)
        common = reduce(apart, axis=1, keepdims=True)
        tied: npt.NDArray[np.float64] = np.broadcast_to(common, apart.shape).reshape(-1)
        return tied

    def columns(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Tied values as the columns of v have them, [kv_heads * head_dim]."""
        first: npt.NDArray[np.float32] = values.reshape(-1, self.sharing, self.head_dim)[:, 0]
        return first.reshape(-1)

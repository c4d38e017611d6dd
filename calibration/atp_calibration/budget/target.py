"""What pruning is to be fitted to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from atp_runtime.errors import InputError

TOKENS, SPEEDUP, FIRST_TOKEN = "tokens", "speedup", "first_token"
MEAN, P95 = "mean", "p95"


@dataclass(frozen=True)
class Target:
    """A budget.

    Costs are what a sample's pruning is charged: lower is less work. They are tokens for `TOKENS`,
    the share of the unpruned prefill's time for `SPEEDUP`, and seconds for `FIRST_TOKEN`.

    Attributes:
        kind: `TOKENS` (visual tokens of an image, averaged over all layers), `SPEEDUP` (of the
            decoder's prefill over the unpruned one) or `FIRST_TOKEN` (vision stage, prefill and
            head).
        value: Tokens, times, or seconds.
        statistic: What of the samples' costs must meet it, `MEAN` or `P95`.

    Raises:
        InputError: The value makes no sense.
    """

    kind: str
    value: float
    statistic: str = MEAN

    def __post_init__(self) -> None:
        least = 1.0 if self.kind == SPEEDUP else 0.0
        if not math.isfinite(self.value) or self.value <= least:
            raise InputError(
                f"a target of {self.value:g} ({self.kind})",
                why=f"it must be above {least:g}.",
                fix="choose another target.",
            )

    @property
    def cost(self) -> float:
        """What the samples' costs are to come to."""
        return 1 / self.value if self.kind == SPEEDUP else self.value

    def of(self, costs: Sequence[float]) -> float:
        """The statistic of the samples' costs."""
        return fmean(costs) if self.statistic == MEAN else float(np.percentile(costs, 95))

    def shown(self, cost: float) -> str:
        """A cost for people, in the target's own terms."""
        if self.kind == TOKENS:
            return f"{cost:.1f} tokens"
        return f"{1 / cost:.2f} times" if self.kind == SPEEDUP else f"{1e3 * cost:.4g} ms"

    def __str__(self) -> str:
        """As people say it."""
        what = {TOKENS: "per image", SPEEDUP: "faster prefill", FIRST_TOKEN: "to first token"}
        statistic = "on average" if self.statistic == MEAN else "at the 95th percentile"
        return f"{self.shown(self.cost)} {what[self.kind]} {statistic}"

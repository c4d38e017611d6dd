from __future__ import annotations

import pytest

from atp_calibration.budget.target import FIRST_TOKEN, P95, SPEEDUP, TOKENS, Target
from atp_runtime.errors import InputError


def test_a_speedup_is_a_share_of_the_time() -> None:
    assert Target(SPEEDUP, 4.0).cost == 0.25
    assert Target(SPEEDUP, 4.0).shown(0.5) == "2.00 times"


def test_the_95th_percentile_is_what_one_in_twenty_exceeds() -> None:
    costs = [float(it) for it in range(1, 101)]
    assert sum(it > Target(TOKENS, 1.0, P95).of(costs) for it in costs) == 5
    assert Target(TOKENS, 1.0).of(costs) == 50.5


@pytest.mark.parametrize(
    ("kind", "value"),
    [(TOKENS, 0.0), (TOKENS, float("nan")), (SPEEDUP, 1.0), (FIRST_TOKEN, -1.0)],
)
def test_a_target_that_makes_no_sense_is_refused(kind: str, value: float) -> None:
    with pytest.raises(InputError, match="target"):
        Target(kind, value)

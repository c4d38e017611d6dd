import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.benchmarks.forced_selection import counts_for_average


@given(
    spans=st.lists(st.integers(1, 12), min_size=2, max_size=5),
    average=st.floats(100, 576),
)
def test_counts_have_the_average_over_all_layers(spans: list[int], average: float) -> None:
    try:
        counts = counts_for_average(spans, 576, average)
    except ValueError:
        assume(False)

    mean = sum(s * n for s, n in zip(spans, (576, *counts), strict=True)) / sum(spans)
    assert mean == pytest.approx(average, abs=1)
    assert list(counts) == sorted(counts, reverse=True)


@pytest.mark.parametrize(
    ("spans", "average"), [([8, 8], 288), ([8, 8], 600), ([16], 100)], ids=["few", "many", "none"]
)
def test_an_average_out_of_reach_is_refused(spans: list[int], average: float) -> None:
    with pytest.raises(ValueError, match="no counts"):
        counts_for_average(spans, 576, average)

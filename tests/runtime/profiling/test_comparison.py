from __future__ import annotations

from dataclasses import replace

import pytest
from tests.runtime.profiling.conftest import MakeProfile, around

from atp_runtime.latency.table import Setting
from atp_runtime.profiling.comparison import compare_profiles, write_comparison
from atp_runtime.profiling.profile_file import DENSE, PRUNED, Asked, ProfiledBundle


def test_equal_profiles_have_no_difference(make_profile: MakeProfile) -> None:
    found = compare_profiles(make_profile(), make_profile(), 0.0)
    assert not found.regressions
    assert not found.cautions
    assert {it.change for it in found.differences} == {0.0}


@pytest.mark.parametrize(
    ("after", "threshold", "slower"),
    [(130.0, 0.05, True), (130.0, 0.5, False), (105.0, 0.0, False), (60.0, 0.0, False)],
    ids=["above both", "below the threshold", "within the noise", "faster"],
)
def test_slower_is_what_exceeds_threshold_and_noise(
    make_profile: MakeProfile, after: float, threshold: float, slower: bool
) -> None:
    # Nine of ten runs took at most 1.1 times the median.
    found = compare_profiles(make_profile(), make_profile(pruned=after), threshold)
    assert bool(found.regressions) is slower
    assert all(it.mode == PRUNED for it in found.regressions)


def test_a_single_stage_is_marked_but_is_no_regression(make_profile: MakeProfile) -> None:
    before = make_profile(pruned=None)
    mode = before.modes[DENSE]
    slow = replace(mode.rows[1], seconds=around(9.0))
    changed = replace(mode, rows=(mode.rows[0], slow, *mode.rows[2:]))
    found = compare_profiles(before, replace(before, modes={DENSE: changed}), 0.05)
    assert [it.name for it in found.differences if it.slower] == ["vision vision"]
    assert not found.regressions
    assert any("slower" in line for line in write_comparison(found))


def test_what_makes_a_comparison_doubtful_is_said(make_profile: MakeProfile) -> None:
    after = make_profile(
        pruned=None,
        bundle=ProfiledBundle("other", "def", "float16", 4, 1),
        setting=Setting("another board", "tensorrt", None, "MAXN"),
        asked=Asked(3, "questions.json", 64, 30, 5),
    )
    told = " / ".join(compare_profiles(make_profile(), after, 0.05).cautions)
    for words in ("other graphs", "another board", "questions.json", "64 tokens", "pruned"):
        assert words in told

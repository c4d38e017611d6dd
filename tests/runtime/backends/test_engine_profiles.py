import pytest
from hypothesis import given
from hypothesis import strategies as st

from atp_runtime.backends.engine_profiles import (
    axis_places,
    check_profiles,
    choose_profile,
    longest_lengths,
)
from atp_runtime.engine_set import DECODE, PREFILL, EngineProfile
from atp_runtime.errors import InputError
from atp_runtime.manifest import AxisRange, Stage, TensorSpec

SEGMENT = Stage(
    "segment_0",
    "segment",
    "",
    (),
    (
        TensorSpec("hidden_states", "float16", (1, "tokens", 8)),
        TensorSpec("keep_indices", "int64", ("kept",)),
        TensorSpec("position_ids", "int64", (1, "kept")),
        TensorSpec("past_key_values.0.key", "float16", (1, "past", 2, 4)),
    ),
    (),
)
ONE = AxisRange(1, 1, 1)
DECODING = EngineProfile(DECODE, {"tokens": ONE, "kept": ONE, "past": AxisRange(0, 9, 90)})
PREFILLING = EngineProfile(
    PREFILL,
    {"tokens": AxisRange(1, 9, 40), "kept": AxisRange(1, 9, 30), "past": AxisRange(0, 0, 80)},
)
LENGTHS = st.fixed_dictionaries(
    {"tokens": st.integers(1, 45), "kept": st.integers(1, 35), "past": st.integers(0, 95)}
)


def test_axes_are_found_in_the_first_input_that_has_them() -> None:
    assert axis_places(SEGMENT) == {
        "tokens": ("hidden_states", 1),
        "kept": ("keep_indices", 0),
        "past": ("past_key_values.0.key", 1),
    }


@given(lengths=LENGTHS, decode_first=st.booleans())
def test_decode_profile_is_chosen_whenever_it_admits_the_lengths_and_prefill_next(
    lengths: dict[str, int], decode_first: bool
) -> None:
    profiles = [DECODING, PREFILLING] if decode_first else [PREFILLING, DECODING]
    one = lengths["tokens"] == lengths["kept"] == 1
    if one and lengths["past"] <= 90:
        assert profiles[choose_profile(SEGMENT, profiles, lengths)] is DECODING
    elif lengths["tokens"] <= 40 and lengths["kept"] <= 30 and lengths["past"] <= 80:
        assert profiles[choose_profile(SEGMENT, profiles, lengths)] is PREFILLING
    else:
        with pytest.raises(InputError):
            choose_profile(SEGMENT, profiles, lengths)


def test_axis_that_is_too_long_is_named_with_its_limit_and_the_option_that_raises_it() -> None:
    lengths = {"tokens": 40, "kept": 31, "past": 200}
    with pytest.raises(InputError, match="segment_0: the axis 'kept' has length 31") as raised:
        choose_profile(SEGMENT, [PREFILLING, DECODING], lengths)
    assert "built for 30 at most" in raised.value.why
    assert "--max-tokens 200 or more" in raised.value.fix


def test_lengths_are_named_when_only_their_combination_is_refused() -> None:
    with pytest.raises(InputError, match="admits tokens 2, kept 2, past 85"):
        choose_profile(SEGMENT, [PREFILLING, DECODING], {"tokens": 2, "kept": 2, "past": 85})


def test_longest_lengths_are_those_of_any_profile() -> None:
    longest = longest_lengths([PREFILLING, DECODING], ["tokens", "kept", "past"])
    assert longest == {"tokens": 40, "kept": 30, "past": 90}


@pytest.mark.parametrize(
    ("profiles", "in_engine"),
    [([PREFILLING], 2), ([], 0), ([PREFILLING, EngineProfile(DECODE, {"tokens": ONE})], 2)],
)
def test_profiles_are_refused_when_they_are_not_the_engines_or_lack_an_axis(
    profiles: list[EngineProfile], in_engine: int
) -> None:
    axes = ["tokens", "kept", "past"]
    check_profiles(SEGMENT, [PREFILLING, DECODING], 2, axes)
    with pytest.raises(InputError, match="segment_0: its engine's profiles") as raised:
        check_profiles(SEGMENT, profiles, in_engine, axes)
    assert "atp-export engines" in raised.value.fix

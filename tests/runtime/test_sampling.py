import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from atp_runtime.errors import CheckFailedError, InputError
from atp_runtime.sampling import Sampler, SamplingOptions, keep_set

Logits = npt.NDArray[np.float32]

# Few distinct values, so that ties are common.
TIED = st.lists(st.integers(-6, 6), min_size=1, max_size=40).map(
    lambda values: np.array(values, dtype=np.float32)
)
SPREAD = st.lists(st.floats(-30, 30, width=32, allow_subnormal=False), min_size=1, max_size=40).map(
    lambda values: np.array(values, dtype=np.float32)
)
TOP_P = st.floats(0, 1)


def warped(logits: Logits, *warpers: object) -> list[int]:
    scores = torch.from_numpy(logits)[None]
    for warper in warpers:
        scores = warper(None, scores)
    return torch.nonzero(scores[0] > -math.inf).flatten().tolist()


@given(st.one_of(TIED, SPREAD), st.integers(1, 50))
@settings(deadline=None)
def test_top_k_keeps_what_transformers_keeps_ties_included(logits: Logits, top_k: int) -> None:
    assert keep_set(logits, top_k=top_k).tolist() == warped(logits, TopKLogitsWarper(top_k))


@given(st.one_of(TIED, SPREAD), TOP_P)
@settings(deadline=None)
def test_top_p_keeps_what_transformers_keeps_up_to_rounding_at_the_cut(
    logits: Logits, top_p: float
) -> None:
    kept = np.sort(logits[keep_set(logits, top_p=top_p)])[::-1]
    # Sorted logits, not ids: which of two tied tokens survives the cut is Transformers' accident.
    least = np.sort(logits[warped(logits, TopPLogitsWarper(max(top_p - 1e-5, 0)))])[::-1]
    most = np.sort(logits[warped(logits, TopPLogitsWarper(min(top_p + 1e-5, 1)))])[::-1]
    assert least.size <= kept.size <= most.size
    assert kept.tolist() == most[: kept.size].tolist()


@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.5, 0.9, 0.95, 0.999])
def test_top_p_keeps_the_same_ids_as_transformers_on_a_large_vocabulary(top_p: float) -> None:
    for scale in (0.1, 1, 5):
        logits = np.random.default_rng(7).normal(0, scale, 50_000).astype(np.float32)
        assert keep_set(logits, top_p=top_p).tolist() == warped(logits, TopPLogitsWarper(top_p))


@given(SPREAD, st.floats(0.1, 5), st.integers(1, 20), st.floats(0.05, 0.95), st.integers(0, 99))
@settings(deadline=None)
def test_draws_stay_in_the_set_of_transformers_warpers_in_their_order(
    logits: Logits, temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    sampler = Sampler(SamplingOptions(temperature, top_k, top_p, seed))
    allowed = warped(
        logits,
        TemperatureLogitsWarper(temperature),
        TopKLogitsWarper(top_k),
        TopPLogitsWarper(min(top_p + 1e-5, 1)),
    )
    tied = set(logits[allowed].tolist())
    assert {logits[sampler.pick(logits)].item() for _ in range(20)} <= tied


def test_every_kept_token_is_drawn_when_there_are_enough_draws() -> None:
    logits = np.array([1.0, 0.5, 0.9, -3.0, 1.1], dtype=np.float32)
    sampler = Sampler(SamplingOptions(temperature=1.0, top_k=4, top_p=0.9, seed=0))
    expected = warped(logits, TopKLogitsWarper(4), TopPLogitsWarper(0.9))
    assert sorted({sampler.pick(logits) for _ in range(300)}) == expected


def test_frequencies_follow_the_softmax_of_the_divided_logits() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3], dtype=np.float32))
    sampler = Sampler(SamplingOptions(temperature=2.0, seed=3))
    draws = 20_000
    counts = np.bincount([sampler.pick(logits) for _ in range(draws)], minlength=4)
    expected = np.sqrt([0.1, 0.4, 0.2, 0.3])
    expected *= draws / expected.sum()
    # 16.27 is the 0.999 quantile of chi-square with 3 degrees of freedom.
    assert ((counts - expected) ** 2 / expected).sum() < 16.27


def test_token_of_no_probability_is_never_drawn() -> None:
    logits = np.array([-200.0, 0.0, -200.0], dtype=np.float32)
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=1))
    assert {sampler.pick(logits) for _ in range(200)} == {1}


def test_answers_repeat_when_the_seed_is_the_same_and_differ_otherwise() -> None:
    logits = np.zeros(1000, dtype=np.float32)

    def answer(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=1.0, seed=seed))
        return [sampler.pick(logits) for _ in range(8)]

    assert answer(5) == answer(5)
    assert answer(5) != answer(6)
    assert answer(None) != answer(None)


@given(st.one_of(TIED, SPREAD))
@settings(deadline=None)
def test_greedy_takes_the_first_of_the_largest_logits(logits: Logits) -> None:
    largest = max(logits.tolist())
    assert Sampler(SamplingOptions()).pick(logits) == logits.tolist().index(largest)


def test_greedy_ignores_top_k_and_top_p() -> None:
    logits = np.array([0.0, 3.0, 1.0], dtype=np.float32)
    assert Sampler(SamplingOptions(temperature=0, top_k=2, top_p=0.1)).pick(logits) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_fail_with_the_number_of_the_token(
    bad: float, temperature: float
) -> None:
    sampler = Sampler(SamplingOptions(temperature=temperature))
    good = np.array([0.0, 1.0, 2.0], dtype=np.float32)
    sampler.pick(good)
    sampler.pick(good)
    with pytest.raises(CheckFailedError, match="1 of the 3 logits of answer token 3 "):
        sampler.pick(np.array([0.0, bad, 1.0], dtype=np.float32))


def test_logits_that_overflow_under_the_temperature_fail() -> None:
    sampler = Sampler(SamplingOptions(temperature=0.001))
    with pytest.raises(CheckFailedError, match="answer token 1 "):
        sampler.pick(np.array([1e38, 0.0], dtype=np.float32))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.5),
        ("temperature", 1e-9),
        ("temperature", 1e9),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", -0.1),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("seed", -1),
        ("seed", 0.5),
    ],
)
def test_option_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name) as raised:
        SamplingOptions(**{name: value})  # type: ignore[arg-type]
    assert str(value) in raised.value.what
    assert name in raised.value.fix


def test_higher_ids_stay_when_equal_tokens_tie_at_the_cut_of_top_p() -> None:
    logits = np.array([1.0, 1.0, 1.0, 1.0], dtype=np.float32)
    assert keep_set(logits, top_p=0.5).tolist() == [2, 3]

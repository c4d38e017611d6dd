"""The validation split: by image, the same whatever else there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from atp_models.training.records import Record, Turn
from atp_models.training.splitting import limited, split_records

TURNS = (Turn("user", "Q"), Turn("assistant", "A"))


def records(images: int, each: int = 1) -> list[Record]:
    return [
        Record(f"{image}-{number}", (Path(f"{image}.png"),), TURNS, f"{image}.png")
        for image in range(images)
        for number in range(each)
    ]


def test_split_keeps_about_the_share_that_was_asked_for() -> None:
    training, kept = split_records(records(2000), share=0.1, limit=10_000, seed=0)
    assert len(training) + len(kept) == 2000
    assert 150 < len(kept) < 250


def test_split_never_divides_an_image() -> None:
    training, kept = split_records(records(200, each=3), share=0.3, limit=10_000, seed=1)
    assert {it.key for it in training}.isdisjoint(it.key for it in kept)
    assert len(kept) % 3 == 0


def test_split_of_a_record_does_not_depend_on_the_others() -> None:
    _, kept = split_records(records(300), share=0.2, limit=1000, seed=2)
    _, fewer = split_records(records(300)[::2], share=0.2, limit=1000, seed=2)
    assert [it for it in kept if it in records(300)[::2]] == fewer


def test_split_depends_on_the_seed() -> None:
    one, other = (split_records(records(300), share=0.5, limit=1000, seed=s)[1] for s in (0, 1))
    assert one != other


def test_what_is_beyond_the_limit_is_not_trained_on() -> None:
    training, kept = split_records(records(1000), share=0.2, limit=50, seed=0)
    whole, _ = split_records(records(1000), share=0.2, limit=1000, seed=0)
    assert len(kept) == 50
    assert training == whole


@pytest.mark.parametrize("share", [0.0, 0.999999])
def test_all_or_nothing_may_be_kept(share: float) -> None:
    training, kept = split_records(records(50), share=share, limit=1000, seed=0)
    assert (len(training), len(kept)) == ((50, 0) if share == 0 else (0, 50))


def test_limited_keeps_the_order() -> None:
    chosen = limited(records(100), 10, seed=3)
    assert chosen == sorted(chosen, key=records(100).index)
    assert chosen != records(100)[:10]

"""How policies are named on the command line of a comparison."""

from __future__ import annotations

import pytest

from atp_runtime.errors import InputError
from atp_runtime.policies.entrant import Entrant, read_entrants


def test_a_policy_is_told_to_the_exporter_as_its_options() -> None:
    assert Entrant.parse("dense").words() == ["--dense"]
    assert Entrant.parse("atp").words() == []
    found = Entrant.parse("topk:keep=9,3:layers=1,2")
    assert found.words() == ["--policy", "topk", "--set", "keep=9,3", "--set", "layers=1,2"]
    assert str(found) == "topk keep=9,3 layers=1,2"


def test_every_policy_has_a_directory_of_its_own() -> None:
    texts = ["dense", "atp", "fastv", "fastv:ratio=0.75", "fastv:layer=2:ratio=0.75", "x:y=a/../b"]
    names = [Entrant.parse(text).directory for text in texts]
    assert len(set(names)) == len(names)
    assert all("/" not in name for name in names)


@pytest.mark.parametrize("text", ["", ":a=1", "fastv:", "fastv:ratio", "fastv:=3", "fastv:a=1=2"])
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--policies"):
        Entrant.parse(text)


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (["dense"], "at least two"),
        (["dense", "dense"], "twice"),
        (["dense:ratio=1", "atp"], "dense has no settings"),
    ],
)
def test_what_cannot_be_compared_is_refused(texts: list[str], why: str) -> None:
    with pytest.raises(InputError) as refused:
        read_entrants(texts)
    assert why in (refused.value.why or "")

"""Policies and rules of other packages: installed ones, found by their entry points."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atp_export.cli import main as atp_export
from atp_export.policies import make_policy, policy_names
from atp_runtime.errors import InputError
from atp_runtime.pruning_rules import rule
from atp_runtime.session import Session

CODE = """
from dataclasses import dataclass
import numpy as np
from atp_export.policies import Policy
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.rule import FixedRule, Verdict

@dataclass(frozen=True)
class Halve(Policy):
    rule: str = "every_other"

    def points(self, depth):
        return (PruningPoint(depth // 2, self.rule, {}),)

@dataclass(frozen=True)
class EveryOther(FixedRule):
    def decide(self, image):
        order = np.arange(len(image.own))
        return Verdict(-(order % 2).astype(np.float64), len(order) // 2, idle="")
"""
ENTRY_POINTS = """
[atp_llava.policies]
halve = {module}:Halve
lost = {module}_that_is_not_there:Halve
wrong = {module}:EveryOther
[atp_llava.rules]
every_other = {module}:EveryOther
"""
MODULE = "some_other_package"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package, as pip leaves it behind."""
    site = tmp_path / "site"
    about = site / f"{MODULE}-1.0.dist-info"
    about.mkdir(parents=True)
    (site / f"{MODULE}.py").write_text(CODE)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {MODULE}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS.format(module=MODULE))
    monkeypatch.syspath_prepend(site)
    yield
    sys.modules.pop(MODULE, None)


@pytest.mark.usefixtures("package")
def test_a_registered_policy_with_its_rule_is_exported_checked_and_run(
    tiny: Any, photos: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    words = [str(tiny.checkpoint), str(out), "--precision", "fp32", "--quiet", "--policy", "halve"]
    assert atp_export(words) == 0
    assert json.loads((out / "reports" / "parity.json").read_text())["passed"] is True
    with Session.open(out) as session:
        answer = session.ask("What is this?", [photos[0]])
    (point,) = answer.statistics.points
    assert point.kept == session.model.manifest.vision.tokens // 2


@pytest.mark.usefixtures("package")
def test_registered_names_are_listed_behind_our_own() -> None:
    assert policy_names()[0] == "fastv"
    assert policy_names()[-3:] == ["halve", "lost", "wrong"]
    with pytest.raises(InputError, match="unknown policy") as refused:
        make_policy("other", {}, "here")
    assert "halve" in (refused.value.why or "")


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("name", "why"), [("lost", "cannot be imported"), ("wrong", "no subclass of atp_export")]
)
def test_what_is_registered_and_unusable_is_refused_by_name(name: str, why: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' of atp_llava.policies") as refused:
        make_policy(name, {}, "here")
    assert why in (refused.value.why or "")


def test_a_rule_whose_package_is_not_installed_is_unknown() -> None:
    with pytest.raises(InputError, match="unknown pruning rule 'every_other'"):
        rule("every_other")

"""The tree of ticks."""

from __future__ import annotations

from atp_export.parity.measures import Measure
from atp_export.parity.report import Check, ParityReport
from atp_export.parity.tree import render_tree


def measure(
    tensor: str, cosine: float | None, ratio: float | None, *, passed: bool = True
) -> Measure:
    return Measure(tensor, "prefill", cosine, ratio, None if cosine is None else 0.25, passed)


def tree(*checks: Check) -> list[str]:
    passed = all(check.passed for check in checks)
    report = ParityReport("sampled", "no room", "fp32", ("native",), checks, {}, {}, 1.0, passed)
    return render_tree(report).splitlines()


def check(name: str, *measures: Measure) -> Check:
    return Check.of(name, "stage", "PyTorch", "layer 0", measures)


def test_every_check_has_a_line_with_its_tick() -> None:
    lines = tree(check("vision", measure("a", 1.0, 1.0)), check("head", measure("b", 1.0, 1.0)))

    assert lines[0].startswith("✓ parity, sampled (no room)")
    assert [line[:6] for line in lines[1:]] == ["├── ✓ ", "└── ✓ "]
    assert len(lines) == 3


def test_a_line_shows_the_worst_cosine_and_norm_ratio() -> None:
    _, line = tree(
        check("head", measure("a", 1 - 1e-6, 1.0), measure("b", 1.0, 0.9), measure("c", 1.0, 1.05))
    )

    assert "cosine 1 - 1e-06" in line
    assert "norm 0.90000" in line


def test_a_failure_names_the_tensor_and_its_numbers() -> None:
    bad = measure("present.7.key", 0.5, 1.01, passed=False)

    lines = tree(check("segment_0", measure("fine", 1.0, 1.0), bad))

    assert lines[0].startswith("✗")
    assert lines[1].startswith("└── ✗ segment_0")
    assert "present.7.key, prefill" in lines[2]
    assert "norm 1.01000" in lines[2]
    assert "largest error 0.25" in lines[2]
    assert len(lines) == 3


def test_a_failure_says_so_when_there_are_no_numbers() -> None:
    lines = tree(check("head", measure("logits", None, None, passed=False)))

    assert "cosine none  norm none" in lines[1]
    assert "not comparable" in lines[2]


def test_many_failures_are_cut_short() -> None:
    bad = [measure(f"present.{n}.key", 0.5, 1.0, passed=False) for n in range(30)]

    lines = tree(check("segment_0", *bad))

    assert lines[-1].strip() == "└── and 22 more"
    assert len(lines) == 11


def test_a_check_that_could_not_be_made_says_why() -> None:
    problem = "scores.self are NaN"

    _, line = tree(Check.impossible("pruned", "end to end", "PyTorch", problem))

    assert line.startswith("└── ✗ pruned")
    assert problem in line

from __future__ import annotations

import pytest

from atp_export.engines.failures import BuildFailedError, GraphRefusedError, Problem

NO_MEMORY = Problem("Error Code 2: OutOfMemory (Requested size was 268517664 bytes.)")


def test_a_refusal_names_the_node_and_the_parsers_reason() -> None:
    error = GraphRefusedError("head", [Problem("not supported", node="n7", operator="NonZero")])
    assert error.what.startswith("head:")
    assert "n7 (NonZero): not supported" in error.why
    assert error.exit_code == 2


def test_of_many_reasons_the_first_are_told() -> None:
    error = BuildFailedError("head", [Problem(f"reason {number}") for number in range(5)])
    assert "reason 0; reason 1; reason 2; and 2 more" in error.why
    assert len(error.problems) == 5


def test_silence_is_told() -> None:
    assert "no reason" in BuildFailedError("head", []).why


@pytest.mark.parametrize(
    "problem",
    [
        NO_MEMORY,
        Problem("Cuda failure: out of memory"),
        Problem("std::bad_alloc"),
        Problem("cudaErrorMemoryAllocation"),
        Problem("anything", code="FAILED_ALLOCATION"),
    ],
)
def test_too_little_memory_names_the_options_that_lower_it(problem: Problem) -> None:
    error = BuildFailedError("segment_0", [problem])
    assert "out of memory" in error.what
    assert error.exit_code == 3
    for option in ("--workspace", "--optimisation-level", "--max-tokens", "--max-segment-bytes"):
        assert option in error.fix


def test_a_workspace_that_is_too_small_is_to_be_raised() -> None:
    error = BuildFailedError("segment_0", [NO_MEMORY], workspace_bytes=256 << 20)
    assert "--workspace 256 does not suffice" in error.what
    assert "raise it to 257 or more" in error.fix
    assert "raise" not in BuildFailedError("segment_0", [NO_MEMORY], workspace_bytes=1 << 30).fix


def test_tactics_that_found_no_room_are_a_matter_of_memory() -> None:
    problem = Problem("no tactics to implement the operation within workspace limit.")
    assert "raise it, or" in BuildFailedError("head", [problem], workspace_bytes=1 << 20).fix
    assert "out of memory" in BuildFailedError("head", [problem]).what


def test_other_failures_do_not_speak_of_memory() -> None:
    error = BuildFailedError("head", [Problem("no implementation for node", "INTERNAL_ERROR")])
    assert "memory" not in error.what

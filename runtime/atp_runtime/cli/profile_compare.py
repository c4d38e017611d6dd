"""What `atp-profile compare` does with its options."""

from __future__ import annotations

import argparse

from atp_runtime.cli.command import print_error, print_json
from atp_runtime.errors import CheckFailedError, InputError
from atp_runtime.profiling.comparison import compare_profiles, write_comparison
from atp_runtime.profiling.profile_file import read_profile
from atp_runtime.schema import to_json


def compare(options: argparse.Namespace) -> int:
    """Compares two profiles; returns the exit code."""
    if not 0 <= options.threshold < float("inf"):
        raise InputError(
            f"--threshold {options.threshold}",
            why="it is by how many percent a time may rise.",
            fix="give 0 or more.",
        )
    before, after = read_profile(options.before), read_profile(options.after)
    found = compare_profiles(before, after, options.threshold / 100)
    if options.json:
        print_json(to_json(found))
    else:
        print("\n".join(write_comparison(found)))
    if not found.regressions:
        return 0
    worst = max(found.regressions, key=lambda it: it.change)
    error = CheckFailedError(
        f"{worst.mode}, {worst.name}: {100 * worst.change:.1f} % slower",
        why=f"more than the {options.threshold:g} % of --threshold, and more than the noise.",
        fix="measure again on a quiet machine; the lines above tell which stage it is.",
    )
    return print_error("atp-profile", error)

"""A profile's rows as a spreadsheet reads them."""

from __future__ import annotations

import csv
import io

from atp_runtime.profiling.limits import share_of_ceiling
from atp_runtime.profiling.profile_file import Profile

_HEADER = (
    "mode",
    "phase",
    "part",
    "tokens_entering",
    "tokens_leaving",
    "minimum_ms",
    "median_ms",
    "p90_ms",
    "p99_ms",
    "gflops",
    "gbps",
    "share_of_ceiling",
)


def profile_csv(profile: Profile) -> str:
    """One line per mode and row; what is not known is empty."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(_HEADER)
    for name, mode in profile.modes.items():
        for row in mode.rows:
            took = row.seconds
            times = [1e3 * it for it in (took.minimum, took.median, took.p90, took.p99)]
            rates = [row.gflops, row.gbps, share_of_ceiling(row, profile.ceiling)]
            cells = [row.entering, row.leaving, *times, *rates]
            told = ["" if it is None else f"{it:.6g}" for it in cells]
            lines.writerow([name, row.phase, row.name, *told])
    return text.getvalue()

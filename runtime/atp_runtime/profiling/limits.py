"""How close a row of a profile is to what the machine can do."""

from __future__ import annotations

from atp_runtime.profiling.ceiling import Ceiling
from atp_runtime.profiling.profile_file import Row


def share_of_ceiling(row: Row, ceiling: Ceiling | None) -> float | None:
    """The roofline's time for a row's work over its measured one; None where it is not known.

    Whichever of arithmetic and memory would take longer at the machine's best is the limit, so
    the larger share counts.
    """
    if ceiling is None or row.gbps is None:
        return None
    return max((row.gflops or 0.0) / ceiling.gflops, row.gbps / ceiling.gbps)

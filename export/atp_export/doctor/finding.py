"""What the doctor tells, a line at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from atp_export.doctor.system import System

_MARKS = {True: "✓", False: "✗", None: "?"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: What it is.
        found: How it is.
        ok: Whether it will do; None where that cannot be told.
        fix: What to do where it will not.
    """

    subject: str
    found: str
    ok: bool | None = True
    fix: str = ""


Probe: TypeAlias = Callable[[str, System], Finding]
"""Looks at one thing of a machine. It is given the finding's subject, and may raise `OSError`,
`ValueError` or `LookupError` where what it reads is missing or not as expected."""


def look(subject: str, probe: Probe, system: System) -> Finding:
    """What a probe finds; that it fails is a finding, too."""
    try:
        return probe(subject, system)
    except (OSError, ValueError, LookupError) as error:
        return Finding(subject, f"cannot be told: {reason(error)}", ok=None)


def reason(error: Exception) -> str:
    """An exception in a few words, with the file that it is about."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def print_findings(findings: Iterable[Finding]) -> None:
    """Prints a line per finding, and the remedy where one is needed."""
    for finding in findings:
        print(f"{_MARKS[finding.ok]} {finding.subject}: {finding.found}")
        if finding.ok is not True and finding.fix:
            print(f"    fix: {finding.fix}")

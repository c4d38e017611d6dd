"""What this machine has for exporting, building engines and running, and what a bundle needs.

Needs nothing but Python itself: it is what one runs where something is missing. Nothing heavy is
imported and nothing is changed. Read `examination.py` first.
"""

from __future__ import annotations

from atp_export.doctor.examination import examine, examine_bundle
from atp_export.doctor.finding import Finding, print_findings
from atp_export.doctor.system import System

__all__ = ["Finding", "System", "examine", "examine_bundle", "print_findings"]

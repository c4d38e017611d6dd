"""`atp-export doctor`."""

from __future__ import annotations

import argparse

from atp_export.doctor import examine, print_findings
from atp_runtime.cli.command import print_json
from atp_runtime.schema import to_json


def run(options: argparse.Namespace) -> int:
    """Shows what this machine has."""
    findings = examine()
    if options.json:
        print_json(to_json(findings))
    else:
        print_findings(findings)
    return 0

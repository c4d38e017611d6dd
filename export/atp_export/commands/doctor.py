"""`atp-export doctor [BUNDLE]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from atp_export.doctor import Finding, System, examine, examine_bundle, print_findings
from atp_runtime.cli.command import print_json
from atp_runtime.errors import MachineError
from atp_runtime.schema import to_json


def run(options: argparse.Namespace) -> int:
    """Shows what this machine has and, given a bundle, whether it can be built and run here.

    Returns:
        0, or 3 if something stands in the way of the bundle.
    """
    bundle: Path | None = options.bundle
    system = System()
    of_bundle = examine_bundle(bundle, system) if bundle else ()
    findings = (*examine(system, bundle or Path.cwd()), *of_bundle)
    if options.json:
        print_json(to_json(findings))
    else:
        print_findings(findings)
    return MachineError.exit_code if _obstructed(of_bundle) else 0


def _obstructed(findings: tuple[Finding, ...]) -> bool:
    return any(finding.ok is False for finding in findings)

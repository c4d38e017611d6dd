"""`atp-export verify BUNDLE`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from atp_export.commands.outcome import end
from atp_export.progress import make_reporter
from atp_export.verify import failure, print_verdict, verify_bundle
from atp_runtime.schema import to_json


def run(options: argparse.Namespace) -> int:
    """Checks a bundle."""
    reporter = make_reporter(quiet=options.quiet or options.json)
    checkpoint: Path | None = options.checkpoint
    verdict = verify_bundle(options.bundle, checkpoint, parity=options.parity, reporter=reporter)
    if not (options.quiet or options.json):
        print_verdict(verdict, Console(soft_wrap=True))
    document = {"passed": verdict.passed, **to_json(verdict)} if options.json else None
    return end(failure(options.bundle, verdict), document)

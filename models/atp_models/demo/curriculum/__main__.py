"""`python -m atp_models.demo.curriculum WORK`: train the demo's deltas again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atp_models.demo.command import Report, add_cache_option, add_output_options, run_command
from atp_models.demo.recipe import DELTAS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(arguments)

    def train(report: Report) -> tuple[dict[str, Any], str]:
        # Imported late: it takes seconds, and --help needs none of it.
        from atp_models.demo.curriculum.course import train_demo  # noqa: PLC0415
        from atp_models.training.progress import make_progress  # noqa: PLC0415

        document = train_demo(
            options.work,
            options.deltas,
            cache_dir=options.cache,
            report=report,
            progress=make_progress(quiet=options.quiet or options.json),
        )
        return document, f"deltas: {options.deltas}"

    return run_command(options, train)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m atp_models.demo.curriculum",
        description="Train what joins the demo's pretrained parts, and its pruning modules. "
        "Hours on a CPU; run again, it goes on where it was interrupted.",
    )
    parser.add_argument("work", type=Path, metavar="WORK", help="directory for data and stages")
    parser.add_argument(
        "--deltas",
        type=Path,
        default=DELTAS,
        metavar="FILE",
        help="file to write (default: the package's own)",
    )
    add_cache_option(parser)
    add_output_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())

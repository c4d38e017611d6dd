"""`atp-profile`: how long the stages of a bundle take on this machine.

NumPy and the backend are imported when the work begins, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from atp_runtime.cli.backend_options import add_backend_options
from atp_runtime.cli.command import CommandParser, add_output_options, run_command, wants_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `atp-profile`; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> int:
        options = _parser().parse_args(words)
        from atp_runtime.cli.profile_work import profile  # noqa: PLC0415 - see above

        return profile(options)

    return run_command(
        "atp-profile",
        work,
        as_json=wants_json(words),
        if_interrupted="nothing was written; run it again.",
    )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="atp-profile",
        description="Measure what each stage of a bundle takes on this machine, for sequences of "
        "several lengths, and write the table that atp-run --deadline and atp-calibrate "
        "--latency-table use.",
        epilog="Exit codes: 0 done, 2 wrong input, 3 the machine lacks something, 130 interrupted.",
    )
    parser.add_argument("bundle", type=Path, help="the directory that atp-export wrote")
    parser.add_argument(
        "--tokens",
        type=_counts,
        metavar="36,72,144",
        help="lengths of the sequences, text included (default: a whole image and text, down to a "
        "sixteenth of it)",
    )
    parser.add_argument(
        "--runs", type=int, default=20, metavar="N", help="of each length (default: %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the table (default: BUNDLE/latency/, under this machine's name, where atp-run looks)",
    )
    add_backend_options(parser)
    add_output_options(parser)
    return parser


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        message = f"{text!r} is not a list of token counts such as 36,72,144"
        raise argparse.ArgumentTypeError(message) from error


if __name__ == "__main__":
    sys.exit(main())

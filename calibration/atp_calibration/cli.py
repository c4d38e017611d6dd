"""`atp-calibrate`: what a bundle learns from sample images and prompts.

Heavy packages are imported when the work begins, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from atp_calibration.budget.options import add_budget_options
from atp_calibration.quantisation.options import add_quantisation_options
from atp_runtime.cli.command import CommandParser, add_output_options, run_command, wants_json
from atp_runtime.cli.eval import FORMATS


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `atp-calibrate`; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> int:
        options = _parser().parse_args(words)
        options.command = shlex.join(["atp-calibrate", *words])
        from atp_calibration.command import calibrate  # noqa: PLC0415 - see above

        return calibrate(options)

    return run_command(
        "atp-calibrate",
        work,
        as_json=wants_json(words),
        if_interrupted="run the same command again; it goes on where it stopped.",
    )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="atp-calibrate",
        description="Make a bundle out of another one: in INT8 or INT4, or pruned to a budget, or "
        "both, as sample images and prompts say. Interrupted, it resumes when run again.",
        epilog="Exit codes: 0 done, 1 a check failed, 2 wrong input, 3 the machine lacks "
        "something, 130 interrupted.",
    )
    parser.add_argument("bundle", type=Path, help="the directory that atp-export wrote")
    parser.add_argument("data", type=Path, help="the samples: any file that atp-eval reads")
    parser.add_argument("out", type=Path, help="the bundle to make")
    _add_samples(parser)
    add_quantisation_options(parser)
    add_budget_options(parser)
    add_output_options(parser)
    return parser


def _add_samples(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("samples")
    group.add_argument(
        "--samples",
        type=int,
        default=128,
        metavar="N",
        help="how many to draw at random (default: %(default)s)",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the drawing (default: %(default)s)"
    )
    group.add_argument(
        "--images", type=Path, metavar="DIR", help="the folder of the images (as atp-eval)"
    )
    group.add_argument(
        "--format", choices=FORMATS, help="of the data (default: found out from the file)"
    )
    group.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads (default: one per core)"
    )


if __name__ == "__main__":
    sys.exit(main())

"""`atp-profile`: where the time of a bundle's answers goes on this machine.

NumPy and the backend are imported when the work begins, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from atp_runtime.cli.backend_options import add_backend_options, add_nvtx_option
from atp_runtime.cli.command import CommandParser, add_output_options, run_command, wants_json
from atp_runtime.errors import InputError

_PROMPT = "What is in this picture?"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `atp-profile`; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> int:
        if words[:1] == ["compare"]:
            options = _compare_parser().parse_args(words[1:])
            from atp_runtime.cli.profile_compare import compare  # noqa: PLC0415 - see above

            return compare(options)
        if words[:1] == ["fit"]:
            options = _fit_parser().parse_args(words[1:])
            from atp_runtime.cli.profile_fit import fit  # noqa: PLC0415

            return fit(options)
        options = _parser().parse_args(words)
        asks = options.image or options.prompt or options.data
        if options.nvtx and (options.predict or not asks):
            raise InputError(
                "--nvtx without answers to measure",
                why="its ranges are the parts of an answer.",
                fix="add --image, --prompt or --data, or leave --nvtx away.",
            )
        if options.predict:
            from atp_runtime.cli.profile_predict import predict  # noqa: PLC0415

            return predict(options)
        if options.keep is not None:
            raise InputError(
                "--keep without --predict",
                why="what is measured keeps what the bundle's rule says.",
                fix="add --predict DEVICE, or leave --keep away.",
            )
        if asks:
            from atp_runtime.cli.profile_answers import profile_answers  # noqa: PLC0415

            return profile_answers(options)
        from atp_runtime.cli.profile_table import profile_table  # noqa: PLC0415

        return profile_table(options)

    return run_command(
        "atp-profile",
        work,
        as_json=wants_json(words),
        if_interrupted="nothing was written; run it again.",
    )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="atp-profile",
        description="Measure where the time of answers goes, with and without pruning, by turns "
        "(--image, --prompt or --data); or, without a question, what each stage takes for "
        "sequences of several lengths: the table that atp-run --deadline and atp-calibrate "
        "--latency-table use.",
        epilog="further commands: atp-profile compare A B, atp-profile fit BUNDLE TABLE (with "
        "--help). Exit codes: 0 done, 2 wrong input, 3 the machine lacks something, 130 "
        "interrupted.",
    )
    parser.add_argument("bundle", type=Path, help="the directory that atp-export wrote")
    _add_answers(parser.add_argument_group("answers"))
    parser.add_argument_group("table").add_argument(
        "--tokens",
        type=_counts,
        metavar="36,72,144",
        help="lengths of the sequences, text included (default: a whole image and text, down to a "
        "sixteenth of it)",
    )
    _add_prediction(parser.add_argument_group("prediction, without the device"))
    parser.add_argument(
        "--runs", type=int, default=30, metavar="N", help="that count (default: %(default)s)"
    )
    parser.add_argument(
        "--warmup", type=int, default=5, metavar="N", help="runs before (default: %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="of answers, the directory for profile.json, profile.csv and report.html (default: "
        "profile-BUNDLE); of a table, its file (default: in BUNDLE/latency/, where atp-run looks)",
    )
    add_backend_options(parser)
    add_nvtx_option(parser)
    add_output_options(parser)
    return parser


def _add_answers(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--image",
        type=Path,
        action="append",
        default=[],
        metavar="PHOTO",
        help="what is asked about; may be given several times",
    )
    group.add_argument("--prompt", metavar="TEXT", help=f"what is asked (default: {_PROMPT!r})")
    group.add_argument(
        "--data",
        type=Path,
        metavar="DATA",
        help="ask questions of any data that atp-eval reads, by turns",
    )
    group.add_argument(
        "--samples",
        type=int,
        default=30,
        metavar="N",
        help="of --data, drawn at random (default: %(default)s)",
    )
    group.add_argument(
        "--new-tokens",
        type=int,
        default=32,
        metavar="N",
        help="of each answer; an earlier end is passed over (default: %(default)s)",
    )
    group.set_defaults(usual_prompt=_PROMPT)


def _add_prediction(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--predict",
        metavar="DEVICE",
        help="predict times and memory there: orin-nano-8gb, orin-nano-8gb-super, orin-nx-16gb, "
        "orin-nx-16gb-super, agx-orin-32gb, agx-orin-64gb, all of them, or a device's file; with "
        "--image and --prompt, the tokens that the bundle keeps are counted here",
    )
    group.add_argument(
        "--keep",
        type=_given_counts,
        metavar="140,50,33",
        help="visual tokens left behind each pruning point (default: all)",
    )


def _fit_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="atp-profile fit",
        description="Fit the efficiencies of --predict to a table that atp-profile measured on the "
        "device, and write the device's file.",
        epilog="Exit codes: 0 done, 2 wrong input.",
    )
    parser.add_argument("bundle", type=Path, help="what was measured")
    parser.add_argument("table", type=Path, help="BUNDLE/latency/....json")
    parser.add_argument(
        "--like",
        required=True,
        metavar="DEVICE",
        help="whose peaks to start from: a name of --predict, or a device's file",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="the device's file, .json"
    )
    parser.add_argument("--name", metavar="TEXT", help="of the device (default: the machine's)")
    add_output_options(parser)
    return parser


def _compare_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="atp-profile compare",
        description="Show what changed from one profile to another, beside the noise of their "
        "runs.",
        epilog="Exit codes: 0 done, 1 answers are slower by more than --threshold, 2 wrong input.",
    )
    parser.add_argument("before", type=Path, help="profile.json, or the directory it is in")
    parser.add_argument("after", type=Path, help="likewise")
    parser.add_argument(
        "--threshold",
        type=float,
        default=5.0,
        metavar="PERCENT",
        help="by which a median may rise (default: %(default)s)",
    )
    add_output_options(parser)
    return parser


def _given_counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        message = f"{text!r} is not a list of token counts such as 140,50,33"
        raise argparse.ArgumentTypeError(message) from error


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        message = f"{text!r} is not a list of token counts such as 36,72,144"
        raise argparse.ArgumentTypeError(message) from error


if __name__ == "__main__":
    sys.exit(main())

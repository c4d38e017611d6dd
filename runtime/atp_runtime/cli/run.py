"""`atp-run`: ask a bundle about photos, on the device.

NumPy and the backend are imported when the work begins, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from atp_runtime.cli.backend_options import add_backend_options, add_nvtx_option
from atp_runtime.cli.command import CommandParser, add_output_options, run_command, wants_json
from atp_runtime.cli.listen_options import add_listen_option


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `atp-run`; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> int:
        # Intermixed, as the question may stand before or behind the options.
        options = _parser().parse_intermixed_args(words)
        from atp_runtime.cli.run_work import answer, chat, serve  # noqa: PLC0415 - see above

        if options.listen:
            return serve(options)
        return chat(options) if options.chat else answer(options)

    return run_command("atp-run", work, as_json=wants_json(words), if_interrupted="ask again.")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="atp-run",
        description="Answer a question about photos with a bundle that atp-export made.",
        epilog="Exit codes: 0 done, 1 a check failed, 2 wrong input, 3 the machine lacks "
        "something, 130 interrupted. A chat goes on after a question that failed, and ends with "
        "the code of the last one that did.",
    )
    parser.add_argument("bundle", type=Path, help="the directory that atp-export wrote")
    parser.add_argument("question", nargs="?", help="what to ask; not with --chat")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="PHOTO",
        help="a photo the question is about; repeat for several",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="read questions from standard input, one per line; photos belong to the first",
    )
    parser.add_argument(
        "--system", metavar="TEXT", help="the system prompt (default: the chat template's)"
    )
    _add_generation(parser)
    _add_deadline(parser)
    add_backend_options(parser)
    add_nvtx_option(parser)
    add_listen_option(parser)
    parser.add_argument(
        "--stats", action="store_true", help="print tokens kept, times, GFLOP/s, GB/s and memory"
    )
    parser.add_argument(
        "--show-pruning",
        type=Path,
        metavar="OUT.png",
        help="draw the photo once per pruning point, dropped patches dimmed; several photos are "
        "drawn to OUT-1.png, OUT-2.png ...",
    )
    add_output_options(parser)
    return parser


def _add_generation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("generation")
    group.add_argument(
        "--max-new-tokens",
        type=int,
        default=256,
        metavar="N",
        help="longest answer (default: %(default)s)",
    )
    group.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default)"
    )
    group.add_argument(
        "--top-k",
        type=int,
        default=0,
        metavar="K",
        help="draw from the K likeliest tokens; 0 is all (default)",
    )
    group.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the likeliest tokens that together have probability P; 1 is all (default)",
    )
    group.add_argument("--seed", type=int, metavar="S", help="makes sampling repeatable")
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="ends the answer where it appears; repeat for several",
    )


def _add_deadline(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("deadline")
    group.add_argument(
        "--deadline",
        metavar="400ms",
        help="when the first token is due: visual tokens are pruned further where the measured "
        "times say that it would come later",
    )
    group.add_argument(
        "--latency-table",
        type=Path,
        metavar="FILE",
        help="those times (default: what atp-profile wrote into the bundle on this machine)",
    )


if __name__ == "__main__":
    sys.exit(main())

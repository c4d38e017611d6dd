"""`atp-eval`: a benchmark's questions, asked of a bundle, and how runs compare.

NumPy and the backend are imported when the work begins, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from atp_runtime.cli.backend_options import add_backend_options
from atp_runtime.cli.command import CommandParser, add_output_options, run_command, wants_json

FORMATS = ("llava", "vqav2", "textvqa", "gqa", "pope", "scienceqa", "mmbench", "seed")
_RULES = ("bundle", "keep_all", "random", "uniform", "cross", "self", "both", "last_row")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `atp-eval`; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> int:
        if words[:1] == ["compare"] and "--policies" in words:
            options = _policies_parser().parse_args(words[1:])
            from atp_runtime.cli.eval_policies import compare_policies  # noqa: PLC0415 - see above

            return compare_policies(options)
        if words[:1] == ["compare"]:
            options = _compare_parser().parse_args(words[1:])
            from atp_runtime.cli.eval_compare import compare_runs  # noqa: PLC0415 - see above

            return compare_runs(options)
        options = _parser().parse_args(words)
        from atp_runtime.cli.eval_work import evaluate_bundle  # noqa: PLC0415 - see above

        return evaluate_bundle(options)

    return run_command(
        "atp-eval",
        work,
        as_json=wants_json(words),
        if_interrupted="run the same command again; it goes on behind the last answer.",
    )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="atp-eval",
        description="Ask a bundle the questions of a benchmark and report how many answers are "
        "right and how many visual tokens were kept. Interrupted, it resumes when run again.",
        epilog="further commands: atp-eval compare REPORT REPORT ..., and atp-eval compare "
        "CHECKPOINT DATA --policies ... (each with --help). Exit codes: 0 done, 1 a check failed, "
        "2 wrong input, 3 the machine lacks something, 130 interrupted.",
    )
    parser.add_argument("bundle", type=Path, help="the directory that atp-export wrote")
    parser.add_argument("data", type=Path, help="the benchmark's file, or directory of files")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where report.md, report.json and answers.jsonl go (default: eval-BUNDLE-DATA)",
    )
    parser.add_argument(
        "--restart", action="store_true", help="drop the answers that are in the output directory"
    )
    _add_data(parser)
    _add_asking(parser)
    _add_pruning(parser)
    add_output_options(parser)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--format", choices=FORMATS, help="the benchmark (default: found out from the file)"
    )
    group.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="the folder of the images (default: where the download has them, from the data on)",
    )
    group.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="VQAv2's answers (default: the file of that name beside the questions)",
    )
    group.add_argument("--split", metavar="NAME", help="ScienceQA's split (default: test)")
    group.add_argument(
        "--no-circular",
        action="store_true",
        help="MMBench: ask each question once, not with its options in every order",
    )
    group.add_argument("--limit", type=int, metavar="N", help="ask a random sample of N questions")
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="of that sample and of random pruning (default: %(default)s)",
    )


def _add_asking(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("asking")
    group.add_argument(
        "--prompt-suffix",
        metavar="TEXT",
        help="the line behind each question, may be empty (default: LLaVA-1.5's for the benchmark)",
    )
    group.add_argument(
        "--max-new-tokens",
        type=int,
        default=32,
        metavar="N",
        help="longest answer (default: %(default)s)",
    )
    group.add_argument(
        "--without-images",
        action="store_true",
        help="show no images: what can be answered from the question alone",
    )
    add_backend_options(group)


def _add_pruning(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pruning")
    group.add_argument(
        "--select",
        choices=_RULES,
        default=_RULES[0],
        help="prune by another rule than the bundle's own, to compare; last_row is FastV's",
    )
    group.add_argument(
        "--keep",
        type=_counts,
        default=(),
        metavar="120,70,34",
        help="how many tokens of an image such a rule keeps at each pruning point",
    )


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        message = f"{text!r} is not a list of token counts such as 120,70,34"
        raise argparse.ArgumentTypeError(message) from error


def _compare_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="atp-eval compare",
        description="Compare runs on the same questions: score by kind, tokens kept, and the "
        "paired difference from the first, with its 95 % interval.",
    )
    parser.add_argument(
        "reports", type=Path, nargs="+", metavar="REPORT", help="report.json, or its directory"
    )
    add_output_options(parser)
    return parser


def _policies_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="atp-eval compare",
        description="Compare pruning policies of one checkpoint on one machine: export it with "
        "each, ask all the same questions, time answers of all by turns.",
        epilog="Bundles and answers stay in the output directory; run again, it goes on there.",
    )
    parser.add_argument("checkpoint", type=Path, help="a Hugging Face LLaVA directory")
    parser.add_argument("data", type=Path, help="what atp-eval reads, with answers")
    parser.add_argument(
        "--policies",
        nargs="+",
        required=True,
        metavar="POLICY",
        help="dense, atp (the checkpoint's modules), or a policy with settings, such as "
        "fastv:layer=2:ratio=0.75; the others are compared with the first",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where all goes (default: policies-CHECKPOINT)"
    )
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp16")
    parser.add_argument("--limit", type=int, metavar="N", help="ask a random sample of N questions")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of that sample")
    parser.add_argument("--max-new-tokens", type=int, default=32, metavar="N")
    group = parser.add_argument_group("times")
    group.add_argument(
        "--timed",
        type=int,
        default=10,
        metavar="N",
        help="questions that are timed in each round (default: %(default)s)",
    )
    group.add_argument(
        "--rounds",
        type=int,
        default=2,
        metavar="N",
        help="how often each bundle has its turn (default: %(default)s)",
    )
    group.add_argument(
        "--new-tokens",
        type=int,
        default=16,
        metavar="N",
        help="length of each timed answer (default: %(default)s)",
    )
    add_backend_options(parser)
    add_output_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())

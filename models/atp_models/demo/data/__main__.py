"""`python -m atp_models.demo.data SET OUT_DIR`: write one of the demo's data sets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atp_models.demo.command import Report, add_cache_option, add_output_options, run_command
from atp_models.demo.data.sets import SETS, write_data_set


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(arguments)

    def write(report: Report) -> tuple[dict[str, Any], str]:
        card = write_data_set(
            options.set,
            options.out_dir,
            scenes=options.scenes,
            questions=options.questions,
            cache_dir=options.cache,
            report=report,
        )
        kinds = ", ".join(f"{number} {kind}" for kind, number in card["questions"].items())
        text = f"data set: {options.out_dir}\n{card['images']} images; questions: {kinds}"
        return {"data_set": str(options.out_dir), "card": card}, text

    return run_command(options, write)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m atp_models.demo.data",
        description="Write images and questions in LLaVA's conversation format.",
    )
    parser.add_argument("set", choices=SETS, metavar="SET", help=f"one of {', '.join(SETS)}")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="directory to make")
    for name, what in (("scenes", "scenes (easy-VQA: images)"), ("questions", "questions")):
        parser.add_argument(
            f"--{name}",
            type=_positive,
            metavar="N",
            help=f"how many {what} (default: the set's own number)",
        )
    add_cache_option(parser)
    add_output_options(parser)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())

"""`python -m atp_models.demo OUT_DIR`: make the demo checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atp_models.demo import build_demo_checkpoint
from atp_models.demo.command import Report, add_cache_option, add_output_options, run_command
from atp_models.demo.recipe import read_card


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(arguments)

    def build(report: Report) -> tuple[dict[str, Any], str]:
        build_demo_checkpoint(options.out_dir, cache_dir=options.cache, report=report)
        card = read_card(options.out_dir) or {}
        document = {"checkpoint": str(options.out_dir), "card": card}
        return document, f"checkpoint: {options.out_dir}\n{card['notice']}"

    return run_command(options, build)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m atp_models.demo",
        description="Make a small real LLaVA checkpoint of pretrained parts, and of what was "
        "trained to join them if this package holds it.",
    )
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="directory to make")
    add_cache_option(parser)
    add_output_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())

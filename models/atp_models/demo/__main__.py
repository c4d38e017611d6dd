"""`python -m atp_models.demo OUT_DIR`: make the demo checkpoint."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from atp_models.demo import build_demo_checkpoint, default_cache_dir
from atp_models.demo.recipe import read_card
from atp_runtime.errors import AtpError

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        build_demo_checkpoint(
            options.out_dir,
            cache_dir=options.cache,
            report=_silent if options.quiet else _to_stderr,
        )
    except AtpError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: no checkpoint was written", file=sys.stderr)
        return _INTERRUPTED
    card = read_card(options.out_dir) or {}
    if options.json:
        print(json.dumps({"checkpoint": str(options.out_dir), "card": card}, indent=2))
    elif not options.quiet:
        print(f"checkpoint: {options.out_dir}\n{card['notice']}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m atp_models.demo",
        description="Make a small real LLaVA checkpoint of pretrained parts; the projector "
        "between them is untrained.",
    )
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="directory to make")
    parser.add_argument(
        "--cache",
        type=Path,
        default=default_cache_dir(),
        metavar="DIR",
        help="where downloaded packages are kept (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document on standard output"
    )
    return parser


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    del line


if __name__ == "__main__":
    sys.exit(main())

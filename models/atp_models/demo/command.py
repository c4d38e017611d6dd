"""What the demo's commands share: options, progress, and how failures end."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atp_models.demo.parts import default_cache_dir
from atp_runtime.errors import AtpError

Report = Callable[[str], None]
_INTERRUPTED = 130


def add_cache_option(parser: argparse.ArgumentParser) -> None:
    """Add `--cache`."""
    parser.add_argument(
        "--cache",
        type=Path,
        default=default_cache_dir(),
        metavar="DIR",
        help="where downloaded packages are kept (default: %(default)s)",
    )


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add `--quiet` and `--json`."""
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document on standard output"
    )


def run_command(
    options: argparse.Namespace, work: Callable[[Report], tuple[dict[str, Any], str]]
) -> int:
    """Do the work of a command, print what it made, and return the exit code.

    Args:
        options: With those of `add_output_options`.
        work: Takes what to call with each line of progress; returns what was made, as a JSON
            document and as text for people.
    """
    try:
        document, text = work(_silent if options.quiet else _to_stderr)
    except AtpError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: nothing half written is left", file=sys.stderr)
        return _INTERRUPTED
    if options.json:
        print(json.dumps(document, indent=2))
    elif not options.quiet:
        print(text)
    return 0


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    del line

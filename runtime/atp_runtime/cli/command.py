"""What every command shares: exit codes, error messages, `--json` and `--quiet`.

Exit codes: 0 done, 1 a check failed, 2 wrong input, 3 the machine lacks something,
130 interrupted with Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from atp_runtime.errors import AtpError, MachineError

INTERRUPTED = 130


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--json` and `--quiet`."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document on standard output"
    )
    parser.add_argument("--quiet", action="store_true", help="print results and errors only")


def run_command(name: str, work: Callable[[], int], *, as_json: bool) -> int:
    """Runs a command's work and turns every foreseeable failure into a message and a code.

    Args:
        name: The command's name, for the message.
        work: Returns the exit code.
        as_json: Print errors as a JSON document on standard output.
    """
    try:
        return work()
    except AtpError as error:
        return _fail(name, error, as_json=as_json)
    except KeyboardInterrupt:
        message = f"{name}: interrupted; what was finished is kept, run again to go on"
        print(f"\n{message}", file=sys.stderr)
        return INTERRUPTED
    except MemoryError:
        return _fail(name, out_of_memory(), as_json=as_json)
    except BrokenPipeError:
        # The reader of our output went away; keep Python from complaining again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(name, _from_os_error(error), as_json=as_json)


def print_json(document: Any) -> None:
    """Prints the command's one JSON document."""
    print(json.dumps(document, indent=2))


def out_of_memory() -> MachineError:
    """The message for an allocation that failed."""
    return MachineError(
        "out of memory",
        why="the work needs more than this machine has free.",
        fix="close other programs or add swap; atp-export --dry-run predicts what is needed.",
    )


def _from_os_error(error: OSError) -> MachineError:
    where = error.filename or "a file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError(
            f"{where}: the disk is full",
            why="what was finished is kept, what was being written is not.",
            fix="free space and run the same command again; it resumes.",
        )
    return MachineError(
        f"{where}: {error.strerror or error}",
        why="the operating system refused it.",
        fix="check that the path exists and that you may read and write it.",
    )


def _fail(name: str, error: AtpError, *, as_json: bool) -> int:
    if as_json:
        parts = {"what": error.what, "why": error.why, "fix": error.fix}
        print_json({"error": {**parts, "exit_code": error.exit_code}})
    print(f"{name}: {error}", file=sys.stderr)
    return error.exit_code

"""What every command shares: exit codes, error messages, `--json` and `--quiet`.

Exit codes: 0 done, 1 a check failed, 2 wrong input, 3 the machine lacks something,
130 interrupted with Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from atp_runtime.errors import AtpError, InputError, MachineError


class InterruptedWorkError(AtpError):
    """The user pressed Ctrl-C (exit code 130, as shells have it)."""

    exit_code = 130


class CommandParser(argparse.ArgumentParser):
    """Complains by raising `InputError`, so that `--json` covers wrong options, too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raises the error.

        Raises:
            InputError: Always.
        """
        raise InputError(
            message,
            why="the command line cannot be understood.",
            fix=f"see {self.prog} --help.",
        )


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--json` and `--quiet`."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document on standard output"
    )
    parser.add_argument("--quiet", action="store_true", help="print results and errors only")


def wants_json(words: Sequence[str]) -> bool:
    """Whether `--json` is among the words of a command line that is not parsed yet."""
    return "--json" in words


def run_command(
    name: str,
    work: Callable[[], int],
    *,
    as_json: bool,
    if_interrupted: str = "run the same command again; what was finished is kept.",
) -> int:
    """Runs a command's work and turns every foreseeable failure into a message and a code.

    Args:
        name: The command's name, for the message.
        work: Returns the exit code.
        as_json: Print errors as a JSON document on standard output.
        if_interrupted: What to do after Ctrl-C.
    """
    # An answer may have characters that the terminal's encoding lacks.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    code = None
    try:
        code = _exit_code(name, work, as_json=as_json, if_interrupted=if_interrupted)
        if sys.stdout:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
    except OSError as error:
        _discard_output()
        if code is None or code == 0:
            code = print_error(name, _from_os_error(error, "standard output"))
    return code or 0


def print_json(document: Any) -> None:
    """Prints the command's one JSON document."""
    print(json.dumps(document, indent=2))


def print_note(text: str) -> None:
    """Prints a line on standard error."""
    if sys.stderr:  # None where it was closed, which would send the text to standard output
        print(text, file=sys.stderr, flush=True)


def print_error(name: str, error: AtpError) -> int:
    """Prints an error on standard error; returns its exit code."""
    print_note(f"{name}: {error}")
    return error.exit_code


def error_document(error: AtpError) -> dict[str, Any]:
    """An error as a part of a JSON document."""
    return {
        "what": error.what,
        "why": error.why,
        "fix": error.fix,
        "exit_code": error.exit_code,
    }


def out_of_memory() -> MachineError:
    """The message for an allocation that failed."""
    return MachineError(
        "out of memory",
        why="the work needs more than this machine has free.",
        fix="close other programs or add swap; atp-export --dry-run predicts what is needed.",
    )


def _exit_code(name: str, work: Callable[[], int], *, as_json: bool, if_interrupted: str) -> int:
    try:
        return work()
    except AtpError as raised:
        error = raised
    except KeyboardInterrupt:
        print_note("")  # behind the ^C of the terminal
        error = InterruptedWorkError(
            "interrupted", why="Ctrl-C ended the work.", fix=if_interrupted
        )
    except MemoryError:
        error = out_of_memory()
    except ModuleNotFoundError as raised:
        error = _missing_package(name, raised)
    except BrokenPipeError:
        raise
    except OSError as raised:
        error = _from_os_error(raised, "output")
    if as_json:
        print_json({"error": error_document(error)})
    return print_error(name, error)


def _missing_package(name: str, error: ModuleNotFoundError) -> MachineError:
    package = (error.name or "").partition(".")[0]
    if not package or package.startswith("atp_"):
        raise error  # one of our own modules is a defect
    return MachineError(
        f"the Python package {package} is not installed",
        why=f"{name} needs it.",
        fix="python -m pip install 'atp-llava[export]'; without [export] for atp-run alone.",
    )


def _from_os_error(error: OSError, unnamed: str) -> MachineError:
    where = error.filename or unnamed
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError(
            f"{where}: the disk is full",
            why="what was finished is kept, what was being written is not.",
            fix="free space and run the same command again.",
        )
    return MachineError(
        f"{where}: {error.strerror or error}",
        why="the operating system refused it.",
        fix="check that the path exists and that you may read and write it.",
    )


def _discard_output() -> None:
    """Lets Python's own flush at exit succeed, where nobody reads standard output any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

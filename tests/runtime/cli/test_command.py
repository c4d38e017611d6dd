import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

import pytest

from atp_runtime.cli.command import (
    CommandParser,
    add_output_options,
    error_document,
    print_json,
    print_note,
    run_command,
    wants_json,
)
from atp_runtime.errors import CheckFailedError, InputError, MachineError

FAILURES = [
    (CheckFailedError("parity", why="it differs.", fix="export again."), 1, "parity"),
    (InputError("no photo", why="it is missing.", fix="add one."), 2, "no photo"),
    (MachineError("no GPU", why="it is needed.", fix="buy one."), 3, "no GPU"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (MemoryError(), 3, "out of memory"),
    (ModuleNotFoundError("No module", name="torch.nn"), 3, "the Python package torch is not"),
    (OSError(errno.ENOSPC, "No space left", "/somewhere/file"), 3, "/somewhere/file: the disk is"),
    (OSError(errno.EIO, "I/O error", "/somewhere/file"), 3, "/somewhere/file: I/O error"),
]


def failing(error: BaseException) -> Callable[[], int]:
    def work() -> NoReturn:
        raise error

    return work


@pytest.mark.parametrize(("error", "code", "said"), FAILURES, ids=lambda it: str(it)[:12])
def test_failure_is_told_in_three_parts_on_standard_error(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("atp-x", failing(error), as_json=False) == code
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert captured.out == ""
    assert lines[0].startswith(f"atp-x: {said}")
    assert [line.split(":")[0] for line in lines[1:]] == ["  why", "  fix"]


@pytest.mark.parametrize(("error", "code", "said"), FAILURES, ids=lambda it: str(it)[:12])
def test_failure_is_one_document_on_standard_output_when_json_is_wanted(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("atp-x", failing(error), as_json=True) == code
    document = json.loads(capsys.readouterr().out)["error"]
    assert document["what"].startswith(said)
    assert document["exit_code"] == code
    assert set(document) == {"what", "why", "fix", "exit_code"}


def test_advice_is_the_commands_own_when_it_is_interrupted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = failing(KeyboardInterrupt())
    run_command("atp-x", work, as_json=False, if_interrupted="ask again.")
    assert "fix: ask again." in capsys.readouterr().err


def test_code_is_that_of_the_work_when_it_ends_by_itself() -> None:
    assert run_command("atp-x", lambda: 1, as_json=False) == 1


@pytest.mark.parametrize(
    "defect", [ZeroDivisionError(), ModuleNotFoundError("No module", name="atp_runtime.x")]
)
def test_defects_of_ours_are_not_hidden(defect: Exception) -> None:
    with pytest.raises(type(defect)):
        run_command("atp-x", failing(defect), as_json=False)


def test_document_of_an_error_has_all_it_says() -> None:
    document = error_document(MachineError("a", why="b", fix="c"))
    assert document == {"what": "a", "why": "b", "fix": "c", "exit_code": 3}


def test_parser_complains_like_everything_else_when_an_option_is_unknown() -> None:
    parser = CommandParser(prog="atp-x")
    add_output_options(parser)
    with pytest.raises(InputError, match=r"unrecognized arguments: --jsonn\n.*\n.*atp-x --help"):
        parser.parse_args(["--jsonn"])


def test_options_are_written_out_when_json_must_be_seen_before_parsing() -> None:
    parser = CommandParser(prog="atp-x")
    add_output_options(parser)
    with pytest.raises(InputError, match="--js"):
        parser.parse_args(["--js"])
    assert wants_json(["--quiet", "--json"])
    assert not wants_json(["--quiet"])


def test_quiet_and_json_are_off_when_they_are_not_given() -> None:
    parser = CommandParser(prog="atp-x")
    add_output_options(parser)
    assert vars(parser.parse_args([])) == {"json": False, "quiet": False}


# What only a process of its own shows

PRINTS = """
import sys
from atp_runtime.cli.command import print_json, print_note, run_command
def work():
    {body}
    return 0
sys.exit(run_command("atp-x", work, as_json=False))
"""


def start(body: str, redirection: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(path for path in sys.path if path)
    command = f'"{sys.executable}" -c "$PROGRAM" {redirection}'
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        env={
            **os.environ,
            "PYTHONPATH": path,
            "PROGRAM": PRINTS.format(body=body),
            **environment,
        },
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("count", [1, 100_000])
def test_command_ends_quietly_when_the_reader_of_its_output_goes_away(count: int) -> None:
    body = f"[print('x' * 9, flush=True) for _ in range({count})]"
    run = start(body, "| head -c 1")
    assert (run.returncode, run.stdout, run.stderr) == (0, "x", "")


def test_document_ends_quietly_when_nobody_reads_it() -> None:
    run = start("print_json(list(range(9999)))", "| true")
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("body", ["print('x', flush=True)", "print_json({})"])
def test_full_disk_is_told_once_when_output_goes_there(body: str) -> None:
    run = start(body, "> /dev/full")
    assert run.returncode == 3
    assert run.stderr.count("the disk is full") == 1
    assert "Traceback" not in run.stderr
    assert "Exception" not in run.stderr


def test_character_is_replaced_when_the_terminal_has_no_such() -> None:
    run = start("print('caf\\u00e9 \\u732b')", "", PYTHONIOENCODING="ascii:strict")
    assert (run.returncode, run.stdout, run.stderr) == (0, "caf? ?\n", "")


def test_notes_do_not_slip_into_the_output_when_standard_error_is_closed() -> None:
    run = start("print_note('a note'); print('out')", "2>&-")
    assert (run.returncode, run.stdout) == (0, "out\n")


def test_json_is_ascii_whatever_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"answer": "猫\udcff"})
    assert capsys.readouterr().out.isascii()


def test_note_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    print_note("a note")
    assert capsys.readouterr() == ("", "a note\n")

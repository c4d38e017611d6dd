"""The command line, whatever the command: help, errors, and what goes where."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.export.command_line import Run

from atp_export.cli import main


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from atp_export.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'onnx', 'rich', 'transformers'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", script], check=False, capture_output=True, text=True
        )
        seconds.append(time.perf_counter() - begin)
        assert done.returncode == 0, done.stderr
        assert "Exit codes: 0 done" in done.stdout
    assert min(seconds) < 0.5


@pytest.mark.parametrize("command", ["inspect", "verify", "check", "engines", "doctor"])
def test_every_command_has_its_own_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: atp-export {command}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["--json"], ["inspect"], ["verify", "--quiet"]])
def test_missing_arguments_are_refused(run: Run, words: list[str]) -> None:
    output = run(*words)
    assert output.code == 2
    assert "required" in output.err


def test_an_error_is_one_json_document_when_json_is_asked_for(
    run: Run, checkpoint: Path, tmp_path: Path
) -> None:
    for words in (["--prune-at", "99"], ["--frobnicate"]):
        output = run(checkpoint, tmp_path / "bundle", "--json", *words)
        assert output.code == 2
        assert output.document["error"].keys() == {"what", "why", "fix", "exit_code"}
        assert output.document["error"]["exit_code"] == 2


def test_quiet_leaves_both_outputs_empty(run: Run, tiny: Any) -> None:
    output = run("verify", tiny.bundle, "--quiet")
    assert (output.code, output.out, output.err) == (0, "", "")


def test_progress_goes_to_standard_error_and_results_to_standard_output(
    run: Run, tiny: Any
) -> None:
    output = run("verify", tiny.bundle)
    assert "hashes: " in output.err
    assert "✓ hashes" in output.out
    assert "✓" not in output.err

import json
import subprocess
import sys
from pathlib import Path

import pytest

from atp_models.demo import __main__ as command
from atp_models.demo.deltas import save_deltas
from atp_models.demo.recipe import TRAINED_NOTICE, UNTRAINED_NOTICE


@pytest.fixture
def tiny_demo(tiny_parts, monkeypatch: pytest.MonkeyPatch):
    """The command, with tiny parts in the place of the real ones."""
    monkeypatch.setattr("atp_models.demo.build.DEMO", tiny_parts.recipe)
    return tiny_parts


def run(parts, out: Path, *options: str) -> int:
    return command.main([str(out), "--cache", str(parts.cache_dir), *options])


def test_command_builds_and_says_plainly_what_is_untrained(
    tiny_demo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_demo, tmp_path / "out") == 0
    printed = capsys.readouterr()
    assert printed.out == f"checkpoint: {tmp_path / 'out'}\n{UNTRAINED_NOTICE}\n"
    assert len(printed.err.splitlines()) >= 4


def test_command_prints_one_json_document_when_asked(
    tiny_demo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_demo, tmp_path / "out", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["checkpoint"] == str(tmp_path / "out")
    assert document["card"]["trained"]["projector"] is False


def test_command_says_plainly_what_was_trained(
    tiny_demo, trained, training, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_deltas(tiny_demo.recipe.deltas, trained, training)
    assert run(tiny_demo, tmp_path / "out") == 0
    assert capsys.readouterr().out == f"checkpoint: {tmp_path / 'out'}\n{TRAINED_NOTICE}\n"


def test_command_prints_nothing_when_quiet(
    tiny_demo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_demo, tmp_path / "out", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_command_exits_2_with_a_reason_and_a_fix_when_the_place_is_taken(
    tiny_demo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").touch()
    assert run(tiny_demo, tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "why:" in printed.err
    assert "fix:" in printed.err


def test_command_exits_1_when_a_hash_is_wrong(tiny_demo, tmp_path: Path) -> None:
    (tiny_demo.cache_dir / tiny_demo.recipe.language_model.archive).write_bytes(b"not a wheel")
    assert run(tiny_demo, tmp_path / "out") == 1
    assert not (tmp_path / "out").exists()


def test_help_comes_without_loading_torch() -> None:
    script = (
        "import runpy, sys\n"
        "sys.argv = ['demo', '--help']\n"
        "try:\n    runpy.run_module('atp_models.demo', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "OUT_DIR" in done.stdout

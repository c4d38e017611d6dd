import json
import subprocess
import sys
from pathlib import Path

import pytest

from atp_models.demo.data import __main__ as command


def run(cache: Path, *words: str) -> int:
    return command.main([*words, "--cache", str(cache)])


def test_command_writes_a_set_and_says_what_is_in_it(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cache, "easy-vqa-test", str(tmp_path / "out")) == 0
    printed = capsys.readouterr()
    assert printed.out == (
        f"data set: {tmp_path / 'out'}\n3 images; questions: 1 colour, 2 shape, 2 yes/no\n"
    )
    assert printed.err.splitlines()[-1] == f"{tmp_path / 'out'} is complete"


def test_command_takes_sizes_and_prints_one_json_document_when_asked(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["easy-vqa-test", str(tmp_path / "out"), "--scenes", "1", "--questions", "2", "--json"]
    assert run(cache, *words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["card"]["images"] == 1
    assert sum(document["card"]["questions"].values()) == 2


def test_command_exits_2_when_the_images_do_not_give_so_many_questions(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cache, "easy-vqa-test", str(tmp_path / "out"), "--questions", "6") == 2
    assert "fix:" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["no-such-set", "out"], ["easy-vqa-test", "out", "--scenes=0"]])
def test_command_refuses_what_it_cannot_understand(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, *words)
    assert ended.value.code == 2


def test_command_exits_130_when_interrupted(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args, **kwargs) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("atp_models.demo.data.sets.write_samples", interrupt)
    assert run(cache, "easy-vqa-test", str(tmp_path / "out")) == 130
    assert not (tmp_path / "out").exists()
    assert "interrupted" in capsys.readouterr().err


def test_help_comes_without_loading_torch_and_names_the_sets() -> None:
    script = (
        "import runpy, sys\n"
        "sys.argv = ['data', '--help']\n"
        "try:\n    runpy.run_module('atp_models.demo.data', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "easy-vqa-train" in done.stdout

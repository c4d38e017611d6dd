"""`atp-train` as a command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.models.training.conftest import MakeCheckpoint, write_conversations

from atp_models.training.cli import main
from atp_models.training.cli_options import train_parser
from atp_models.training.options import DataOptions, TrainingOptions


def test_help_needs_no_heavy_package() -> None:
    code = (
        "import sys; from atp_models.training.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--target-tokens" in run.stdout
    assert "accelerate launch -m atp_models.training" in " ".join(run.stdout.split())


def test_defaults_of_the_command_are_those_of_the_options() -> None:
    parsed = vars(train_parser().parse_args(["checkpoint", "data", "out"]))
    for options in (TrainingOptions(), DataOptions(Path())):
        for name, value in vars(options).items():
            if name not in ("arguments", "file", "validation_file"):
                assert parsed[name] == value, name


@pytest.mark.parametrize(
    "words",
    [
        ["--batch-size", "0"],
        ["--validation", "1"],
        ["--prune-at", "4,x"],
        ["--learning-rate", "-1"],
        ["--lambda-target", "-0.1"],
        ["--mode", "some"],
        ["--batch-size", "many"],
    ],
)
def test_impossible_values_are_refused(words: list[str], capsys: pytest.CaptureFixture) -> None:  # type: ignore[type-arg]
    assert main(["checkpoint", "data", "out", *words]) == 2
    assert words[0] in capsys.readouterr().err


def test_a_run_prints_one_json_document(
    make_checkpoint: MakeCheckpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,  # type: ignore[type-arg]
) -> None:
    data = write_conversations(tmp_path / "data")
    (tmp_path / "arguments.yaml").write_text("weight_decay: 0.1\n")
    words = [str(make_checkpoint()), str(data), str(tmp_path / "out")]
    words += ["--target-tokens", "18", "--max-steps", "1", "--validation", "0.2", "--json"]
    words += ["--no-spatial", "--training-arguments", str(tmp_path / "arguments.yaml")]

    codes = [main(words), main(words)]

    captured = capsys.readouterr()
    assert codes == [0, 0]
    decoder = json.JSONDecoder()
    first, end = decoder.raw_decode(captured.out)
    second = json.loads(captured.out[end:])
    assert (first.pop("unchanged"), second.pop("unchanged")) == (False, True)
    assert first == second
    assert first["pruning"]["strides"] == []
    assert first["key"]["options"]["arguments"] == {"weight_decay": 0.1}
    assert first["command"].startswith("atp-train ")


def test_errors_tell_what_why_and_how_to_fix(
    make_checkpoint: MakeCheckpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,  # type: ignore[type-arg]
) -> None:
    data = write_conversations(tmp_path / "data", pictures=3)
    words = [str(make_checkpoint()), str(data), str(tmp_path / "out"), "--target-tokens", "2"]

    assert main(words) == 2

    error = capsys.readouterr().err
    assert "atp-train: an average of 2 visual tokens cannot be reached\n  why: " in error
    assert "--target-tokens 10 or more" in error
    assert [it.name for it in tmp_path.iterdir()] == ["data"]


def test_a_finished_run_says_so(
    make_checkpoint: MakeCheckpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,  # type: ignore[type-arg]
) -> None:
    data = write_conversations(tmp_path / "data", pictures=4)
    words = [str(make_checkpoint()), str(data), str(tmp_path / "out"), "--validation", "0"]
    words += ["--fit-thresholds", "--target-tokens", "20", "--samples", "2", "--quiet"]

    assert [main(words), main(words)] == [0, 0]

    lines = capsys.readouterr().out.splitlines()
    assert "written in" in lines[0]
    assert lines[1].endswith("already there, trained with the same data and options")

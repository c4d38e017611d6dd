"""`atp-profile`, and `atp-run --deadline` with what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atp_runtime.cli.profile import main as atp_profile
from atp_runtime.cli.run import main as atp_run
from atp_runtime.latency.table import read_table
from atp_runtime.manifest import read_manifest

QUICK = ("--threads", "1", "--runs", "2", "--tokens", "16,80")
ASKED = ("what is it", "--max-new-tokens", "2", "--threads", "1")


def test_the_table_lies_where_atp_run_looks_for_it(
    own_answering: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(own_answering)
    assert atp_profile([bundle, *QUICK, "--quiet"]) == 0
    assert "segment_0" in capsys.readouterr().out
    (path,) = (own_answering / "latency").iterdir()
    assert read_table(path, read_manifest(own_answering)).setting.threads == 1
    assert atp_run([bundle, *ASKED, "--image", str(photo), "--deadline", "100s"]) == 0
    told = capsys.readouterr().err
    assert "deadline 100000 ms met: first token after" in told
    assert "pruning as the bundle has it" in told


def test_a_deadline_that_cannot_be_met_is_said_and_answered_all_the_same(
    own_answering: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, table = str(own_answering), str(tmp_path / "table.json")
    assert atp_profile([bundle, *QUICK, "--json", "--output", table]) == 0
    assert json.loads(capsys.readouterr().out)["table"] == table
    asked = (*ASKED, "--image", str(photo), "--latency-table", table, "--deadline", "0.001ms")
    assert atp_run([bundle, *asked, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["deadline"] == {"seconds": 1e-6, "met": False}
    first, second = document["statistics"]["points"]
    assert (first["kept"], second["kept"]) == (1, 1)
    assert "tightened from 16 to 1 tokens, and still" in first["note"]


def test_without_a_table_a_deadline_is_refused_with_how_to_get_one(
    own_answering: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert atp_run([str(own_answering), *ASKED, "--deadline", "400ms"]) == 2
    assert "atp-profile" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [("--deadline", "400"), ("--deadline", "-1ms"), ("--latency-table", "x.json")]
)
def test_a_deadline_that_is_none_is_refused(
    answering: Path, words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert atp_run([str(answering), *ASKED, *words]) == 2
    assert words[0] in capsys.readouterr().err


def test_a_prediction_needs_no_device_and_counts_what_a_question_keeps(
    answering: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(answering)
    assert atp_profile([bundle, "--predict", "all"]) == 0
    told = capsys.readouterr().out
    assert "Jetson Orin Nano 8GB, Super mode" in told
    assert "no engine of this project has been timed" in told
    asked = ("--image", str(photo), "--prompt", "what is it", "--threads", "1")
    assert atp_profile([bundle, "--predict", "orin-nano-8gb", *asked, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["counts"]["pruned"]["kept"] == [16, 4]
    assert document["counts"]["dense"]["kept"] == [64, 64]
    dense, pruned = (document[mode][0]["first_token_seconds"] for mode in ("dense", "pruned"))
    assert pruned < dense


def test_a_measured_table_makes_a_device_of_one_s_own(
    own_answering: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, board = str(own_answering), str(tmp_path / "board.json")
    assert atp_profile([bundle, *QUICK, "--quiet"]) == 0
    (table,) = (own_answering / "latency").iterdir()
    words = ("fit", bundle, str(table), "--like", "orin-nano-8gb", "--output", board)
    assert atp_profile([*words, "--name", "my board"]) == 0
    assert "my board" in capsys.readouterr().out
    assert atp_profile([bundle, "--predict", board, "--keep", "16,4"]) == 0
    assert "my board" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--predict", "tx2"), "tx2"),
        (("--predict", "missing.json"), "missing.json"),
        (("--predict", "all", "--keep", "16"), "2 pruning points"),
        (("--predict", "all", "--keep", "16,17"), "2 pruning points"),
        (("--predict", "all", "--keep", "16,-1"), "2 pruning points"),
        (("--predict", "all", "--keep", "16,4", "--prompt", "what"), "--keep with"),
        (("--predict", "all", "--tokens", "16"), "--predict with"),
        (("--keep", "16,4"), "--keep without --predict"),
    ],
)
def test_a_prediction_that_is_none_is_refused(
    answering: Path, words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert atp_profile([str(answering), *words]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--like", "tx2", "--output", "a.json"), "tx2"),
        (("--like", "all", "--output", "a"), "a.json"),
    ],
)
def test_a_fit_that_is_none_is_refused(
    answering: Path, words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert atp_profile(["fit", str(answering), "no-table.json", *words]) == 2
    assert told in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_refused_before_measuring(
    answering: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "table.json"
    assert atp_profile([str(answering), *QUICK, "--output", str(output)]) == 2
    assert "cannot be written" in capsys.readouterr().err

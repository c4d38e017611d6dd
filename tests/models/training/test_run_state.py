"""Unfinished runs: resumed with the same key, refused with another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atp_models.training.run_state import RunState
from atp_runtime.errors import InputError

KEY = {"data": ["abc"], "options": {"mode": "lora", "layers": (1, 2)}}


def finish(out: Path, key: object = KEY) -> None:
    out.mkdir()
    (out / "training_report.json").write_text(json.dumps({"key": key}))


def add_checkpoint(state: RunState, step: int, *, whole: bool = True) -> None:
    directory = state.directory / f"checkpoint-{step}"
    directory.mkdir()
    if whole:
        (directory / "trainer_state.json").touch()


def begun(out: Path) -> RunState:
    """A run with a checkpoint."""
    state = RunState(out, KEY)
    state.begin()
    add_checkpoint(state, 1)
    return state


def test_a_run_is_gone_on_with_when_the_key_is_the_same(tmp_path: Path) -> None:
    begun(tmp_path / "out")
    RunState(tmp_path / "out", json.loads(json.dumps(KEY))).begin()
    assert (tmp_path / ".out.training").is_dir()


def test_another_key_is_refused_with_what_differs(tmp_path: Path) -> None:
    begun(tmp_path / "out")
    other = {"data": ["abc"], "options": {"mode": "full", "layers": (1, 2)}}

    with pytest.raises(InputError, match=r"\.out\.training belongs to another run") as refused:
        RunState(tmp_path / "out", other).begin()

    assert 'options.mode: it has "lora", now "full"' in refused.value.what
    assert "layers" not in refused.value.what


def test_another_key_takes_over_where_nothing_was_learnt_yet(tmp_path: Path) -> None:
    RunState(tmp_path / "out", KEY).begin()
    RunState(tmp_path / "out", {"data": ["xyz"]}).begin()
    written = json.loads((tmp_path / ".out.training/run.json").read_text())
    assert written == {"data": ["xyz"]}


def test_a_finished_run_is_known_by_its_report(tmp_path: Path) -> None:
    state = RunState(tmp_path / "out", KEY)
    assert not state.is_finished
    finish(tmp_path / "out")
    assert state.is_finished


def test_an_empty_directory_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert not RunState(tmp_path / "out", KEY).is_finished


def test_a_finished_run_of_another_key_is_refused(tmp_path: Path) -> None:
    finish(tmp_path / "out", {**KEY, "data": ["xyz"]})
    with pytest.raises(InputError, match='data: it has \\["xyz"\\]'):
        _ = RunState(tmp_path / "out", KEY).is_finished


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").touch()
    with pytest.raises(InputError, match="not written by atp-train"):
        _ = RunState(tmp_path / "out", KEY).is_finished


def test_the_newest_whole_checkpoint_is_the_last_one(tmp_path: Path) -> None:
    state = RunState(tmp_path / "out", KEY)
    state.begin()
    for step, whole in ((9, True), (10, True), (100, False)):
        add_checkpoint(state, step, whole=whole)
    last = state.last_checkpoint()
    assert last is not None
    assert last.name == "checkpoint-10"


def test_without_checkpoints_there_is_no_last_one_and_a_removed_state_is_gone(
    tmp_path: Path,
) -> None:
    state = RunState(tmp_path / "out", KEY)
    state.begin()
    assert state.last_checkpoint() is None
    state.remove()
    assert list(tmp_path.iterdir()) == []


def test_two_runs_do_not_work_on_one_directory(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        RunState(out, KEY).alone(),
        pytest.raises(InputError, match="another atp-train is at work"),
        RunState(out, KEY).alone(),
    ):
        pytest.fail("both are at work")
    with RunState(out, KEY).alone():
        add_checkpoint(RunState(out, KEY), 1)


def test_further_processes_of_a_run_are_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunState(tmp_path / "out", KEY).alone():
        monkeypatch.setenv("RANK", "1")
        with RunState(tmp_path / "out", KEY).alone():
            pass

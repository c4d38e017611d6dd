"""Ctrl-C: once to stop after the step, twice to stop at once."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests.models.training.conftest import Notes
from transformers import TrainerControl, TrainerState, TrainingArguments

from atp_models.training.stopping import StopOnInterrupt


def step_end(stop: StopOnInterrupt, directory: Path) -> TrainerControl:
    arguments = TrainingArguments(output_dir=str(directory), use_cpu=True)
    return stop.on_step_end(arguments, TrainerState(), TrainerControl())


def test_the_first_interrupt_asks_for_a_checkpoint_and_the_end(tmp_path: Path) -> None:
    notes = Notes()
    with StopOnInterrupt(notes) as stop:
        before = step_end(stop, tmp_path)
        signal.raise_signal(signal.SIGINT)
        after = step_end(stop, tmp_path)

    assert not before.should_save
    assert not before.should_training_stop
    assert after.should_save
    assert after.should_training_stop
    assert notes.lines == ["stopping after this step; press Ctrl-C again to stop at once"]


def press_twice() -> None:
    with StopOnInterrupt(Notes()):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_the_second_interrupt_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        press_twice()


def test_signals_are_handled_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopOnInterrupt(Notes()):
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before

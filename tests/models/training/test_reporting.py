"""The lines that a run tells."""

from __future__ import annotations

from tests.models.training.conftest import Notes
from transformers import TrainerControl, TrainerState, TrainingArguments

from atp_models.training.reporting import ProgressLines


def told(logs: dict[str, float], *, step: int = 10, first: bool = True) -> list[str]:
    notes = Notes()
    state = TrainerState(global_step=step, max_steps=10)
    state.is_world_process_zero = first
    ProgressLines(notes).on_log(
        TrainingArguments(output_dir="unused", use_cpu=True), state, TrainerControl(), logs=logs
    )
    return notes.lines


def test_training_tells_losses_kept_tokens_and_temperature() -> None:
    logs = {"loss": 1.25, "lm_loss": 1.0, "kept_0": 200.4, "kept_1": 99.0, "mean_tokens": 144.2}
    assert told({**logs, "temperature": 31.6}) == [
        "step 10/10  loss 1.2500  lm 1.0000  kept 200/99, mean 144  T 31.6"
    ]


def test_dense_training_tells_no_tokens() -> None:
    assert told({"loss": 1.25, "lm_loss": 1.25}) == ["step 10/10  loss 1.2500  lm 1.2500"]


def test_validation_tells_accuracy() -> None:
    logs = {"eval_answer_accuracy": 0.5, "eval_token_accuracy": 0.75, "eval_loss": 2.0}
    assert told({**logs, "eval_kept_0": 10.0, "eval_mean_tokens": 20.0}) == [
        "step 10/10  validation: answers 50.0%  tokens 75.0%  loss 2.0000  kept 10, mean 20"
    ]


def test_only_the_first_process_speaks_and_the_summary_is_left_to_the_report() -> None:
    assert told({"loss": 1.0}, first=False) == []
    assert told({"train_runtime": 1.0, "loss": 1.0}) == []


def test_the_time_left_is_told_while_there_is_some() -> None:
    (line,) = told({"loss": 1.0}, step=5)
    assert line.endswith(" s left")

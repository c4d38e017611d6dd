"""What is passed on to Transformers' trainer."""

from __future__ import annotations

from pathlib import Path

import pytest

from atp_models.training.arguments import read_arguments, training_arguments
from atp_models.training.options import TrainingOptions
from atp_runtime.errors import InputError


def test_options_and_passed_arguments_reach_the_trainer(tmp_path: Path) -> None:
    passed = {"weight_decay": 0.1, "save_steps": 7}
    options = TrainingOptions(batch_size=3, accumulate=5, seed=9, epochs=2.5, arguments=passed)

    found = training_arguments(options, tmp_path, evaluates=True)

    assert (found.per_device_train_batch_size, found.gradient_accumulation_steps) == (3, 5)
    assert (found.seed, found.num_train_epochs, found.max_steps) == (9, 2.5, -1)
    assert (found.weight_decay, found.save_steps) == (0.1, 7)
    assert found.eval_strategy == "steps"


def test_nothing_is_evaluated_without_validation(tmp_path: Path) -> None:
    assert training_arguments(TrainingOptions(), tmp_path, evaluates=False).eval_strategy == "no"


@pytest.mark.parametrize(
    ("passed", "complaint"),
    [
        ({"seed": 1}, "'seed' is set by atp-train itself"),
        ({"wieght_decay": 0.1}, "refuses the training arguments"),
        ({"lr_scheduler_type": "zigzag"}, "refuses the training arguments"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    tmp_path: Path, passed: dict[str, object], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        training_arguments(TrainingOptions(arguments=passed), tmp_path, evaluates=False)


@pytest.mark.parametrize("text", ['{"weight_decay": 0.1}', "weight_decay: 0.1\n"])
def test_arguments_are_read_from_json_and_yaml(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    assert read_arguments(tmp_path / "file") == {"weight_decay": 0.1}


@pytest.mark.parametrize("text", ["[1]", "a: [", ""])
def test_files_without_names_and_values_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(InputError):
        read_arguments(tmp_path / "file")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_arguments(tmp_path / "none")

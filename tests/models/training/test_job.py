"""Whole runs on tiny checkpoints: what is written, resumed and refused."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.training.conftest import MakeCheckpoint, Notes
from tests.models.training.jobs import TARGET, job_of, tensors

from atp_models.atp import AtpModules
from atp_models.pruning_config import read_pruning_config
from atp_models.training.job import TrainingJob, run_job
from atp_runtime.cli.command import InterruptedWorkError
from atp_runtime.errors import InputError


def assert_equal_bits(one: Path, other: Path) -> None:
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def at_step(number: int, action: Callable[[], None]) -> Callable[[str], None]:
    def heard(text: str) -> None:
        if text.startswith(f"step {number}/") and "validation" not in text:
            action()

    return heard


def interrupted_at(step: int) -> Notes:
    return Notes(at_step(step, lambda: signal.raise_signal(signal.SIGINT)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ({}, {"mode": "modules"}),
        ({}, {"mode": "lora", "accumulate": 2, "lora_rank": 2}),
        ({}, {"mode": "full", "max_steps": 8}),
        (
            {"pack": 2, "visual_tokens_stride": (1, 2)},
            {"mode": "lora", "dense": True, "batch_size": 2, "lora_rank": 2},
        ),
    ],
    ids=["modules", "lora", "full", "dense"],
)
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bits(
    make_checkpoint: MakeCheckpoint,
    data: Path,
    tmp_path: Path,
    rows: dict[str, Any],
    options: dict[str, Any],
) -> None:
    def job(name: str) -> TrainingJob:
        return job_of(make_checkpoint(), data, tmp_path / name, rows=rows, **options)

    run_job(job("straight"), Notes())
    with pytest.raises(InterruptedWorkError, match="stopped at step"):
        run_job(job("stopped"), interrupted_at(1))
    assert not (tmp_path / "stopped").exists()
    notes = Notes()
    run_job(job("stopped"), notes)

    assert any(line.startswith("resumed at step") for line in notes.lines)
    assert_equal_bits(tmp_path / "straight", tmp_path / "stopped")
    assert sorted(it.name for it in tmp_path.iterdir()) == ["data", "stopped", "straight"]
    steps = [
        [line["step"] for line in json.loads(report.read_text())["history"] if "loss" in line]
        for report in tmp_path.glob("*/training_report.json")
    ]
    assert steps[0] == steps[1]


def test_modules_alone_leave_the_weights_the_same_file(
    make_checkpoint: MakeCheckpoint, data: Path, tmp_path: Path
) -> None:
    result = run_job(job_of(make_checkpoint(), data, tmp_path / "out", max_steps=2), Notes())

    out = tmp_path / "out"
    assert (out / "model.safetensors").samefile(make_checkpoint() / "model.safetensors")
    config = read_pruning_config(out)
    assert config is not None
    assert (config.layers, config.target_tokens, config.min_keep) == ((1, 3, 5), TARGET, 4)
    trained = AtpModules.load(out / "atp_modules.safetensors", config).state_dict()
    begun = AtpModules(config).initialise().state_dict()
    assert any(not torch.equal(trained[name], begun[name]) for name in begun)
    report = result.report
    assert report == json.loads((out / "training_report.json").read_text())
    assert report["records"]["train"] + report["records"]["validation"] == 24
    assert set(report["scores"]) == {"dense", "pruned"}
    assert set(report["scores"]["pruned"]["kinds"]) == {"colour", "exist"}
    assert report["scores"]["dense"]["mean_tokens"] == 36


def test_cached_features_serve_training(
    make_checkpoint: MakeCheckpoint, data: Path, tmp_path: Path
) -> None:
    rows = {"cache_features": tmp_path / "cache"}
    job = job_of(make_checkpoint(), data, tmp_path / "out", rows=rows, max_steps=1)
    notes = Notes()

    run_job(job, notes)

    assert "vision features: 12" in notes.lines
    assert len(list((tmp_path / "cache").glob("features-*.f16"))) == 1


def test_a_finished_run_is_not_done_again_and_another_one_is_refused(
    make_checkpoint: MakeCheckpoint, data: Path, tmp_path: Path
) -> None:
    job = job_of(make_checkpoint(), data, tmp_path / "out", max_steps=1)
    first = run_job(job, Notes())
    again = run_job(job, Notes())

    assert (first.unchanged, again.unchanged) == (False, True)
    assert again.report == first.report
    with pytest.raises(InputError, match=r"options\.seed: it has 0, now 1"):
        run_job(job_of(make_checkpoint(), data, tmp_path / "out", max_steps=1, seed=1), Notes())


def test_a_configuration_of_the_checkpoint_goes_on_and_its_modules_too(
    make_checkpoint: MakeCheckpoint, data: Path, tmp_path: Path
) -> None:
    first = job_of(
        make_checkpoint(), data, tmp_path / "first", pruning={"layers": (2, 4)}, max_steps=1
    )
    run_job(first, Notes())
    second = job_of(
        tmp_path / "first",
        data,
        tmp_path / "second",
        pruning={"target_tokens": None},
        max_steps=1,
        modules_learning_rate=1e-12,
    )
    run_job(second, Notes())

    configs = [read_pruning_config(tmp_path / name) for name in ("first", "second")]
    assert configs[0] == configs[1]
    assert configs[0] is not None
    modules = [
        AtpModules.load(tmp_path / name / "atp_modules.safetensors", configs[0]).state_dict()
        for name in ("first", "second")
    ]
    for name, value in modules[0].items():
        torch.testing.assert_close(modules[1][name], value)


@pytest.mark.parametrize(
    ("rows", "options", "complaint"),
    [
        ({}, {"dense": True}, "--mode must be"),
        ({"pack": 2}, {"fit_thresholds": True}, "no --pack"),
        ({}, {"keep": (9, 6, 4)}, "so it needs that"),
        ({}, {"fit_thresholds": True, "keep": (9, 6, 4)}, "has its own mean"),
        ({}, {"freeze_modules": True, "mode": "projector"}, "must be lora or full"),
        ({}, {"freeze_modules": True, "dense": True, "mode": "lora"}, "no modules to freeze"),
        ({}, {"freeze_modules": True, "mode": "lora"}, "has no ATP modules"),
        ({}, {"unpruned": 0.5, "mode": "lora"}, "--unpruned is for --freeze-modules"),
        ({"visual_tokens_stride": (2,)}, {"fit_thresholds": True}, "no --visual-tokens-stride"),
        ({}, {"fit_thresholds": True, "mode": "full"}, "--fit-thresholds"),
        ({}, {"fit_thresholds": True, "dense": True, "mode": "lora"}, "no thresholds"),
        ({"validation": 0.999999}, {}, "kept for validation"),
    ],
)
def test_options_that_contradict_are_refused_before_any_work(
    make_checkpoint: MakeCheckpoint,
    data: Path,
    tmp_path: Path,
    rows: dict[str, Any],
    options: dict[str, Any],
    complaint: str,
) -> None:
    with pytest.raises(InputError, match=complaint):
        run_job(job_of(make_checkpoint(), data, tmp_path / "out", rows=rows, **options), Notes())
    assert [it.name for it in tmp_path.iterdir()] == ["data"]


def test_the_exporter_takes_a_trained_checkpoint(
    make_checkpoint: MakeCheckpoint, data: Path, tmp_path: Path
) -> None:
    from atp_export.job import ExportOptions, prepare_job  # noqa: PLC0415

    run_job(job_of(make_checkpoint(), data, tmp_path / "out", mode="lora", max_steps=1), Notes())

    options = {"precision": "fp32", "dialect": "portable", "prune_at": None, "dense": False}
    job = prepare_job(tmp_path / "out", tmp_path / "bundle", ExportOptions(**options))

    assert job.notice is None
    assert len(job.plan.segments) == 4

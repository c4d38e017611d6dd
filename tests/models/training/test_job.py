"""Whole runs on tiny checkpoints: what is learnt, resumed and written."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.training.conftest import MakeCheckpoint, Notes, write_conversations

from atp_models.atp import AtpModules
from atp_models.checkpoint import Checkpoint
from atp_models.pruning_config import read_pruning_config
from atp_models.reference import LlavaReference
from atp_models.training.job import TrainingJob, run_job
from atp_models.training.options import DataOptions, PruningOptions, TrainingOptions
from atp_runtime.cli.command import InterruptedWorkError
from atp_runtime.errors import CheckFailedError, InputError

TARGET = 18


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_conversations(tmp_path / "data")


def job_of(
    checkpoint: Path,
    data: Path,
    out: Path,
    *,
    rows: dict[str, Any] | None = None,
    pruning: dict[str, Any] | None = None,
    **options: Any,
) -> TrainingJob:
    chosen = {"max_steps": 4, "batch_size": 4, **options}
    return TrainingJob(
        checkpoint,
        out,
        DataOptions(data, **{"validation": 0.2, **(rows or {})}),
        PruningOptions(**{"target_tokens": TARGET, **(pruning or {})}),
        TrainingOptions(**chosen),
    )


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint.open(directory)
    found = {name: checkpoint.read(name) for name in checkpoint.tensors}
    config = read_pruning_config(directory)
    if config is not None:
        found |= AtpModules.load(directory / "atp_modules.safetensors", config).state_dict()
    return found


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


def test_a_plan_for_each_point_is_fitted_and_gives_the_target(
    make_checkpoint: MakeCheckpoint, data: Path, tmp_path: Path
) -> None:
    job = job_of(
        make_checkpoint(),
        data,
        tmp_path / "out",
        pruning={"target_tokens": None},
        fit_thresholds=True,
        keep=(20, 12, 6),
        samples=6,
    )

    fit = run_job(job, Notes()).report["fit"]

    assert fit["plan"] == [20, 12, 6]
    assert fit["kept"] == pytest.approx(fit["plan"], abs=1)
    config = read_pruning_config(tmp_path / "out")
    assert config is not None
    # One layer with all 36 tokens, then two with 20, two with 12 and one with 6.
    assert config.target_tokens == round((36 + 2 * 20 + 2 * 12 + 6) / 6)


def test_frozen_modules_stay_while_the_decoder_learns_from_what_they_keep(
    make_checkpoint: MakeCheckpoint, data: Path, tmp_path: Path
) -> None:
    fitted = job_of(make_checkpoint(), data, tmp_path / "fitted", fit_thresholds=True, samples=4)
    run_job(fitted, Notes())
    job = job_of(
        tmp_path / "fitted",
        data,
        tmp_path / "out",
        rows={"validation": 0.0, "validation_file": data, "pack": 2},
        mode="lora",
        freeze_modules=True,
        learning_rate=1e-2,
        max_steps=30,
    )

    report = run_job(job, Notes()).report

    before, after = tensors(tmp_path / "fitted"), tensors(tmp_path / "out")
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed
    assert not any(name.startswith("points.") for name in changed)
    steps = [line for line in report["history"] if "lm_loss" in line]
    assert steps[-1]["lm_loss"] < steps[0]["lm_loss"] / 2
    assert all("temperature" not in line for line in steps)
    kept = [line["kept_0"] for line in steps]
    assert all(float(count * 8).is_integer() for count in kept), "tokens are dropped, not faded"


def test_a_share_of_the_batches_behind_frozen_modules_keeps_all_tokens(
    make_checkpoint: MakeCheckpoint, data: Path, tmp_path: Path
) -> None:
    fitted = job_of(make_checkpoint(), data, tmp_path / "fitted", fit_thresholds=True, samples=4)
    run_job(fitted, Notes())

    def kept(unpruned: float) -> list[float]:
        job = job_of(
            tmp_path / "fitted",
            data,
            tmp_path / f"out-{unpruned}",
            mode="lora",
            freeze_modules=True,
            unpruned=unpruned,
            batch_size=1,
            accumulate=4,
            max_steps=12,
        )
        history = run_job(job, Notes()).report["history"]
        return [line["kept_0"] for line in history if "kept_0" in line]

    all_pruned, half = kept(0.0), kept(0.5)
    assert all(count < 36 for count in [*all_pruned, *half]), "told of the pruned batches only"
    # A mean of four batches is a quarter's multiple; of two or three it need not be.
    assert all(float(count * 4).is_integer() for count in all_pruned)
    assert not all(float(count * 4).is_integer() for count in half)


@pytest.mark.slow
def test_modules_learn_to_keep_the_target(
    make_checkpoint: MakeCheckpoint, data: Path, tmp_path: Path
) -> None:
    pruning = {"target_tokens": 24, "lambda_target": 5.0}
    job = job_of(
        make_checkpoint(),
        data,
        tmp_path / "out",
        pruning=pruning,
        max_steps=60,
        modules_learning_rate=2e-2,
    )

    report = run_job(job, Notes()).report

    before = report["history"][0]["mean_tokens"]
    assert abs(before - 24) > 6
    assert report["scores"]["pruned"]["mean_tokens"] == pytest.approx(24, abs=3)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_answers_are_learnt_and_the_written_checkpoint_gives_them(
    make_checkpoint: MakeCheckpoint, data: Path, tmp_path: Path, mode: str
) -> None:
    job = job_of(
        make_checkpoint(),
        data,
        tmp_path / "out",
        rows={"validation": 0.0, "validation_file": data, "pack": 2},
        mode=mode,
        dense=True,
        learning_rate=1e-2,
        max_steps=60,
    )

    report = run_job(job, Notes()).report

    assert report["scores"]["dense"]["answer_accuracy"] > 0.9
    checked = job_of(
        tmp_path / "out",
        data,
        tmp_path / "checked",
        rows={"validation": 0.0, "validation_file": data},
        fit_thresholds=True,
        samples=2,
    )
    scores = run_job(checked, Notes()).report["scores"]
    assert scores["dense"]["answer_accuracy"] == report["scores"]["dense"]["answer_accuracy"]
    assert scores["dense"]["loss"] == pytest.approx(report["scores"]["dense"]["loss"], abs=1e-4)
    LlavaReference.load(tmp_path / "out")


def test_accumulated_batches_are_one_batch(
    make_checkpoint: MakeCheckpoint, data: Path, tmp_path: Path
) -> None:
    plain = {"optim": "sgd", "lr_scheduler_type": "constant", "warmup_steps": 0}
    for name, size, accumulate in (("one", 8, 1), ("two", 2, 4)):
        job = job_of(
            make_checkpoint(),
            data,
            tmp_path / name,
            rows={"validation": 0.0},
            mode="projector",
            dense=True,
            max_steps=2,
            batch_size=size,
            accumulate=accumulate,
            learning_rate=0.1,
            arguments=plain,
        )
        run_job(job, Notes())

    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    begun = tensors(make_checkpoint())
    moved = [name for name in one if not torch.equal(one[name], begun[name])]
    assert moved
    for name in moved:
        step = float((one[name] - begun[name]).abs().max())
        torch.testing.assert_close(two[name], one[name], atol=1e-3 * step, rtol=0)


def test_a_loss_that_is_not_finite_ends_the_run(
    make_checkpoint: MakeCheckpoint, data: Path, tmp_path: Path
) -> None:
    job = job_of(
        make_checkpoint(),
        data,
        tmp_path / "out",
        rows={"validation": 0.0},
        mode="projector",
        dense=True,
        learning_rate=1e30,
    )
    with pytest.raises(CheckFailedError, match="not finite at step"):
        run_job(job, Notes())
    assert not (tmp_path / "out").exists()


def test_temperature_rises_by_equal_factors_from_start_to_end(
    make_checkpoint: MakeCheckpoint, data: Path, tmp_path: Path
) -> None:
    job = job_of(
        make_checkpoint(),
        data,
        tmp_path / "out",
        rows={"validation": 0.0},
        pruning={"temperature_start": 5.0, "temperature_end": 80.0},
        max_steps=5,
    )

    report = run_job(job, Notes()).report

    told = [line["temperature"] for line in report["history"] if "loss" in line]
    assert told == pytest.approx([5, 10, 20, 40, 80])
    assert report["scores"] == {}


def test_thresholds_are_fitted_without_gradients(
    make_checkpoint: MakeCheckpoint, data: Path, tmp_path: Path
) -> None:
    job = job_of(make_checkpoint(), data, tmp_path / "out", fit_thresholds=True, samples=8)

    report = run_job(job, Notes()).report

    assert report["learnt"] is False
    assert "Nothing was learnt from answers" in report["notice"]
    assert report["fit"]["samples"] == 8
    assert report["scores"]["pruned"]["mean_tokens"] == pytest.approx(TARGET, abs=3)
    assert (tmp_path / "out/model.safetensors").samefile(make_checkpoint() / "model.safetensors")


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

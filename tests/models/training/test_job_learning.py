"""Whole runs on tiny checkpoints: what is fitted and learnt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.models.training.conftest import MakeCheckpoint, Notes
from tests.models.training.jobs import TARGET, job_of, tensors

from atp_models.pruning_config import read_pruning_config
from atp_models.reference import LlavaReference
from atp_models.training.job import run_job
from atp_runtime.errors import CheckFailedError


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

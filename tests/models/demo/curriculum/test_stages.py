"""Stages are runs of `atp-train` that its parser accepts, each on what it is to learn from."""

import json
from pathlib import Path

import pytest

from atp_models.demo.curriculum.course import RANK
from atp_models.demo.curriculum.methods import Cut, Dense, Dropped, Fit, Scorers, Soft
from atp_models.demo.curriculum.stages import EASY, SCENES, STAGES, Stage, write_stage_data
from atp_models.training.cli import _data, _pruning, _training
from atp_models.training.cli_options import train_parser
from atp_models.training.job import TrainingJob, _check

TRAINED = [stage for stage in STAGES if not isinstance(stage.method, Scorers | Cut)]


def job_of(stage: Stage, directory: Path) -> TrainingJob:
    parsed = train_parser().parse_args(
        stage.arguments(directory / "before", directory / "data.json", directory)
    )
    options = _training(parsed, {})
    return TrainingJob(parsed.checkpoint, parsed.out, _data(parsed), _pruning(parsed), options)


@pytest.mark.parametrize("stage", TRAINED, ids=lambda stage: stage.name)
def test_every_stage_is_a_job_that_atp_train_takes(stage: Stage, tmp_path: Path) -> None:
    job = job_of(stage, tmp_path)
    _check(job)
    assert job.out == tmp_path / stage.name
    assert job.options.seed == stage.seed
    if not isinstance(stage.method, Fit):
        assert job.options.max_steps == stage.steps
        assert job.options.batch_size * job.options.accumulate == stage.rows


def test_methods_are_what_they_are_called(tmp_path: Path) -> None:
    def job(method: Dense | Fit | Soft | Dropped) -> TrainingJob:
        return job_of(Stage("any", method, steps=3, rows=2), tmp_path)

    dense, soft, dropped = job(Dense(1e-3, (1, 2))), job(Soft(2e-4, 100)), job(Dropped(1e-4))
    assert dense.options.dense
    assert dense.data.visual_tokens_stride == (1, 2)
    assert not soft.options.dense
    assert not soft.options.freeze_modules
    assert soft.pruning.target_tokens == 100
    assert dropped.options.freeze_modules
    assert dropped.options.learning_rate == 1e-4
    assert job(Fit(target_tokens=90)).pruning.target_tokens == 90
    assert job(Fit(keep=(9, 8, 7))).options.keep == (9, 8, 7)


@pytest.mark.parametrize("method", [Scorers(1.0), Cut(4)])
def test_other_stages_are_no_runs_of_atp_train(tmp_path: Path, method: Scorers | Cut) -> None:
    stage = Stage("other", method, steps=1, rows=1)
    with pytest.raises(TypeError, match="no run of atp-train"):
        stage.arguments(tmp_path, tmp_path, tmp_path)


def test_stages_run_in_the_order_of_their_names() -> None:
    numbers = [int(stage.name.split("-")[0]) for stage in STAGES]
    assert numbers == list(range(1, len(STAGES) + 1))


def test_the_deltas_hold_the_cut_and_all_that_is_learnt_behind_it(tmp_path: Path) -> None:
    cut = max(at for at, stage in enumerate(STAGES) if isinstance(stage.method, Cut))
    jobs = [job_of(stage, tmp_path) for stage in STAGES[cut + 1 :]]
    rank = sum(job.options.lora_rank for job in jobs if job.options.mode == "lora")
    method = STAGES[cut].method
    assert isinstance(method, Cut)
    assert method.rank + rank <= RANK


def test_tokens_are_dropped_only_behind_thresholds() -> None:
    methods = [type(stage.method) for stage in STAGES]
    for at, method in enumerate(methods):
        if method in (Soft, Dropped):
            assert Fit in methods[:at]


@pytest.mark.parametrize(
    ("easy", "captions", "expected"),
    [(False, True, ["a", "d"]), (True, True, ["a", "d", "c"]), (False, False, ["a"])],
)
def test_a_stage_learns_from_scenes_of_its_size(
    tmp_path: Path, easy: bool, captions: bool, expected: list[str]
) -> None:
    records = {
        SCENES: [("a", 3, "what"), ("b", 4, "what"), ("d", 2, "describe")],
        EASY: [("c", 1, "shape")],
    }
    for name, held in records.items():
        (tmp_path / name).mkdir()
        content = [
            {"id": i, "image": f"images/{i}.png", "objects": n, "kind": kind} for i, n, kind in held
        ]
        (tmp_path / name / f"{name}.json").write_text(json.dumps(content))
    stage = Stage("few", Dense(1e-3), 1, 1, 3, easy_vqa=easy, captions=captions)
    written = json.loads(write_stage_data(stage, tmp_path).read_text())
    assert [record["id"] for record in written] == expected
    assert written[0]["image"] == f"{SCENES}/images/a.png"

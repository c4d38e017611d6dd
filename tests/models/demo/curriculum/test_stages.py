"""Stages are runs of `atp-train` that its parser accepts, each on what it is to learn from."""

import json
from pathlib import Path

import pytest

from atp_models.demo.curriculum.stages import (
    DENSE,
    EASY,
    PRUNED,
    SCENES,
    STAGES,
    Stage,
    write_stage_data,
)
from atp_models.training.cli_options import train_parser


@pytest.mark.parametrize("stage", [*DENSE, *PRUNED], ids=lambda stage: stage.name)
def test_every_stage_is_a_command_that_atp_train_understands(stage: Stage, tmp_path: Path) -> None:
    options = train_parser().parse_args(
        stage.arguments(tmp_path / "before", tmp_path / "data.json", tmp_path)
    )
    assert options.out == tmp_path / stage.name
    assert options.dense == (stage.target_tokens is None)
    assert options.visual_tokens_stride == stage.strides
    assert options.target_tokens == stage.target_tokens
    assert options.fit_thresholds == (stage.steps == 0)
    if stage.steps:
        assert options.max_steps == stage.steps
        assert options.learning_rate == stage.learning_rate
        assert options.batch_size * options.accumulate == stage.rows
    else:
        assert options.samples == stage.rows


def test_stages_prune_when_all_tokens_are_understood() -> None:
    assert all(stage.target_tokens is None for stage in DENSE)
    assert all(stage.target_tokens is not None for stage in PRUNED)


def test_stages_run_in_the_order_of_their_names() -> None:
    numbers = [int(stage.name.split("-")[0]) for stage in STAGES]
    assert numbers == list(range(1, len(STAGES) + 1))


@pytest.mark.parametrize(("easy", "expected"), [(False, ["a"]), (True, ["a", "c"])])
def test_a_stage_learns_from_scenes_of_its_size(
    tmp_path: Path, easy: bool, expected: list[str]
) -> None:
    records = {SCENES: [("a", 3), ("b", 4)], EASY: [("c", 1)]}
    for name, held in records.items():
        (tmp_path / name).mkdir()
        content = [{"id": i, "image": f"images/{i}.png", "objects": n} for i, n in held]
        (tmp_path / name / f"{name}.json").write_text(json.dumps(content))
    stage = Stage("few", 3, easy, steps=1, rows=1, learning_rate=1e-3)
    written = json.loads(write_stage_data(stage, tmp_path).read_text())
    assert [record["id"] for record in written] == expected
    assert written[0]["image"] == f"{SCENES}/images/a.png"

"""What structure a policy or a checkpoint's file chooses, and what it spares."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.export.command_line import Run

from atp_export.job import ExportJob
from atp_runtime.errors import InputError
from atp_runtime.structure import Structure

MakeJob = Callable[..., ExportJob]


def test_the_policy_gives_the_papers_structure_unless_told(make_job: MakeJob) -> None:
    plan = make_job(policy="yopo").plan

    assert plan.structure == Structure(window=5, ffn_ratio=2, cut_layer=2)
    assert [segment.pruning.rule for segment in plan.segments if segment.pruning] == ["keep_none"]
    never = make_job(policy="yopo", settings={"cut_layer": 4, "window": None}).plan
    assert never.structure == Structure(ffn_ratio=2)
    assert len(never.segments) == 1


def test_the_policy_takes_heads_from_a_file_beside_the_checkpoint(
    make_job: MakeJob, own_checkpoint: Path
) -> None:
    kept = np.ones((4, 4), dtype=bool)
    kept[1, :2] = False
    np.save(own_checkpoint / "heads.npy", kept)

    plan = make_job(own_checkpoint, policy="yopo", settings={"heads": "heads.npy"}).plan

    assert plan.structure is not None
    assert plan.structure.heads == ("1111", "0011", "1111", "1111")


def test_a_dry_run_prints_both_countings(own_checkpoint: Path, run: Run) -> None:
    words = ("--dry-run", "--policy", "yopo", "--set", "ffn_ratio=4")

    shown = run(own_checkpoint, own_checkpoint.parent / "bundle", *words)

    assert shown.code == 0
    lines = [line for line in shown.out.splitlines() if line.startswith("FLOPs")]
    # Half of the layers: 4 d^2 + 3 d m / 4 of 4 d^2 + 3 d m, and 25 of 16 keys, that is all.
    d, m, n = 64, 128, 16
    spared = 2 * n * (4 * d * d + 3 * d * m / 4) + 4 * n * n * d
    whole = 2 * n * (4 * d * d + 3 * d * m) + 4 * n * n * d
    assert f"({50 * spared / whole:.1f} %)" in lines[0]
    assert len(lines) == 2
    document = json.loads(run(own_checkpoint, "nowhere", *words, "--json").out)
    assert document["structure_flops"]["formula"] == pytest.approx(2 * spared)


def test_dense_leaves_a_stored_structure_out(make_job: MakeJob, own_checkpoint: Path) -> None:
    (own_checkpoint / "pruning_config.json").write_text('{"structure": {"window": 3}}')

    assert make_job(own_checkpoint).plan.structure == Structure(window=3)
    assert make_job(own_checkpoint, dense=True).plan.structure is None


def test_a_structure_changes_the_key(make_job: MakeJob) -> None:
    settings: tuple[dict[str, Any], ...] = ({}, {"window": 3}, {"ffn_ratio": 4}, {"cut_layer": 3})
    jobs = [make_job(policy="yopo", settings=chosen) for chosen in settings]
    assert len({job.key() for job in jobs}) == len(jobs)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"layers": [3], "structure": {"cut_layer": 2}}, "pruning before layer 3 with cut_layer 2"),
        ({"structure": {"cut_layer": 9}}, "cut_layer 9"),
        ({"layers": [2], "structure": {"mode": "masked"}}, "layer 2 with the mode 'masked'"),
        ({"layers": [2], "structure": {"heads": ["0000"] * 4}}, "no heads kept in the layer"),
    ],
)
def test_structures_that_contradict_the_rest_are_refused(
    make_job: MakeJob, own_checkpoint: Path, config: dict[str, Any], complaint: str
) -> None:
    (own_checkpoint / "pruning_config.json").write_text(json.dumps(config))

    with pytest.raises(InputError, match=complaint):
        make_job(own_checkpoint)

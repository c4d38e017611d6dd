from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors.numpy import load_file, save_file

from atp_export import pipeline
from atp_export.job import ExportJob
from atp_export.parity import ParityReport
from atp_export.pipeline import export_bundle, is_exported, parity_failure
from atp_export.progress import QuietReporter, Reporter
from atp_export.workspace import Workspace
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config
from atp_runtime.bundle import Bundle
from atp_runtime.errors import CheckFailedError, InputError, MachineError

MakeJob = Callable[..., ExportJob]
QUIET = QuietReporter()


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def own(published: ExportJob, make_job: MakeJob) -> ExportJob:
    """The same job, its bundle a copy for a test that changes it."""
    job = make_job(prune_at=[2])
    shutil.copytree(published.bundle, job.bundle)
    return job


def contents(bundle: Path) -> dict[str, bytes]:
    """All files but the reports, which tell times."""
    return {
        path.relative_to(bundle).as_posix(): path.read_bytes()
        for path in bundle.rglob("*")
        if path.is_file() and "reports" not in path.parts
    }


def a_report(*, passed: bool) -> ParityReport:
    return ParityReport(
        mode="full",
        reason="as asked",
        precision="fp32",
        dialects=("portable",),
        checks=(),
        tolerances={},
        packages={},
        seconds=0.0,
        passed=passed,
    )


def test_a_published_bundle_is_whole_and_nothing_else_is_left(published: ExportJob) -> None:
    Bundle.open(published.bundle, verify="full")
    assert list(published.bundle.parent.iterdir()) == [published.bundle]
    names = {path.name for path in published.bundle.iterdir()}
    assert names == {"manifest.json", "onnx", "processor", "pruning", "reports"}


def test_the_export_report_tells_times_and_command(published: ExportJob) -> None:
    report = json.loads((published.bundle / "reports/export.json").read_text())
    steps = {"processor", "embedding", "vision", "segment_0", "segment_1", "head"}
    assert report["seconds"].keys() == steps | {"parity", "total"}
    assert report["seconds"]["total"] >= sum(report["seconds"][step] for step in steps)
    assert report["command"] == published.command


def test_exporting_again_changes_nothing(own: ExportJob) -> None:
    before = {path: path.stat().st_mtime_ns for path in own.bundle.rglob("*")}
    result = export_bundle(own, parity="off", reporter=QUIET)
    assert result.unchanged
    assert {path: path.stat().st_mtime_ns for path in own.bundle.rglob("*")} == before


def test_a_bundle_of_other_options_is_not_overwritten(own: ExportJob, make_job: MakeJob) -> None:
    before = contents(own.bundle)
    with pytest.raises(InputError, match="holds another bundle") as caught:
        export_bundle(make_job(prune_at=[1]), parity="off", reporter=QUIET)
    assert "remove" in caught.value.fix
    assert contents(own.bundle) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda bundle: (bundle / "onnx/head.data").unlink(),
        lambda bundle: (bundle / "onnx/vision.onnx").write_bytes(b""),
        lambda bundle: (bundle / "manifest.json").write_text("{"),
    ],
    ids=["missing", "emptied", "manifest"],
)
def test_a_damaged_bundle_is_not_taken_for_exported(
    own: ExportJob, damage: Callable[[Path], object]
) -> None:
    damage(own.bundle)
    with pytest.raises(InputError, match="is damaged") as caught:
        is_exported(own)
    assert "remove that directory" in caught.value.fix


@pytest.mark.parametrize("report", [None, "{", "[]", "{}"])
def test_a_bundle_whose_origin_is_unknown_is_another_one(
    own: ExportJob, report: str | None
) -> None:
    path = own.bundle / "reports/export.json"
    path.unlink() if report is None else path.write_text(report)
    with pytest.raises(InputError, match="holds another bundle"):
        is_exported(own)


def test_a_directory_that_is_no_bundle_is_left_alone(make_job: MakeJob) -> None:
    job = make_job()
    job.bundle.mkdir()
    (job.bundle / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is no bundle") as caught:
        export_bundle(job, parity="off", reporter=QUIET)
    assert "remove" not in caught.value.fix
    assert [path.name for path in job.bundle.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_bundles_place_is_left_alone(make_job: MakeJob) -> None:
    job = make_job()
    job.bundle.write_text("a file")
    with pytest.raises(InputError, match="is no bundle"):
        export_bundle(job, parity="off", reporter=QUIET)
    assert job.bundle.read_text() == "a file"


def test_the_checkpoint_itself_is_refused_by_name(make_job: MakeJob, own_checkpoint: Path) -> None:
    before = contents(own_checkpoint)
    with pytest.raises(InputError, match="is the checkpoint itself") as caught:
        export_bundle(
            make_job(own_checkpoint, own_checkpoint / "." / ""), parity="off", reporter=QUIET
        )
    assert "remove" not in caught.value.fix
    assert contents(own_checkpoint) == before


def test_an_empty_directory_is_as_good_as_none(make_job: MakeJob) -> None:
    job = make_job()
    job.bundle.mkdir()
    assert not is_exported(job)


def test_a_second_export_of_the_same_bundle_is_refused(make_job: MakeJob) -> None:
    job = make_job()
    with (
        Workspace(job.bundle, job.key()).open(),
        pytest.raises(InputError, match="another export"),
    ):
        export_bundle(job, parity="off", reporter=QUIET)


def test_an_interrupted_export_resumes_to_the_same_bytes(
    make_job: MakeJob, published: ExportJob, stumble_at: Callable[[str], Reporter]
) -> None:
    job = make_job(prune_at=[2])
    with pytest.raises(KeyboardInterrupt):
        export_bundle(job, parity="off", reporter=stumble_at("head"))
    assert not job.bundle.exists()
    result = export_bundle(job, parity="off", reporter=QUIET)
    assert result.resumed == ("processor", "embedding", "vision", "segment_0", "segment_1")
    assert set(result.seconds) == {"head", "parity", "total"}
    assert contents(job.bundle) == contents(published.bundle)


def test_nothing_is_published_when_parity_fails_and_the_next_run_checks_again(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(prune_at=[2])
    verdicts = iter([False, True])

    def compared(*_arguments: object, **_options: object) -> ParityReport:
        return a_report(passed=next(verdicts))

    monkeypatch.setattr(pipeline, "run_parity", compared)
    result = export_bundle(job, parity="full", reporter=QUIET)
    error = parity_failure(job, result)
    assert isinstance(error, CheckFailedError)
    assert "bundle.partial/reports/parity.json" in error.fix
    assert not job.bundle.exists()
    kept = job.bundle.with_name("bundle.partial")
    assert json.loads((kept / "reports/parity.json").read_text())["passed"] is False

    second = export_bundle(job, parity="full", reporter=QUIET)
    assert parity_failure(job, second) is None
    assert second.resumed[0] == "processor"
    assert "vision" in second.resumed
    assert (job.bundle / "reports/parity.json").is_file()


def test_nothing_is_left_where_the_disk_has_no_room(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**9, 10**9, 1000))
    job = make_job()
    with pytest.raises(MachineError, match="MB free"):
        export_bundle(job, parity="off", reporter=QUIET)
    assert list(job.bundle.parent.iterdir()) == []


def test_nothing_is_left_of_a_checkpoint_without_tokenizer(
    make_job: MakeJob, own_checkpoint: Path
) -> None:
    (own_checkpoint / "tokenizer.json").unlink()
    job = make_job(own_checkpoint)
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        export_bundle(job, parity="off", reporter=QUIET)
    assert list(job.bundle.parent.iterdir()) == [own_checkpoint]


def test_nan_in_a_weight_publishes_nothing(make_job: MakeJob, own_checkpoint: Path) -> None:
    file = own_checkpoint / "model.safetensors"
    tensors = load_file(file)
    tensors["language_model.model.embed_tokens.weight"][5] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    job = make_job(own_checkpoint)
    with pytest.raises(CheckFailedError, match="NaN or infinity, in 64 of its"):
        export_bundle(job, parity="off", reporter=QUIET)
    assert not job.bundle.exists()


def test_segments_cut_further_for_small_devices_compute_the_same(make_job: MakeJob) -> None:
    shapes = make_job().plan.spec.tensor_shapes().items()
    layer = sum(4 * math.prod(shape) for name, shape in shapes if "language_model.layers.0" in name)
    job = make_job(prune_at=[2], max_segment_bytes=2 * layer - 1)
    assert [segment.last - segment.first for segment in job.plan.segments] == [1, 1, 1, 1]

    result = export_bundle(job, parity="full", reporter=QUIET)

    assert result.parity is not None
    assert result.parity.passed
    manifest = Bundle.open(job.bundle).manifest
    points = [(stage.name, stage.pruning) for stage in manifest.segments if stage.pruning]
    assert [(name, point.before_layer, point.weights) for name, point in points] == [
        ("segment_1", 2, "points.0.")
    ]
    pruned = [check for check in result.parity.checks if check.name in {"pruned", "forced"}]
    assert pruned


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_cut_along_the_vocabulary_computes_the_same(
    make_job: MakeJob, tmp_path: Path, tied: bool
) -> None:
    config = tiny_config(tied=tied)
    config.text_config.vocab_size = 1100
    write_random_checkpoint(tmp_path / "wide", config)
    job = make_job(source=tmp_path / "wide", prune_at=[2], max_segment_bytes=200_000)
    assert [(head.first, head.last) for head in job.plan.heads] == [(0, 768), (768, 1100)]

    result = export_bundle(job, parity="full", reporter=QUIET)

    assert result.parity is not None
    assert result.parity.passed
    manifest = Bundle.open(job.bundle).manifest
    assert [stage.name for stage in manifest.heads] == ["head_0", "head_1"]
    assert [stage.outputs[0].shape for stage in manifest.heads] == [(1, 768), (1, 332)]

"""Real bundles, built with the real TensorRT-RTX; tiny, so each engine takes a second or less."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper
from tests.compressor import with_compressor
from tests.routers import with_routers

from atp_export.check.acceptance import CheckReport, check_bundle
from atp_export.engines.options import EngineOptions
from atp_export.job import ExportOptions, prepare_job
from atp_export.pipeline import export_bundle as export_bundle_of
from atp_export.progress import QuietReporter
from atp_models.random_configs import tiny_config
from atp_runtime.bundle import Bundle
from atp_runtime.errors import InputError
from atp_runtime.manifest import Quantisation, read_manifest

pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT-RTX for this platform")

STAGES = ["vision", "segment_0", "segment_1", "head"]
LINEAR = ["vision", "segment_0", "segment_1"]


class Notes(QuietReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def check(path: Path, **options: Any) -> tuple[CheckReport, list[str]]:
    bundle = Bundle(path.resolve(), read_manifest(path))
    reporter = Notes()
    return check_bundle(bundle, EngineOptions(**options), reporter), reporter.lines


@pytest.fixture(scope="module")
def bundle(export_bundle: Any) -> Path:
    config = tiny_config(kv_heads=2)
    return Path(export_bundle(config, precision="fp16", dialect="both", prune_at=(2,)).bundle)


@pytest.fixture(scope="module")
def report(bundle: Path) -> tuple[CheckReport, list[str]]:
    return check(bundle)


def test_every_stage_is_built_in_both_dialects_as_it_is_and_in_int8(
    report: tuple[CheckReport, list[str]],
) -> None:
    found, notes = report
    assert [(v.dialect, v.precision, v.stage) for v in found.verdicts] == [
        (dialect, precision, stage)
        for dialect in ("portable", "native")
        for precision, stages in (("fp16", STAGES), ("int8", LINEAR))
        for stage in stages
    ]
    assert [verdict.problem for verdict in found.verdicts] == [None] * len(found.verdicts)
    assert found.passed
    assert found.sm == 86
    assert len(notes) == len(found.verdicts)


def test_the_report_tells_what_the_networks_are_made_of(
    report: tuple[CheckReport, list[str]],
) -> None:
    found, _ = report
    for verdict in found.verdicts:
        assert verdict.engine_bytes > 0
        assert verdict.seconds > 0
        assert verdict.layers > 3
        has_int8 = any("INT8" in name for name in verdict.types)
        assert has_int8 == (verdict.precision == "int8")


def test_ranges_are_sampled_where_the_bundle_can_run(
    report: tuple[CheckReport, list[str]],
) -> None:
    assert report[0].ranges == "sampled"


def test_the_portable_graphs_are_on_the_older_list_in_int8_too(
    report: tuple[CheckReport, list[str]],
) -> None:
    found, _ = report
    assert found.linted
    assert found.lint == {}


def test_fp32_is_built_in_both_dialects(export_bundle: Any) -> None:
    made = export_bundle(tiny_config(kv_heads=2), dialect="both", prune_at=(2,))
    found, _ = check(made.bundle)
    assert found.passed
    assert {verdict.precision for verdict in found.verdicts} == {"fp32", "int8"}


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["illava_vit", "elip"])
def test_merging_inside_the_tower_is_built_in_both_dialects(
    export_bundle: Any, tmp_path: Path, policy: str
) -> None:
    checkpoint = export_bundle(
        tiny_config(kv_heads=2), precision="fp16", dialect="both", prune_at=(2,)
    ).checkpoint
    job = prepare_job(checkpoint, tmp_path / "bundle", ExportOptions("fp16", "both", policy=policy))
    export_bundle_of(job, parity="off", reporter=QuietReporter())
    found, _ = check(job.bundle)
    assert [verdict.problem for verdict in found.verdicts] == [None] * len(found.verdicts)
    assert (found.passed, found.lint) == (True, {})


@pytest.mark.slow
def test_a_compressor_is_built_in_both_dialects(export_bundle: Any, tmp_path: Path) -> None:
    checkpoint = export_bundle(
        tiny_config(kv_heads=2), precision="fp16", dialect="both", prune_at=(2,)
    ).checkpoint
    trained = with_compressor(checkpoint, tmp_path / "trained", 2)
    options = ExportOptions("fp16", "both", policy="quecc", settings={"grid": 2})
    job = prepare_job(trained, tmp_path / "bundle", options)
    export_bundle_of(job, parity="off", reporter=QuietReporter())
    found, _ = check(job.bundle)
    assert [verdict.problem for verdict in found.verdicts] == [None] * len(found.verdicts)
    assert (found.passed, found.lint) == (True, {})


def test_merging_is_built_in_both_dialects(export_bundle: Any, tmp_path: Path) -> None:
    checkpoint = export_bundle(
        tiny_config(kv_heads=2), precision="fp16", dialect="both", prune_at=(2,)
    ).checkpoint
    options = ExportOptions("fp16", "both", policy="illava", settings={"layer": 2})
    job = prepare_job(checkpoint, tmp_path / "merging", options)
    export_bundle_of(job, parity="off", reporter=QuietReporter())

    found, _ = check(job.bundle)

    assert found.passed
    assert {verdict.precision for verdict in found.verdicts} == {"fp16", "int8"}


@pytest.mark.slow
def test_routed_layers_are_built_in_both_dialects(export_bundle: Any, tmp_path: Path) -> None:
    checkpoint = export_bundle(
        tiny_config(kv_heads=2), precision="fp16", dialect="both", prune_at=(2,)
    ).checkpoint
    trained = with_routers(checkpoint, tmp_path / "routed", (1, 2))
    settings = {"layers": [1, 2], "ratio": 0.5}
    options = ExportOptions("fp16", "both", policy="videollm_mod", settings=settings)
    job = prepare_job(trained, tmp_path / "bundle", options)
    export_bundle_of(job, parity="off", reporter=QuietReporter())

    found, _ = check(job.bundle)

    assert found.passed
    assert found.linted
    segments = {v.stage for v in found.verdicts if v.stage.startswith("segment")}
    assert segments == {f"segment_{number}" for number in range(4)}


def test_one_dialect_alone_can_be_asked_for(bundle: Path) -> None:
    found, _ = check(bundle, dialect="native", max_tokens=64)
    assert {verdict.dialect for verdict in found.verdicts} == {"native"}
    assert not found.linted


def test_a_calibrated_bundle_is_built_as_it_is_and_called_what_it_is(bundle: Path) -> None:
    plain = Bundle(bundle.resolve(), read_manifest(bundle))
    manifest = replace(plain.manifest, quantisation=Quantisation("int4", None, 64, 9))
    options = EngineOptions(dialect="portable")

    found = check_bundle(Bundle(plain.root, manifest), options, QuietReporter())

    assert [(v.precision, v.stage) for v in found.verdicts] == [("int4", it) for it in STAGES]
    assert found.ranges == "calibrated"


def test_a_refused_graph_is_reported_with_the_parsers_reason_and_the_others_are_built(
    bundle: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(bundle, tmp_path / "own"))
    file = own / read_manifest(own).stage("head").graph
    model = onnx.load(file, load_external_data=False)
    last = model.graph.node[-1]
    last.output[0] = "plain"
    model.graph.node.extend(
        [
            helper.make_node("NonZero", ["plain"], ["where"]),
            helper.make_node("Cast", ["where"], ["places"], to=onnx.TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["places"], ["middle"], keepdims=0),
            helper.make_node("Add", ["plain", "middle"], ["logits"]),
        ]
    )
    onnx.save(model, file)

    found, _ = check(own, dialect="portable")

    assert not found.passed
    refused = [verdict for verdict in found.verdicts if not verdict.accepted]
    assert [(verdict.stage, verdict.engine_bytes) for verdict in refused] == [("head", 0)]
    assert "NonZero" in str(refused[0].problem)


def test_what_the_older_parser_lacks_fails_the_check(bundle: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(bundle, tmp_path / "own"))
    manifest = read_manifest(own)
    # The native head in the place of the portable one: RTX takes it, TensorRT 10.3 would not.
    shutil.copy(own / manifest.stage("head").other_graphs["native"], own / "onnx/head.onnx")

    found, _ = check(own, dialect="portable")

    assert all(verdict.accepted for verdict in found.verdicts)
    assert found.lint.keys() == {"fp16 head"}
    assert not found.passed


def test_lengths_beyond_the_bundle_are_refused(bundle: Path) -> None:
    with pytest.raises(InputError, match="--max-tokens 9999"):
        check(bundle, max_tokens=9999)

"""Whole parity runs on whole bundles."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from atp_export.job import ExportOptions, prepare_job
from atp_export.parity import ParityReport, render_tree, run_parity
from atp_models.random_configs import tiny_config
from atp_runtime.errors import InputError
from atp_runtime.manifest import MANIFEST_NAME, dump_manifest, read_manifest


def parity(
    checkpoint: Path, bundle: Path, mode: str = "full", notes: list[str] | None = None
) -> ParityReport:
    manifest = read_manifest(bundle)
    cuts = [stage.layers[1] for stage in manifest.segments[:-1]]
    job = prepare_job(
        checkpoint,
        bundle,
        ExportOptions(
            precision=manifest.precision,
            dialect="both" if manifest.other_dialects else manifest.dialect,
            prune_at=cuts or None,
            dense=not cuts,
            max_tokens=manifest.axes["tokens"].maximum,
        ),
    )
    said: list[str] = [] if notes is None else notes
    return run_parity(
        job.checkpoint, job.plan.spec, job.plan, bundle, mode=mode, report=said.append
    )


def failures(report: ParityReport) -> list[str]:
    return [
        f"{check.name} {measure.tensor} {measure.when} {measure.cosine} {measure.norm_ratio}"
        for check in report.checks
        for measure in check.measures
        if not measure.passed
    ] + [check.problem for check in report.checks if check.problem]


def test_full_compares_every_stage_and_both_ends(tiny: Any) -> None:
    report = parity(*tiny)

    assert failures(report) == []
    assert report.passed
    names = [(check.scope, check.name) for check in report.checks]
    assert names == [
        *(("stage", name) for name in ("vision", *(f"segment_{n}" for n in range(4)), "head")),
        ("end to end", "dense"),
        ("end to end", "dense"),
        ("end to end", "pruned"),
    ]


def test_full_compares_every_key_and_value_in_prefill_decode_and_turn(tiny: Any) -> None:
    report = parity(*tiny)
    expected = {
        (f"present.{layer}.{kind}", when)
        for layer in range(4)
        for kind in ("key", "value")
        for when in ("prefill", "decode", "turn")
    }

    for check in report.checks:
        if check.scope == "end to end":
            compared = {(measure.tensor, measure.when) for measure in check.measures}
            assert expected | {("logits", "prefill"), ("logits", "decode")} <= compared
    stages = {
        (measure.tensor, measure.when)
        for check in report.checks
        if check.name.startswith("segment")
        for measure in check.measures
    }
    assert expected <= stages
    assert {("scores.self", "prefill"), ("scores.cross", "prefill")} <= stages


def test_sampled_compares_layers_of_every_stage(tiny: Any) -> None:
    notes: list[str] = []

    report = parity(*tiny, mode="sampled", notes=notes)

    assert failures(report) == []
    assert report.passed
    assert report.mode == "sampled"
    names = [check.name for check in report.checks]
    assert names == ["embedding", "vision", *(f"segment_{n}" for n in range(4)), "head"]
    assert any("segment_2" in note for note in notes)


def test_sampled_takes_first_middle_and_last_layer_when_a_segment_is_long(
    one_segment: Any,
) -> None:
    report = parity(*one_segment, mode="sampled")

    assert failures(report) == []
    segment = next(check for check in report.checks if check.name == "segment_0")
    compared = {measure.tensor for measure in segment.measures if "key" in measure.tensor}
    assert compared == {"present.0.key", "present.1.key", "present.3.key"}
    assert segment.detail == "layers 0, 1, 3 of 0 to 3"


def test_auto_is_full_when_the_model_is_tiny(tiny: Any) -> None:
    report = parity(*tiny, mode="auto")

    assert report.mode == "full"
    assert "free" in report.reason


def test_a_mode_that_does_not_exist_is_refused(tiny: Any) -> None:
    with pytest.raises(InputError, match="no parity mode 'off'"):
        parity(*tiny, mode="off")


def test_dropping_is_forced_when_the_rule_keeps_everything(tiny: Any, tmp_path: Path) -> None:
    bundle = tmp_path / "keeps"
    shutil.copytree(tiny.bundle, bundle)
    manifest = read_manifest(bundle)
    stages = tuple(
        replace(stage, pruning=stage.pruning and replace(stage.pruning, **KEEPS_ALL))
        for stage in manifest.stages
    )
    (bundle / MANIFEST_NAME).write_text(dump_manifest(replace(manifest, stages=stages)))

    report = parity(tiny.checkpoint, bundle)

    assert failures(report) == []
    pruned, forced = report.checks[-2:]
    assert (pruned.name, forced.name) == ("pruned", "forced")
    assert pruned.detail == "2 images, tokens 60 → 60 → 60 → 60"
    assert forced.detail == "2 images, tokens 60 → 52 → 46 → 41"


KEEPS_ALL: dict[str, Any] = {"rule": "keep_all", "parameters": {}, "weights": None}


def test_text_alone_is_compared_when_no_image_fits(tiny: Any) -> None:
    job = prepare_job(
        tiny.checkpoint,
        tiny.bundle,
        ExportOptions(
            precision="fp32", dialect="portable", prune_at=None, dense=False, max_tokens=20
        ),
    )

    report = run_parity(
        job.checkpoint, job.plan.spec, job.plan, tiny.bundle, mode="full", report=lambda _: None
    )

    assert failures(report) == []
    assert [check.detail for check in report.checks if check.scope == "end to end"] == ["text only"]
    assert report.passed


def test_every_dialect_of_a_bundle_is_compared(export_bundle: Any) -> None:
    made = export_bundle(tiny_config(), dialect="both", prune_at=(2,))

    report = parity(made.checkpoint, made.bundle)

    assert failures(report) == []
    assert report.passed
    portable, native = (
        [check.name for check in report.checks if check.dialect == name] for name in report.dialects
    )
    assert portable == native
    assert len(portable) + len(native) == len(report.checks)
    assert "native segment_0" in render_tree(report)


def test_a_fault_in_the_second_dialect_alone_fails_the_report(
    export_bundle: Any, tmp_path: Path
) -> None:
    made = export_bundle(tiny_config(), dialect="both", prune_at=(2,))
    bundle = Path(shutil.copytree(made.bundle, tmp_path / "bundle"))
    head = read_manifest(bundle).stage("head").other_graphs["native"]
    model = onnx.load(bundle / head, load_external_data=False)
    norm = next(node for node in model.graph.node if node.op_type == "RMSNormalization")
    next(part for part in norm.attribute if part.name == "epsilon").f = 1.0
    onnx.save(model, bundle / head)

    report = parity(made.checkpoint, bundle)

    assert not report.passed
    wrong = {(check.dialect, check.name) for check in report.checks if not check.passed}
    assert ("native", "head") in wrong
    assert {dialect for dialect, _ in wrong} == {"native"}

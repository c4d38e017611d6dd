"""INT8 graphs of a real bundle, in ONNX Runtime: what two right INT8 engines differ by."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atp_export.check.int8 import sampled_ranges, write_int8
from atp_export.engines.agreement import BOUNDS
from atp_export.engines.builder import BuildResult, StageEngine
from atp_export.engines.comparison import check_engines
from atp_export.engines.options import EngineOptions
from atp_export.engines.profiles import stage_profiles
from atp_export.progress import QuietReporter
from atp_models.random_configs import tiny_config
from atp_runtime.backends.onnxruntime import OnnxRuntimeBackend
from atp_runtime.bundle import Bundle
from atp_runtime.engine_set import Engine, Target
from atp_runtime.manifest import NATIVE, PORTABLE, FileRecord, Quantisation, Stage

pytestmark = pytest.mark.slow

TARGET = Target("tensorrt", "10.3.0", 87, "Orin")


@pytest.fixture(scope="module")
def quantised(export_bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Every graph that has linear layers is in INT8, in both dialects."""
    shared = export_bundle(tiny_config(kv_heads=2), precision="fp16", dialect="both").bundle
    root = Path(shutil.copytree(shared, tmp_path_factory.mktemp("int8") / "bundle")).resolve()
    bundle = Bundle.open(root)
    ranges = sampled_ranges(bundle)
    assert ranges is not None
    for dialect in (PORTABLE, NATIVE):
        view = bundle.in_dialect(dialect)
        for stage in view.manifest.stages:
            graph = view.path(stage.graph)
            copy = graph.with_name(f"int8-{dialect}-{stage.name}.onnx")
            if write_int8(graph, ranges.get(stage.name, {}), copy):
                copy.replace(graph)
    layers = sum(map(len, ranges.values()))
    quantisation = Quantisation("int8", "int8", None, layers)
    return Bundle(root, replace(bundle.manifest, quantisation=quantisation))


def test_both_dialects_agree_within_what_int8_engines_may_differ(quantised: Bundle) -> None:
    """ONNX Runtime runs the native graphs in the place of engines."""

    def engine(stage: Stage) -> StageEngine:
        profiles = stage_profiles(quantised.manifest, stage, EngineOptions())
        made = Engine("plan", FileRecord(1, ""), stage.name, profiles, 1, 1, 1.0, {})
        return StageEngine(stage.name, made, reused=False)

    stages = tuple(engine(stage) for stage in quantised.manifest.stages)
    built = BuildResult(quantised.root / TARGET.directory, TARGET, NATIVE, stages, 1.0)
    runs = (OnnxRuntimeBackend(threads=1), OnnxRuntimeBackend(threads=1))

    report = check_engines(quantised, built, *runs, QuietReporter())

    assert report.bound == BOUNDS["int8"]
    assert report.passed

"""The exporter's own graphs, in both dialects, from export to verdict."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from atp_export.engines.builder import build_engines
from atp_export.engines.comparison import check_engines
from atp_export.engines.options import EngineOptions
from atp_export.progress import QuietReporter
from atp_runtime.backends.onnxruntime import OnnxRuntimeBackend
from atp_runtime.bundle import Bundle
from atp_runtime.engine_set import read_engine_set

if TYPE_CHECKING:
    from atp_export.engines.library import Library

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(export_bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA in FP16, with portable and native graphs over the same weights."""
    from atp_models.random_configs import tiny_config  # noqa: PLC0415

    shared = export_bundle(tiny_config(), precision="fp16", dialect="both").bundle
    return Path(shutil.copytree(shared, tmp_path_factory.mktemp("real") / "bundle"))


@pytest.mark.parametrize("dialect", ["portable", "native"])
def test_every_stage_becomes_an_engine_for_ampere(
    exported: Path, rtx: Library, dialect: str
) -> None:
    bundle = Bundle.open(exported)
    options = EngineOptions(dialect=dialect, max_tokens=128, kept=(8, 4, 2), optimisation_level=0)
    result = build_engines(bundle, rtx, options, QuietReporter())
    engines = read_engine_set(result.directory)
    assert engines.dialect == dialect
    assert list(engines.engines) == [stage.name for stage in bundle.manifest.stages]
    assert not any(stage.reused for stage in result.stages)


def test_both_dialects_agree_within_what_engines_may_differ(exported: Path, rtx: Library) -> None:
    """ONNX Runtime runs the native graphs in the place of engines, and is not refused."""
    bundle = Bundle.open(exported)
    options = EngineOptions(dialect="native", max_tokens=128, kept=(8, 4, 2), optimisation_level=0)
    built = build_engines(bundle, rtx, options, QuietReporter())
    runs = (OnnxRuntimeBackend(threads=1), OnnxRuntimeBackend(threads=1))
    report = check_engines(bundle, built, *runs, QuietReporter())
    assert (report.dialect, report.reference_dialect) == ("native", "portable")
    assert report.passed

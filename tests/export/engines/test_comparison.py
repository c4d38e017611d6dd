"""ONNX Runtime against itself: in the place of TensorRT, which needs a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from atp_export.engines.builder import BuildResult, StageEngine
from atp_export.engines.comparison import EnginesReport, check_engines, check_failure, report_file
from atp_export.engines.options import EngineOptions
from atp_export.engines.profiles import stage_profiles
from atp_export.progress import QuietReporter
from atp_runtime.backends import DeviceArray, LoadedStage
from atp_runtime.backends.onnxruntime import OnnxRuntimeBackend
from atp_runtime.bundle import Bundle
from atp_runtime.engine_set import Engine, Target
from atp_runtime.manifest import FileRecord, Stage
from atp_runtime.schema import to_json

TARGET = Target("tensorrt", "10.3.0", 87, "Orin")


class Spoiled(OnnxRuntimeBackend):
    """Gets one output of one stage wrong."""

    def __init__(self, stage: str, tensor: str) -> None:
        super().__init__(threads=1)
        self.loaded: list[str] = []
        self._wrong = stage, tensor

    def load(self, bundle: Bundle, stage: Stage) -> LoadedStage:
        self.loaded.append(stage.name)
        loaded = super().load(bundle, stage)
        wrong_stage, tensor = self._wrong
        return _Wrong(loaded, self, tensor) if stage.name == wrong_stage else loaded


class _Wrong(LoadedStage):
    def __init__(self, inner: LoadedStage, backend: Spoiled, tensor: str) -> None:
        self.inner, self.backend, self.tensor = inner, backend, tensor

    def run(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> None:
        self.inner.run(inputs, outputs)
        array = outputs[self.tensor]
        self.backend.write(array, (self.backend.download(array) * 1.05).astype(array.dtype))

    def close(self) -> None:
        self.inner.close()


@pytest.fixture
def built() -> Callable[[Path], BuildResult]:
    """What a build of the bundle's engines says, without any engine."""

    def pretend(root: Path) -> BuildResult:
        bundle = Bundle.open(root)
        stages = []
        for stage in bundle.manifest.stages:
            profiles = stage_profiles(bundle.manifest, stage, EngineOptions())
            record = FileRecord(1, "")
            engine = Engine("plan", record, f"stamp of {stage.name}", profiles, 1, 1, 1.0, {})
            stages.append(StageEngine(stage.name, engine, reused=False))
        return BuildResult(root / TARGET.directory, TARGET, "portable", tuple(stages), 1.0)

    return pretend


def check(root: Path, result: BuildResult, engines: OnnxRuntimeBackend) -> EnginesReport:
    reference = OnnxRuntimeBackend(threads=1)
    return check_engines(Bundle.open(root), result, engines, reference, QuietReporter())


def test_engines_that_compute_the_same_pass(
    own_bundle: Path, built: Callable[[Path], BuildResult]
) -> None:
    report = check(own_bundle, built(own_bundle), Spoiled("none", ""))
    assert report.passed
    assert check_failure(report, Path("report")) is None
    segment = report.stages[1]
    assert [moment.moment for moment in segment.moments] == ["prefill", "turn", "decode"]
    names = {tensor.tensor for tensor in segment.moments[0].tensors}
    assert names == {it.name for it in Bundle.open(own_bundle).manifest.stages[1].outputs}
    decoded = {tensor.tensor for tensor in segment.moments[2].tensors}
    assert names - decoded == {"scores.self", "scores.cross"}, "nothing is selected in decode"


def test_the_verdict_is_written_to_the_bundle(
    own_bundle: Path, built: Callable[[Path], BuildResult]
) -> None:
    report = check(own_bundle, built(own_bundle), Spoiled("none", ""))
    assert report_file(TARGET) == "reports/engines-trt10.3.0-sm87.json"
    assert json.loads((own_bundle / report_file(TARGET)).read_text()) == to_json(report)


@pytest.mark.parametrize(
    ("stage", "tensor"),
    [("segment_0", "scores.cross"), ("head", "logits"), ("segment_1", "present.1.value")],
)
def test_one_wrong_output_is_named(
    own_bundle: Path, built: Callable[[Path], BuildResult], stage: str, tensor: str
) -> None:
    report = check(own_bundle, built(own_bundle), Spoiled(stage, tensor))
    assert [it.stage for it in report.stages if not it.passed] == [stage]
    failure = check_failure(report, Path("report"))
    assert failure is not None
    assert failure.exit_code == 1
    assert f"{stage}: its engine's {tensor} in prefill" in failure.what


def test_what_passed_is_not_compared_again_until_it_is_rebuilt(
    own_bundle: Path, built: Callable[[Path], BuildResult]
) -> None:
    result = built(own_bundle)
    check(own_bundle, result, Spoiled("none", ""))
    again = Spoiled("none", "")
    assert check(own_bundle, result, again).passed
    assert again.loaded == []
    first, *others = result.stages
    rebuilt = replace(first, engine=replace(first.engine, stamp="another"))
    assert check(own_bundle, replace(result, stages=(rebuilt, *others)), again).passed
    assert again.loaded == ["vision"]


def test_what_failed_is_compared_again(
    own_bundle: Path, built: Callable[[Path], BuildResult]
) -> None:
    result = built(own_bundle)
    assert not check(own_bundle, result, Spoiled("head", "logits")).passed
    again = Spoiled("none", "")
    assert check(own_bundle, result, again).passed
    assert again.loaded == ["head"]


def test_an_interrupted_check_goes_on_where_it_stopped(
    own_bundle: Path, built: Callable[[Path], BuildResult]
) -> None:
    class Interrupted(Spoiled):
        def load(self, bundle: Bundle, stage: Stage) -> LoadedStage:
            if stage.name == "segment_1":
                raise KeyboardInterrupt
            return super().load(bundle, stage)

    result = built(own_bundle)
    with pytest.raises(KeyboardInterrupt):
        check(own_bundle, result, Interrupted("none", ""))
    written = json.loads((own_bundle / report_file(TARGET)).read_text())
    assert not written["passed"]
    again = Spoiled("none", "")
    assert check(own_bundle, result, again).passed
    assert again.loaded == ["segment_1", "head"]


@pytest.mark.parametrize("text", ["", "{}", "[]"])
def test_a_damaged_report_is_written_anew(
    own_bundle: Path, built: Callable[[Path], BuildResult], text: str
) -> None:
    path = own_bundle / report_file(TARGET)
    path.parent.mkdir()
    path.write_text(text)
    engines = Spoiled("none", "")
    assert check(own_bundle, built(own_bundle), engines).passed
    assert len(engines.loaded) == 4

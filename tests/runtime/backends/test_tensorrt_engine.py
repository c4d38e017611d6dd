"""TensorRT itself, as far as it goes without a GPU: TensorRT-RTX has the same interface."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from tests.runtime.backends.host_device import HostDevice

from atp_runtime.backends import open_backend, tensorrt_engine
from atp_runtime.backends.engine_library import (
    EngineError,
    EngineLibrary,
    LayerTime,
    PlanContext,
)
from atp_runtime.backends.tensorrt_engine import (
    FEATURES,
    MODULES,
    TensorRtEngine,
    TensorRtLibrary,
    _has,
    open_tensorrt,
)
from atp_runtime.errors import MachineError


@pytest.fixture(scope="module")
def rtx() -> ModuleType:
    return pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="module")
def library(rtx: ModuleType) -> EngineLibrary:
    """One for all tests: see `tensorrt_engine._begin`."""
    return tensorrt_engine._begin(rtx)


def test_tensorrt_for_rtx_has_all_that_is_used(rtx: ModuleType, library: EngineLibrary) -> None:
    assert [feature for feature in FEATURES if not _has(rtx, feature)] == []
    assert (library.name, library.version) == ("tensorrt_rtx", rtx.__version__)


def test_plan_that_is_none_is_refused_with_tensorrts_reason(
    library: EngineLibrary, tmp_path: Path
) -> None:
    plan = tmp_path / "a.plan"
    plan.write_bytes(b"no plan at all" * 100)
    for _ in range(2):
        with pytest.raises(EngineError) as raised:
            library.load(plan, HostDevice())
        assert "deserializeCudaEngine" in str(raised.value)
        assert not raised.value.out_of_memory


@pytest.fixture
def context(rtx: ModuleType, library: EngineLibrary) -> PlanContext:
    """A context that refuses everything, and says why at times."""
    refuse = SimpleNamespace(
        set_input_shape=lambda *_: False,
        set_tensor_address=lambda *_: False,
        set_optimization_profile_async=lambda *_: False,
        execute_async_v3=lambda _stream: False,
    )
    engine = SimpleNamespace(create_execution_context=lambda _strategy: refuse)
    return TensorRtEngine(rtx, engine, library._log, 7).context()


def test_engine_without_a_context_to_be_had_is_an_error(
    rtx: ModuleType, library: EngineLibrary
) -> None:
    engine = SimpleNamespace(create_execution_context=lambda _strategy: None)
    with pytest.raises(EngineError, match="no context"):
        TensorRtEngine(rtx, engine, library._log, 7).context()


def test_what_the_context_refuses_is_an_error(context: PlanContext) -> None:
    for refused, said in (
        (lambda: context.set_shape("past", (1, 2)), r"past cannot be \[1, 2\]"),
        (lambda: context.set_address("past", 256), "past cannot be at 0x100"),
        (lambda: context.set_profile(3), "profile 3"),
        (context.enqueue, "enqueued"),
    ):
        with pytest.raises(EngineError, match=said):
            refused()


@pytest.mark.parametrize(
    ("said", "memory"),
    [
        ("Error Code 2: OutOfMemory (Requested size was 8 bytes.)", True),
        ("CUDA error 2: out of memory", True),
        ("Error Code 3: API Usage Error", False),
    ],
)
def test_first_error_that_tensorrt_logs_is_the_reason(
    rtx: ModuleType, library: EngineLibrary, context: PlanContext, said: str, memory: bool
) -> None:
    severity = rtx.ILogger.Severity
    library._log.log(severity.WARNING, "not this")
    library._log.log(severity.ERROR, said)
    library._log.log(severity.INTERNAL_ERROR, "what followed")
    with pytest.raises(EngineError) as raised:
        context.enqueue()
    assert str(raised.value) == said
    assert raised.value.out_of_memory is memory
    with pytest.raises(EngineError, match="cannot be enqueued"):
        context.enqueue()


def test_timed_run_tells_the_layers_that_tensorrt_reports(
    rtx: ModuleType, library: EngineLibrary
) -> None:
    def execute(_stream: int) -> bool:
        for name, milliseconds in (("a [profile 1]", 0.5), ("b", 0.25)):
            inner.profiler.report_layer_time(name, milliseconds)
        return True

    inner = SimpleNamespace(execute_async_v3=execute)
    engine = SimpleNamespace(create_execution_context=lambda _strategy: inner)
    context = TensorRtEngine(rtx, engine, library._log, 7).context()
    for _ in range(2):
        assert context.run_timed() == (LayerTime("a [profile 1]", 0.5), LayerTime("b", 0.25))
    assert isinstance(inner.profiler, rtx.IProfiler)


def test_layers_are_described_in_json_with_the_shapes_that_are_set(
    rtx: ModuleType, library: EngineLibrary
) -> None:
    inspector = SimpleNamespace(get_engine_information=lambda form: f"{form}")
    inner = SimpleNamespace(engine=SimpleNamespace(create_engine_inspector=lambda: inspector))
    engine = SimpleNamespace(create_execution_context=lambda _strategy: inner)
    context = TensorRtEngine(rtx, engine, library._log, 7).context()
    assert context.describe() == str(rtx.LayerInformationFormat.JSON)
    assert inspector.execution_context is inner


def test_contexts_tell_nvtx_no_more_than_the_names_of_layers(
    rtx: ModuleType, library: EngineLibrary
) -> None:
    inner = SimpleNamespace()
    engine = SimpleNamespace(create_execution_context=lambda _strategy: inner)
    TensorRtEngine(rtx, engine, library._log, 7).context()
    assert inner.nvtx_verbosity == rtx.ProfilingVerbosity.LAYER_NAMES_ONLY


def test_tensorrt_that_is_too_old_is_refused_by_what_it_lacks() -> None:
    old = ModuleType("tensorrt")
    old.__version__, old.Runtime = "8.5.2", object
    with pytest.raises(MachineError, match=r"TensorRT 8\.5\.2 has no EngineInspector") as raised:
        TensorRtLibrary(old)
    assert "JetPack 6.1" in raised.value.fix


def test_machine_without_tensorrt_is_told_of_jetpack(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MachineError, match="TensorRT cannot be loaded") as raised:
        open_backend("tensorrt")
    assert "--system-site-packages" in raised.value.fix
    assert "--backend onnxruntime" in raised.value.fix


def test_package_of_types_alone_is_no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MachineError, match="'tensorrt' has no runtime in it"):
        open_tensorrt()


def test_tensorrt_for_rtx_is_used_where_there_is_no_other(
    rtx: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert open_tensorrt().name == "tensorrt_rtx"

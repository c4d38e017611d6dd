"""One stage, built by TensorRT-RTX for Ampere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import TensorProto, helper

from atp_export.engines.build import BuiltEngine, build_stage
from atp_export.engines.failures import BuildFailedError, GraphRefusedError
from atp_export.engines.inspection import inspect_plan, layer_precisions
from atp_export.engines.monitor import SilentMonitor
from atp_export.engines.options import EngineOptions
from atp_export.engines.profiles import stage_profiles
from atp_runtime.bundle import Bundle
from atp_runtime.errors import MachineError
from atp_runtime.manifest import Manifest, Stage

if TYPE_CHECKING:
    from atp_export.engines.library import Library

Build = Callable[..., BuiltEngine]
DEFAULTS = EngineOptions()


class Steps(SilentMonitor):
    """Counts steps; interrupts as Ctrl-C would after so many."""

    def __init__(self, interrupt_after: int | None = None) -> None:
        self.steps: dict[str, int] = {}
        self.running: list[str] = []
        self.interrupt_after = interrupt_after

    def phase_started(self, name: str, parent: str | None, steps: int) -> None:
        assert parent is None or parent in self.running
        self.running.append(name)

    def step_done(self, name: str, step: int) -> None:
        assert name in self.running
        self.steps[name] = self.steps.get(name, 0) + 1

    def phase_ended(self, name: str) -> None:
        self.running.remove(name)


@pytest.fixture
def build(rtx: Library, small_bundle: Path) -> Build:
    """Builds a stage of the small bundle."""
    bundle = Bundle.open(small_bundle)

    def run(name: str, options: EngineOptions = DEFAULTS, **others: object) -> BuiltEngine:
        stage = bundle.manifest.stage(name)
        profiles = stage_profiles(bundle.manifest, stage, options)
        monitor = others.get("monitor") or SilentMonitor()
        graph = others.get("graph") or bundle.path(stage.graph)
        return build_stage(rtx, graph, stage, profiles, options, monitor)  # type: ignore[arg-type]

    return run


def one_node(path: Path, operator: str, output: int) -> Path:
    """A graph whose one node is that operator."""
    x = helper.make_tensor_value_info("hidden_states", TensorProto.FLOAT16, [1, "tokens", 8])
    y = helper.make_tensor_value_info("logits", output, None)
    node = helper.make_node(operator, ["hidden_states"], ["logits"], name="the node")
    graph = helper.make_graph([node], "g", [x], [y])
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def test_a_segment_becomes_an_engine_for_ampere(build: Build) -> None:
    built = build("segment_0")
    assert built.plan.nbytes > 10_000
    assert built.seconds > 0


def test_the_parsed_network_tells_its_types(build: Build) -> None:
    """The head computes in FP16 and gives logits in FP32."""
    network = build("head").network
    assert network.layers >= 3
    assert {"HALF", "FLOAT"} <= set(network.types)


def test_phases_are_told_and_end(build: Build) -> None:
    steps = Steps()
    build("head", monitor=steps)
    assert sum(steps.steps.values()) > 10
    assert steps.running == []


def test_engines_keep_all_that_is_known_of_their_layers(
    build: Build, rtx: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polygraphy.backend import trt  # noqa: PLC0415 - loads TensorRT

    # A config that outlives its builder crashes when it is freed.
    verbosities, make = [], trt.engine_bytes_from_network

    def watched(network: object, config: object) -> object:
        verbosities.append(config.profiling_verbosity)  # type: ignore[attr-defined]
        return make(network, config=config)

    monkeypatch.setattr(trt, "engine_bytes_from_network", watched)
    build("head")
    assert verbosities == [rtx.trt.ProfilingVerbosity.DETAILED]


def test_nothing_is_printed(build: Build, capfd: pytest.CaptureFixture[str]) -> None:
    build("head")
    assert capfd.readouterr() == ("", "")


def test_an_engine_is_opened_only_where_there_is_a_gpu(build: Build, rtx: Library) -> None:
    assert not rtx.has_gpu
    assert build("head").inspection is None


def test_a_library_that_keeps_no_timings_gives_none(build: Build) -> None:
    assert build("head").timing_cache == b""


def test_rtx_has_what_the_native_dialect_is_made_of(rtx: Library) -> None:
    assert rtx.has_native_operators
    assert (rtx.target.library, rtx.target.sm) == ("tensorrt_rtx", 86)
    assert rtx.target.directory == f"engines/rtx{rtx.trt.__version__}-sm86"


@pytest.mark.parametrize(
    ("operator", "output"), [("NonZero", TensorProto.INT64), ("Frobnicate", TensorProto.FLOAT16)]
)
def test_a_refused_graph_is_told_with_node_and_reason(
    build: Build, tmp_path: Path, operator: str, output: int
) -> None:
    graph = one_node(tmp_path / "strange.onnx", operator, output)
    with pytest.raises(GraphRefusedError, match=operator) as caught:
        build("head", graph=graph)
    (problem,) = caught.value.problems
    assert (problem.node, problem.operator) == ("the node", operator)
    assert problem.reason


def test_a_missing_graph_is_refused(build: Build, tmp_path: Path) -> None:
    with pytest.raises(GraphRefusedError, match="cannot be found"):
        build("head", graph=tmp_path / "missing.onnx")


def test_missing_weights_are_refused(build: Build, small_bundle: Path, tmp_path: Path) -> None:
    alone = tmp_path / "head.onnx"
    alone.write_bytes((small_bundle / "onnx" / "head.onnx").read_bytes())
    with pytest.raises(GraphRefusedError, match="initializer: weight"):
        build("head", graph=alone)


def test_a_build_without_enough_workspace_fails_with_what_to_raise(
    rtx: Library, make_manifest: Callable[..., Manifest], tmp_path: Path
) -> None:
    """Scores of 4096 tokens for 4096 tokens take 32 MiB in FP16."""
    x = helper.make_tensor_value_info("hidden_states", TensorProto.FLOAT16, [1, "tokens", 8])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT16, None)
    nodes = [
        helper.make_node("Transpose", ["hidden_states"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["hidden_states", "turned"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"]),
        helper.make_node("MatMul", ["weights", "weights"], ["mixed"]),
        helper.make_node("MatMul", ["mixed", "weights"], ["again"]),
        helper.make_node("ReduceMax", ["again"], ["logits"], keepdims=1),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y])
    opset = [helper.make_opsetid("", 18)]
    path = tmp_path / "wide.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    manifest = make_manifest(longest=4096)
    stage: Stage = replace(manifest.stage("head"), data=())
    options = EngineOptions(workspace_bytes=1 << 20)
    profiles = stage_profiles(manifest, stage, options)
    with pytest.raises(BuildFailedError, match="--workspace 1 does not suffice") as caught:
        build_stage(rtx, path, stage, profiles, options, SilentMonitor())
    assert "raise it" in caught.value.fix


def test_a_plan_that_cannot_be_opened_is_told_with_tensorrt_s_reason(rtx: Library) -> None:
    with pytest.raises(MachineError, match="cannot be opened") as caught:
        inspect_plan(rtx, memoryview(b"no plan at all"))
    assert "no reason" not in caught.value.why


def test_inspected_layers_are_counted_by_type() -> None:
    text = """{"Layers": [
        {"Name": "a", "Outputs": [{"Name": "x", "Format/Datatype": "Half"}]},
        {"Name": "b", "Outputs": [{"Name": "y", "Format/Datatype": "Half"},
                                  {"Name": "z", "Format/Datatype": "Float"}]}]}"""
    assert layer_precisions(text) == {"Half": 2, "Float": 1}
    assert layer_precisions('{"Layers": ["a", "b"]}') == {}

"""Engines and arrays that the TensorRT backend refuses."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.backends.host_device import HostDevice
from tests.runtime.backends.host_engines import HostEngine, HostLibrary, write_engines
from tests.runtime.backends.tensorrt_bench import SEGMENT, Arrays, Bench

from atp_runtime.backends.engine_library import EngineError, EngineTensor
from atp_runtime.backends.tensorrt import TensorRtBackend
from atp_runtime.bundle import Bundle
from atp_runtime.engine_set import EngineSet
from atp_runtime.errors import CheckFailedError, InputError, MachineError


def test_run_names_axis_limit_and_option_when_a_length_is_beyond_every_profile(
    bench: Bench,
) -> None:
    with pytest.raises(InputError, match="segment_1: the axis 'tokens' has length 65") as raised:
        bench.stage.run(bench.inputs(65, 0), bench.outputs(65))
    assert "built for 64 at most" in raised.value.why
    assert "atp-export engines BUNDLE --max-tokens 65" in raised.value.fix
    assert bench.engine.told["run"] == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda b: {"position_ids": b.inputs(3, 0)["position_ids"]},
        lambda b: {"past_key_values.2.value": b.inputs(2, 5)["past_key_values.2.value"]},
        lambda b: {"keep_indices": b.backend.upload(np.arange(2, dtype=np.float32))},
    ],
)
def test_run_refuses_an_input_that_does_not_fit_the_others(
    bench: Bench, change: Callable[[Bench], Arrays]
) -> None:
    given = change(bench)
    with pytest.raises(InputError, match=f"stage segment_1: {next(iter(given))} is"):
        bench.stage.run(bench.inputs(2, 0) | given, bench.outputs(2))
    assert bench.engine.told["run"] == 0


def test_run_refuses_an_output_that_is_too_short(bench: Bench) -> None:
    outputs = bench.outputs(3) | {"scores.self": bench.outputs(2)["scores.self"]}
    with pytest.raises(InputError, match=r"scores\.self is float32 \[2\]") as raised:
        bench.stage.run(bench.inputs(3, 0), outputs)
    assert "must be float32 [3]" in raised.value.why


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (EngineError("Error Code 1: Cuda Runtime"), "segment_1: Error Code 1: Cuda Runtime"),
        (EngineError("no", out_of_memory=True), "segment_1: not enough GPU memory"),
    ],
)
def test_failure_of_a_run_is_the_machines(bench: Bench, fault: EngineError, said: str) -> None:
    bench.library.fault = fault
    with pytest.raises(MachineError, match=said):
        bench.stage.run(bench.inputs(2, 0), bench.outputs(2))


def test_load_checks_the_plan_before_tensorrt_sees_it(own_bundle: Path) -> None:
    engines = write_engines(own_bundle)
    plan = own_bundle / engines.target.directory / f"{SEGMENT}.plan"
    plan.write_bytes(b"?" * engines.engines[SEGMENT].record.bytes)
    with pytest.raises(CheckFailedError, match="SHA-256"):
        Bench.of(own_bundle)


class RefusingLibrary(HostLibrary):
    """One whose engines cannot be loaded."""

    def load(self, plan: Path, device: object) -> HostEngine:
        raise self.fault or EngineError("Version tag does not match")


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (None, InputError, "segment_1: Version tag does not match"),
        (EngineError("OOM", out_of_memory=True), MachineError, "not enough GPU memory"),
    ],
)
def test_load_tells_what_tensorrt_says(
    built: Path, fault: EngineError | None, kind: type[Exception], said: str
) -> None:
    library = RefusingLibrary()
    library.fault = fault
    bundle = Bundle.open(built)
    with pytest.raises(kind, match=said):
        TensorRtBackend(HostDevice(), library).load(bundle, bundle.manifest.stage(SEGMENT))


def test_load_says_so_when_memory_does_not_suffice(built: Path) -> None:
    bundle = Bundle.open(built)
    backend = TensorRtBackend(HostDevice(capacity=2999), HostLibrary())
    with pytest.raises(MachineError, match="3000 bytes of GPU memory"):
        backend.load(bundle, bundle.manifest.stage(SEGMENT))


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (EngineTensor("extra", "int64", is_input=True, on_device=True), "see int64 extra"),
        (EngineTensor("scores.new", "float32", is_input=False, on_device=True), "scores.new"),
    ],
)
def test_load_names_the_tensor_that_manifest_and_engine_do_not_share(
    built: Path, monkeypatch: pytest.MonkeyPatch, tensor: EngineTensor, said: str
) -> None:
    own = HostEngine.tensors.fget
    monkeypatch.setattr(HostEngine, "tensors", property(lambda self: (*own(self), tensor)))
    with pytest.raises(InputError, match=said) as raised:
        Bench.of(built)
    assert "atp-export engines" in raised.value.fix


def test_load_refuses_an_engine_that_wants_an_input_on_the_host(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = HostEngine.tensors.fget

    def one_on_host(self: HostEngine) -> tuple[EngineTensor, ...]:
        return tuple(replace(it, on_device=it.name != "text_rows") for it in own(self))

    monkeypatch.setattr(HostEngine, "tensors", property(one_on_host))
    with pytest.raises(InputError, match="wants text_rows in host memory"):
        Bench.of(built)


def test_load_refuses_profiles_that_are_not_the_engines(own_bundle: Path) -> None:
    def without_decode(engines: EngineSet) -> EngineSet:
        engine = engines.engines[SEGMENT]
        fewer = replace(engine, profiles=engine.profiles[:1])
        return replace(engines, engines={**engines.engines, SEGMENT: fewer})

    write_engines(own_bundle, change=without_decode)
    with pytest.raises(InputError, match="its engine's profiles"):
        Bench.of(own_bundle)

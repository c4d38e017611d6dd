"""Runs stages with TensorRT engines that were built on this machine.

Everything is enqueued on one stream; the host waits for scores and logits only. Not yet run on a
GPU: the tests run it on host memory, with engines that execute the stages' ONNX graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from weakref import WeakSet

from atp_runtime.backends.base import ALIGNMENT, DeviceArray, DeviceBuffer, LoadedStage
from atp_runtime.backends.device import Device
from atp_runtime.backends.device_backend import DeviceBackend
from atp_runtime.backends.engine_context import EngineContext
from atp_runtime.backends.engine_files import checked_plan, find_engines
from atp_runtime.backends.engine_library import EngineError, EngineLibrary, PlanEngine
from atp_runtime.backends.engine_profiles import (
    axis_places,
    check_profiles,
    choose_profile,
    longest_lengths,
)
from atp_runtime.backends.layer_log import LayerLog
from atp_runtime.backends.recorded_run import RecordedRun
from atp_runtime.backends.signature import check_signature
from atp_runtime.bundle import Bundle
from atp_runtime.engine_set import EngineProfile, Target
from atp_runtime.errors import AtpError, InputError, MachineError
from atp_runtime.manifest import Stage, TensorSpec

_AGAIN = "build the engines again: atp-export engines BUNDLE."


class TensorRtBackend(DeviceBackend):
    """TensorRT on one GPU.

    Args:
        device: The GPU.
        library: TensorRT.
        graphs: Whether runs that repeat are recorded as CUDA graphs.
        layers: Told what every layer takes, which makes the host wait for every run; None without.
            Recorded runs are not told, so `graphs` must be False.

    Attributes:
        layers: The same.
    """

    def __init__(
        self,
        device: Device,
        library: EngineLibrary,
        *,
        graphs: bool = True,
        layers: LayerLog | None = None,
    ) -> None:
        super().__init__(device)
        self.replays = graphs
        self.layers = layers
        self._library = library
        self._target = Target(library.name, library.version, device.sm, device.name)
        self._scratch = device.allocate(0)

    @property
    def scratch(self) -> DeviceBuffer:
        """Working memory of all engines, of which one runs at a time."""
        return self._scratch

    def load(self, bundle: Bundle, stage: Stage) -> LoadedStage:
        """Loads the stage's engine.

        Raises:
            InputError: There is none for this machine, it is incomplete, or it contradicts the
                manifest.
            CheckFailedError: It is not the one that was built.
            MachineError: Memory does not suffice, or the file cannot be read.
        """
        engine, plan = checked_plan(bundle, find_engines(bundle, self._target), stage)
        try:
            loaded = self._library.load(plan, self.device)
            context = EngineContext(loaded.context())
            self._provide_scratch(loaded.scratch_bytes)
        except EngineError as error:
            raise _load_error(stage, error) from error
        _check_tensors(stage, loaded)
        return _TensorRtStage(stage, loaded, context, engine.profiles, self)

    def _provide_scratch(self, nbytes: int) -> None:
        if nbytes > self._scratch.nbytes:
            # The old block goes first, so that both are never held; stages look where it is.
            self._scratch = self.device.allocate(0)
            self._scratch = self.device.allocate(nbytes)


class _TensorRtStage(LoadedStage):
    """An engine with one context for runs as they come, and one for each run that is recorded."""

    def __init__(
        self,
        stage: Stage,
        engine: PlanEngine,
        context: EngineContext,
        profiles: tuple[EngineProfile, ...],
        backend: TensorRtBackend,
    ) -> None:
        self._places = axis_places(stage)
        check_profiles(stage, profiles, engine.profiles, list(self._places))
        self.longest = longest_lengths(profiles, list(self._places))
        self._stage = stage
        self._engine = engine
        self._context = context
        self._profiles = profiles
        self._backend = backend
        self._stand_ins: dict[str, DeviceBuffer] = {}
        self._recorded: WeakSet[RecordedRun] = WeakSet()

    def run(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> None:
        """Tells the context what changed since the last run, then enqueues one."""
        profile = self._choose_profile(inputs, outputs)
        self._backend.stage_started()
        try:
            taken = {name: self._aligned_input(name, array) for name, array in inputs.items()}
            written = {name: self._aligned(name, array) for name, array in outputs.items()}
            self._context.prepare(profile, self._backend.scratch, taken, written)
            if self._backend.layers is None:
                self._context.enqueue()
            else:
                name = self._profiles[profile].name
                self._backend.layers.run(self._stage.name, name, self._context)
        except EngineError as error:
            raise _run_error(self._stage, error) from error
        for name, array in outputs.items():
            if written[name] is not array:
                self._backend.copy(array, written[name])

    def repeatable(
        self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]
    ) -> Callable[[], None]:
        """A run that is recorded when it is made again, if the backend records at all."""
        aligned = all(it.address % ALIGNMENT == 0 for it in (*inputs.values(), *outputs.values()))
        if not (self._backend.replays and aligned):
            return super().repeatable(inputs, outputs)
        profile = self._choose_profile(inputs, outputs)
        try:
            context = EngineContext(self._engine.context())
        except EngineError as error:
            raise _run_error(self._stage, error) from error
        backend = self._backend
        run = RecordedRun(
            backend.device, context, profile, lambda: backend.scratch, inputs, outputs
        )
        self._recorded.add(run)
        return partial(self._repeat, run)

    def close(self) -> None:
        """Waits for what is running, then gives contexts and weights back."""
        self._backend.synchronise()
        for run in self._recorded:
            run.close()
        self._context.close()
        self._engine.close()

    def _repeat(self, run: RecordedRun) -> None:
        self._backend.stage_started()
        try:
            self._backend.traffic.replays += run.enqueue()
        except EngineError as error:
            raise _run_error(self._stage, error) from error

    def _choose_profile(
        self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]
    ) -> int:
        lengths = {axis: inputs[name].shape[i] for axis, (name, i) in self._places.items()}
        profile = choose_profile(self._stage, self._profiles, lengths)
        self._check(inputs, outputs, lengths)
        return profile

    def _aligned_input(self, name: str, array: DeviceArray) -> DeviceArray:
        aligned = self._aligned(name, array)
        if aligned is not array and array.nbytes:
            self._backend.copy(aligned, array)
        return aligned

    def _aligned(self, name: str, array: DeviceArray) -> DeviceArray:
        """The array itself, or a stand-in at an address that TensorRT takes.

        Only small models need one: where a position's keys, or a hidden state, are no multiple of
        `ALIGNMENT` bytes.
        """
        if array.address % ALIGNMENT == 0:
            return array
        buffer = self._stand_ins.get(name)
        if buffer is None or buffer.nbytes < array.nbytes:
            buffer = self._stand_ins[name] = self._backend.allocate(array.nbytes)
        return buffer.array(array.shape, array.dtype)

    def _check(
        self,
        inputs: Mapping[str, DeviceArray],
        outputs: Mapping[str, DeviceArray],
        lengths: Mapping[str, int],
    ) -> None:
        """TensorRT trusts addresses, so what does not fit would be written elsewhere."""
        shapes: dict[tuple[int | str, ...], tuple[int, ...]] = {}
        for specs, arrays in ((self._stage.inputs, inputs), (self._stage.outputs, outputs)):
            for spec in specs:
                shape = shapes.get(spec.shape)
                if shape is None:
                    shape = shapes[spec.shape] = _resolve(spec.shape, lengths)
                array = arrays[spec.name]
                if array.shape != shape or array.dtype != spec.dtype:
                    raise _misfit(self._stage, spec, shape, array)


def _resolve(shape: tuple[int | str, ...], lengths: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(lengths[it] if isinstance(it, str) else it for it in shape)


def _misfit(
    stage: Stage, spec: TensorSpec, shape: tuple[int, ...], array: DeviceArray
) -> InputError:
    return InputError(
        f"stage {stage.name}: {spec.name} is {array.dtype} {list(array.shape)}",
        why=f"with the other inputs as they are, it must be {spec.dtype} {list(shape)}.",
        fix="use a bundle whose parts were exported together; run atp-export verify on it.",
    )


def _check_tensors(stage: Stage, engine: PlanEngine) -> None:
    inputs, outputs = (
        [(it.name, it.dtype) for it in engine.tensors if it.is_input is wanted]
        for wanted in (True, False)
    )
    check_signature(stage, inputs, outputs, fix=_AGAIN)
    on_host = [it.name for it in engine.tensors if not it.on_device]
    if on_host:
        raise InputError(
            f"stage {stage.name}: its engine wants {on_host[0]} in host memory",
            why="everything between two stages stays on the GPU.",
            fix="export the bundle again with atp-export, then build the engines again.",
        )


def _load_error(stage: Stage, error: EngineError) -> AtpError:
    if error.out_of_memory:
        return _memory_error(stage, error)
    return InputError(
        f"stage {stage.name}: {error}", why="TensorRT cannot load its engine.", fix=_AGAIN
    )


def _run_error(stage: Stage, error: EngineError) -> AtpError:
    if error.out_of_memory:
        return _memory_error(stage, error)
    return MachineError(
        f"stage {stage.name}: {error}",
        why="TensorRT failed while it ran the engine.",
        fix="start again. If it happens again, build the engines again, or run the same with "
        "--backend onnxruntime.",
    )


def _memory_error(stage: Stage, error: EngineError) -> MachineError:
    return MachineError(
        f"stage {stage.name}: not enough GPU memory",
        why=f"TensorRT says: {error}",
        fix="close other programs, use a shorter prompt, or build engines that need less: "
        "atp-export engines BUNDLE --max-tokens N.",
    )

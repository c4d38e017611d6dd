"""A TensorRT whose engines run the stages' ONNX graphs on a `HostDevice`.

It has TensorRT's rules, and ends the test that breaks one: shapes within the profile, set again
when that changes; addresses aligned and never null; scratch memory as large as it was asked for;
a run that is captured follows one that is not, and holds while its context is told nothing new.
"""

import ctypes
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from weakref import WeakSet

import numpy as np
import onnx
import onnxruntime
from tests.runtime.backends.host_device import HostDevice

from atp_runtime.backends.base import ALIGNMENT, item_size
from atp_runtime.backends.device import Device
from atp_runtime.backends.engine_library import EngineError, EngineTensor, LayerTime
from atp_runtime.backends.tensorrt import TensorRtBackend
from atp_runtime.engine_set import (
    DECODE,
    ENGINES_NAME,
    FORMAT,
    PREFILL,
    SCHEMA_VERSION,
    Engine,
    EngineProfile,
    EngineSet,
    Target,
    dump_engine_set,
)
from atp_runtime.manifest import AxisRange, FileRecord, Manifest, Stage, read_manifest

VERSION = "10.3.0"
TARGET = Target("tensorrt", VERSION, 87, "Host")
_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}
_SCRATCH = {"vision": 5000, "segment": 3000, "head": 0}

Profiles = tuple[EngineProfile, ...]


class HostLibrary:
    """What loads them.

    Attributes:
        engines: Those that were loaded, by stage.
        fault: Raised by the next thing an engine is asked to enqueue.
    """

    name, version = "tensorrt", VERSION

    def __init__(self) -> None:
        self.engines: dict[str, HostEngine] = {}
        self.fault: EngineError | None = None

    def load(self, plan: Path, device: Device) -> "HostEngine":
        assert isinstance(device, HostDevice)
        try:
            content = json.loads(plan.read_bytes())
        except ValueError as error:
            raise EngineError("the plan is damaged") from error
        engine = HostEngine(self, content, device)
        self.engines[content["stage"]] = engine
        return engine


class HostEngine:
    """A graph, with contexts like TensorRT's.

    Attributes:
        told: How often what was set, in whichever context.
        contexts: Those that are still referred to.
    """

    def __init__(
        self, library: HostLibrary, plan: Mapping[str, object], device: HostDevice
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(
            plan["graph"], options, providers=["CPUExecutionProvider"]
        )
        nodes = onnx.load(plan["graph"], load_external_data=False).graph.node
        self.layers = [node.name or node.output[0] for node in nodes]
        self.detailed = plan["detailed"]
        self.library = library
        self.device = device
        self.ranges = plan["profiles"]
        self.scratch_bytes = plan["scratch"]
        self.profiles = len(plan["profiles"])
        self.told: Counter[str] = Counter()
        self.contexts: WeakSet[HostContext] = WeakSet()
        self.dtypes = {tensor.name: tensor.dtype for tensor in self.tensors}
        self.closed = False

    @property
    def tensors(self) -> tuple[EngineTensor, ...]:
        return tuple(
            EngineTensor(node.name, _TYPES[node.type], is_input, on_device=True)
            for is_input, nodes in (
                (True, self.session.get_inputs()),
                (False, self.session.get_outputs()),
            )
            for node in nodes
        )

    def context(self) -> "HostContext":
        context = HostContext(self)
        self.contexts.add(context)
        return context

    def close(self) -> None:
        assert not self.device._work
        assert all(context.closed for context in self.contexts)
        self.closed = True


class HostContext:
    """What a context remembers from run to run."""

    def __init__(self, engine: HostEngine) -> None:
        self._engine = engine
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = (0, 0)
        self._told = 0
        self._ran_at = -1
        self._timed = False
        self.closed = False

    def _count(self, what: str) -> None:
        self._engine.told[what] += 1
        self._told += 1

    def set_scratch(self, address: int, nbytes: int) -> None:
        self._count("scratch")
        assert address % ALIGNMENT == 0
        assert nbytes >= self._engine.scratch_bytes
        self._scratch = address, nbytes

    def set_profile(self, index: int) -> None:
        self._count("profile")
        assert 0 <= index < self._engine.profiles
        self._profile = index
        self._shapes.clear()

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self._count("shape")
        least, most = self._engine.ranges[self._profile][name]
        if not all(a <= length <= b for a, length, b in zip(least, shape, most, strict=True)):
            raise EngineError(f"{name}: {shape} is not between {least} and {most}")
        self._shapes[name] = shape

    def set_address(self, name: str, address: int) -> None:
        self._count("address")
        assert name in self._engine.dtypes
        assert address
        assert address % ALIGNMENT == 0
        self._addresses[name] = address

    def enqueue(self) -> None:
        engine = self._engine
        engine.told["run"] += 1
        if engine.library.fault:
            raise engine.library.fault
        assert self._shapes.keys() == {node.name for node in engine.session.get_inputs()}
        assert self._addresses.keys() == engine.dtypes.keys()
        assert self._scratch[1] >= engine.scratch_bytes
        if engine.device.recording is not None:
            assert self._ran_at == self._told, "the first run cannot be captured"
        assert not (self._timed and engine.device.recording), "timed runs cannot be captured"
        self._ran_at = self._told
        shapes, addresses, scratch = dict(self._shapes), dict(self._addresses), self._scratch
        told = self._told if engine.device.recording is not None else None
        engine.device.enqueue(lambda: self._execute(shapes, addresses, scratch, told))

    def _execute(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
        scratch: tuple[int, int],
        captured: int | None,
    ) -> None:
        engine = self._engine
        assert captured in (None, self._told), "the context is not what it was when captured"
        feeds = {
            name: array_at(addresses[name], shape, engine.dtypes[name])
            for name, shape in shapes.items()
        }
        names = [node.name for node in engine.session.get_outputs()]
        results = engine.session.run(names, feeds)
        # Before the outputs, so that it is noticed if these lie in the scratch memory.
        ctypes.memset(scratch[0], 0x5A, scratch[1])
        for name, result in zip(names, results, strict=True):
            array_at(addresses[name], result.shape, engine.dtypes[name])[...] = result

    def run_timed(self) -> tuple[LayerTime, ...]:
        """The time is the graph's own, as if each node took the same."""
        self._timed = True
        began = perf_counter()
        self.enqueue()
        self._engine.device.synchronise()
        each = 1e3 * (perf_counter() - began) / len(self._engine.layers)
        return tuple(LayerTime(f"{name}{self._suffix}", each) for name in self._engine.layers)

    def describe(self) -> str:
        """As TensorRT has it: layers of a later profile are told apart by their names."""
        names = [f"{name}{self._suffix}" for name in self._engine.layers]
        layers = [{"Name": name, "LayerType": "Node"} for name in names]
        told = layers if self._engine.detailed else names
        return json.dumps({"Layers": told, "Bindings": list(self._shapes)})

    @property
    def _suffix(self) -> str:
        return f" [profile {self._profile}]" if self._profile else ""

    def close(self) -> None:
        assert not self._engine.device._work
        self.closed = True


def array_at(address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    size = math.prod(shape) * item_size(dtype)
    if not size:
        return np.empty(shape, dtype=dtype)
    content = (ctypes.c_uint8 * size).from_address(address)
    return np.frombuffer(content, dtype=dtype).reshape(shape)


def host_backend(*, integrated: bool = False, graphs: bool = True) -> TensorRtBackend:
    """The TensorRT backend on host memory."""
    return TensorRtBackend(HostDevice(integrated=integrated), HostLibrary(), graphs=graphs)


def segment_profiles(stage: Stage, longest: int) -> Profiles:
    """A prefill profile for up to `longest` of everything and, for a segment, one to decode."""
    axes = sorted({it for spec in stage.inputs for it in spec.shape if isinstance(it, str)})
    prefill = {axis: AxisRange(int(axis != "past"), 1, longest) for axis in axes}
    if stage.kind != "segment":
        return (EngineProfile(PREFILL, prefill),)
    one = AxisRange(1, 1, 1)
    decode = {axis: prefill[axis] if axis == "past" else one for axis in axes}
    return EngineProfile(PREFILL, prefill), EngineProfile(DECODE, decode)


def write_engines(
    root: Path,
    *,
    longest: int = 64,
    detailed: bool = True,
    change: Callable[[EngineSet], EngineSet] = lambda it: it,
) -> EngineSet:
    """Gives a bundle an engine per stage, for sequences up to `longest`.

    Args:
        root: The bundle's directory.
        longest: Of every axis.
        detailed: Whether their layers can be told by more than their names.
        change: Applied to what `engines.json` is to say.
    """
    manifest = read_manifest(root)
    directory = root / TARGET.directory
    directory.mkdir(parents=True, exist_ok=True)
    engines = {
        stage.name: _write_engine(root, directory, manifest, stage, longest, detailed)
        for stage in manifest.stages
    }
    written = change(EngineSet(FORMAT, SCHEMA_VERSION, TARGET, manifest.dialect, engines))
    (root / written.target.directory).mkdir(parents=True, exist_ok=True)
    (root / written.target.directory / ENGINES_NAME).write_text(dump_engine_set(written))
    return written


def _write_engine(
    root: Path, directory: Path, manifest: Manifest, stage: Stage, longest: int, detailed: bool
) -> Engine:
    profiles = segment_profiles(stage, longest)
    plan = {
        "stage": stage.name,
        "graph": str(root / stage.graph),
        "scratch": _SCRATCH[stage.kind],
        "profiles": [_ranges(stage, profile) for profile in profiles],
        "detailed": detailed,
    }
    content = json.dumps(plan).encode()
    (directory / f"{stage.name}.plan").write_bytes(content)
    sources = {name: manifest.files[name].sha256 for name in (stage.graph, *stage.data)}
    return Engine(f"{stage.name}.plan", record(content), "", profiles, 1, 0, 0.5, sources)


def record(content: bytes) -> FileRecord:
    return FileRecord(len(content), hashlib.sha256(content).hexdigest())


def _ranges(stage: Stage, profile: EngineProfile) -> dict[str, tuple[list[int], list[int]]]:
    def lengths(shape: tuple[int | str, ...], end: str) -> list[int]:
        return [it if isinstance(it, int) else getattr(profile.axes[it], end) for it in shape]

    return {
        spec.name: (lengths(spec.shape, "minimum"), lengths(spec.shape, "maximum"))
        for spec in stage.inputs
    }

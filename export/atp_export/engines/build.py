"""Builds the engine of one stage: parse the graph, configure, build, look inside.

TensorRT networks are strongly typed: precision is what the graph says. Polygraphy creates the
network and the configuration and runs the builder; its own loader of ONNX files is not used,
because it prints what the parser complains of instead of giving it back.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from atp_export.engines.failures import (
    BuildFailedError,
    GraphRefusedError,
    Problem,
    error_recorder,
    parser_problems,
)
from atp_export.engines.inspection import (
    Inspection,
    Network,
    inspect_network,
    inspect_plan,
    let_attention_decompose,
)
from atp_export.engines.library import Library
from atp_export.engines.monitor import BuildMonitor, run_interruptibly, trt_monitor
from atp_export.engines.options import EngineOptions
from atp_export.engines.profiles import profile_shapes
from atp_runtime.engine_set import EngineProfile
from atp_runtime.manifest import Stage

# What `atp-profile` tells of layers is kept in the plan: names, shapes, types, tactics.
PROFILING_VERBOSITY = "DETAILED"


@dataclass(frozen=True, eq=False)
class BuiltEngine:
    """An engine in memory.

    Attributes:
        plan: The serialised engine.
        network: What the parser made of the graph.
        inspection: What the engine looks like inside; None without a GPU, where none can be opened.
        timing_cache: What was given plus what was measured; empty where the library keeps none.
        seconds: Parsing and building took.
    """

    plan: memoryview
    network: Network
    inspection: Inspection | None
    timing_cache: bytes
    seconds: float


@dataclass(frozen=True, eq=False)
class _Order:
    """What to build, and who watches."""

    library: Library
    graph: Path
    stage: Stage
    profiles: Sequence[EngineProfile]
    options: EngineOptions
    monitor: BuildMonitor
    timing_cache: bytes
    cancelled: threading.Event


@dataclass(frozen=True, eq=False)
class _Made:
    """What came of it: a plan; or what the parser refused; or neither, if the builder failed."""

    network: Network
    refusals: tuple[Problem, ...] = ()
    plan: memoryview | None = None
    timing_cache: bytes = b""


def build_stage(
    library: Library,
    graph: Path,
    stage: Stage,
    profiles: Sequence[EngineProfile],
    options: EngineOptions,
    monitor: BuildMonitor,
    timing_cache: bytes = b"",
) -> BuiltEngine:
    """Builds a stage's engine; writes nothing.

    Args:
        library: What builds, and for which GPU.
        graph: The ONNX file; its weights lie beside it.
        stage: Whose graph it is.
        profiles: In the order of their indices in the engine.
        options: Of them `workspace_bytes` and `optimisation_level` are used here.
        monitor: Told about phases and steps.
        timing_cache: What earlier builds for the same target measured.

    Raises:
        GraphRefusedError: The parser refuses the graph.
        BuildFailedError: The builder fails, for want of memory or a kernel.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    cancelled = threading.Event()
    order = _Order(library, graph, stage, profiles, options, monitor, timing_cache, cancelled)
    return run_interruptibly(lambda: _build(order), cancelled)


def _build(order: _Order) -> BuiltEngine:
    start = perf_counter()
    with _quiet_polygraphy():
        # The network refers to these two without owning them: they have to outlive it.
        recorder = error_recorder(order.library.trt)
        progress = trt_monitor(order.library.trt, order.monitor, order.cancelled)
        made = _make(order, recorder, progress)
        seconds = perf_counter() - start
        # What failed is raised here, where nothing of TensorRT is alive but these two: exceptions
        # keep what they passed alive, and let go of it in an order that TensorRT does not survive.
        if made.refusals:
            raise GraphRefusedError(order.stage.name, made.refusals)
        if made.plan is None:
            if order.cancelled.is_set():
                raise KeyboardInterrupt
            limit = order.options.workspace_bytes
            raise BuildFailedError(order.stage.name, recorder.problems, limit)
        inspection = inspect_plan(order.library, made.plan) if order.library.has_gpu else None
    return BuiltEngine(made.plan, made.network, inspection, made.timing_cache, seconds)


def _make(order: _Order, recorder: Any, progress: Any) -> _Made:
    from polygraphy.backend.trt import (  # noqa: PLC0415 - loads TensorRT
        CreateNetwork,
        engine_bytes_from_network,
        get_trt_logger,
    )
    from polygraphy.exception import PolygraphyException  # noqa: PLC0415

    builder, network = CreateNetwork(strongly_typed=True)()
    builder.error_recorder = recorder
    parser = order.library.trt.OnnxParser(network, get_trt_logger())
    # From the file, not from bytes: the weights are found relative to it.
    if not parser.parse_from_file(str(order.graph)) or parser.num_errors:
        return _Made(inspect_network(network), parser_problems(parser))
    parsed = inspect_network(network)
    let_attention_decompose(order.library.trt, network)
    try:
        config = _configure(builder, network, order, progress)
        # The parser owns the weights that the network refers to.
        plan = engine_bytes_from_network((builder, network, parser), config=config)
    except (PolygraphyException, MemoryError) as error:
        if not recorder.problems:  # which are TensorRT's own, and say more
            recorder.problems.append(Problem(str(error) or "out of memory"))
        return _Made(parsed)
    return _Made(parsed, plan=memoryview(plan), timing_cache=_timing_cache(config))


def _configure(builder: Any, network: Any, order: _Order, progress: Any) -> Any:
    from polygraphy.backend.trt import CreateConfig, Profile  # noqa: PLC0415

    trt, options = order.library.trt, order.options
    profiles = []
    for profile in order.profiles:
        shapes = Profile()
        for name, shape in profile_shapes(order.stage, profile).items():
            shapes.add(name, shape.minimum, shape.opt, shape.maximum)
        profiles.append(shapes)
    pools: Mapping[Any, int] | None = None
    if options.workspace_bytes is not None:
        pools = {trt.MemoryPoolType.WORKSPACE: options.workspace_bytes}
    config = CreateConfig(
        profiles=profiles,
        load_timing_cache=io.BytesIO(order.timing_cache) if order.timing_cache else None,
        memory_pool_limits=pools,
        builder_optimization_level=options.optimisation_level,
        profiling_verbosity=getattr(trt.ProfilingVerbosity, PROFILING_VERBOSITY),
        progress_monitor=progress,
    )(builder, network)
    if not order.library.has_gpu:
        capability = getattr(trt.ComputeCapability, f"SM{order.library.target.sm}")
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability, 0)
    return config


def _timing_cache(config: Any) -> bytes:
    """What was measured; nothing if the library only pretends, as TensorRT-RTX does."""
    filled = bytes(memoryview(config.get_timing_cache().serialize()))
    empty = bytes(memoryview(config.create_timing_cache(b"").serialize()))
    return b"" if filled == empty else filled


@contextmanager
def _quiet_polygraphy() -> Iterator[None]:
    """Keeps Polygraphy, which prints on standard output, from printing."""
    from polygraphy.logger import G_LOGGER  # noqa: PLC0415

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
        yield

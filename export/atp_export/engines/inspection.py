"""Looks into what the parser made of a graph and, on a GPU, into what the builder made of that."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atp_export.engines.failures import error_recorder, told
from atp_export.engines.library import Library
from atp_runtime.errors import MachineError


@dataclass(frozen=True)
class Network:
    """A graph as the parser understood it, before fusion.

    Attributes:
        layers: How many there are.
        types: How many of their outputs have each type, by TensorRT's name for it.
    """

    layers: int
    types: Mapping[str, int]


@dataclass(frozen=True)
class Inspection:
    """What an engine looks like inside.

    Attributes:
        layers: After fusion.
        scratch_bytes: Device memory that a context needs besides weights, inputs and outputs.
        precisions: How many layers give out each type, as the engine inspector calls it; empty
            where it does not tell.
    """

    layers: int
    scratch_bytes: int
    precisions: Mapping[str, int]


def inspect_network(network: Any) -> Network:
    """Counts the layers of a `trt.INetworkDefinition` and the types of their outputs."""
    types: Counter[str] = Counter()
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        types.update(layer.get_output(place).dtype.name for place in range(layer.num_outputs))
    return Network(network.num_layers, dict(types))


def let_attention_decompose(trt: Any, network: Any) -> None:
    """Allows attention to become several kernels where there is no fused one.

    TensorRT refuses such a graph otherwise: TensorRT-RTX 1.7.1 any attention in FP32. Where there
    is a fused kernel, it is taken all the same.
    """
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if kind is not None and layer.type == kind:
            # What `get_layer` returns is an `ILayer`; this is how TensorRT's own samples cast it.
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def inspect_plan(library: Library, plan: memoryview) -> Inspection:
    """Opens an engine on the GPU, looks into it and closes it. Not yet run on a GPU.

    Raises:
        MachineError: It cannot be opened, perhaps for want of memory.
    """
    recorder = error_recorder(library.trt)  # has to outlive what refers to it
    found = _open_and_look(library.trt, plan, recorder)
    if found is None:
        raise MachineError(
            "an engine that was just built cannot be opened",
            why=f"it would not run either. TensorRT says: {told(recorder.problems)}",
            fix="close other programs, for memory has to hold its weights, and try again.",
        )
    return found


def _open_and_look(trt: Any, plan: memoryview, recorder: Any) -> Inspection | None:
    from polygraphy.backend.trt import get_trt_logger  # noqa: PLC0415 - loads TensorRT

    runtime = trt.Runtime(get_trt_logger())
    runtime.error_recorder = recorder
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return None
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return Inspection(engine.num_layers, _scratch_bytes(engine), layer_precisions(text))


def layer_precisions(text: str) -> dict[str, int]:
    """Counts the types of layers' outputs in an inspector's JSON.

    Args:
        text: What it gave; with less verbosity it lists layers by their names alone.
    """
    layers = json.loads(text).get("Layers", [])
    found: Counter[str] = Counter()
    for layer in layers:
        outputs = layer.get("Outputs", []) if isinstance(layer, dict) else []
        found.update({str(output.get("Format/Datatype", "unknown")) for output in outputs})
    return dict(found)


def _scratch_bytes(engine: Any) -> int:
    # TensorRT 10.1 brought the second form, 11 took the first away.
    size = getattr(engine, "device_memory_size_v2", None)
    return int(engine.device_memory_size if size is None else size)

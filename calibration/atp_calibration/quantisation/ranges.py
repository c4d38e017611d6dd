"""Min-max calibration: the largest magnitude that enters each linear layer, seen on samples.

The samples run through the device runtime, so what is seen is what is there after pruning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from atp_calibration.quantisation.linear_layers import linear_layers
from atp_runtime.backends.base import DeviceArray, LoadedStage
from atp_runtime.backends.onnxruntime import OnnxRuntimeBackend
from atp_runtime.bundle import Bundle
from atp_runtime.manifest import Stage

_ONLY_FATAL = 4

Ranges = dict[str, float]
"""The largest magnitude that entered, by the names of linear layers."""


class RangeBackend(OnnxRuntimeBackend):
    """ONNX Runtime, watching what enters the linear layers of every stage.

    Attributes:
        ranges: What was seen so far, by stage.
    """

    def __init__(self, *, threads: int | None = None) -> None:
        super().__init__(threads=threads)
        self.ranges: dict[str, Ranges] = {}

    def load(self, bundle: Bundle, stage: Stage) -> LoadedStage:
        """Loads a stage; those without linear layers run as they always do."""
        path = bundle.path(stage.graph)
        model = ir.load(path)
        watched = watch_inputs(model)
        if not watched:
            return super().load(bundle, stage)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ONLY_FATAL
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(path.parent)
        )
        graph = ir.serde.serialize_model(model).SerializeToString()
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return _WatchedStage(session, self, watched, self.ranges.setdefault(stage.name, {}))


def watch_inputs(model: ir.Model) -> dict[str, str]:
    """Adds the largest magnitude of each linear layer's input to the outputs of a graph.

    Returns:
        The output by the name of the layer; layers that read the same value share one.
    """
    watched: dict[ir.Value, str] = {}
    layers = list(linear_layers(model))
    for value in dict.fromkeys(layer.activation for layer in layers):
        magnitude = ir.node("Abs", [value])
        largest = ir.node("ReduceMax", [magnitude.outputs[0]], {"keepdims": 0})
        wide = ir.node("Cast", [largest.outputs[0]], {"to": ir.DataType.FLOAT})
        model.graph.extend([magnitude, largest, wide])
        output = wide.outputs[0]
        output.name = watched[value] = f"largest.{value.name}"
        output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        model.graph.outputs.append(output)
    return {layer.name: watched[layer.activation] for layer in layers}


class _WatchedStage(LoadedStage):
    def __init__(
        self, session: Any, backend: RangeBackend, watched: Mapping[str, str], seen: Ranges
    ) -> None:
        self._session = session
        self._backend = backend
        self._watched = watched
        self._seen = seen
        self._names = [node.name for node in session.get_outputs()]

    def run(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> None:
        backend = self._backend
        feeds = {name: np.array(backend.download(array)) for name, array in inputs.items()}
        found = dict(zip(self._names, self._session.run(self._names, feeds), strict=True))
        for name, array in outputs.items():
            backend.write(array, found[name])
        for layer, output in self._watched.items():
            self._seen[layer] = max(self._seen.get(layer, 0.0), float(found[output]))

    def close(self) -> None:
        self._session = None

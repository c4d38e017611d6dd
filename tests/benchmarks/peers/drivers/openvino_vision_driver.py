"""OpenVINO: the tower's ONNX graph, as this project exports it."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from protocol import Generate, Told, serve, tell_features

# Left to itself it computes in bfloat16 where the processor does.
_EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


def open_model(job: dict[str, Any]) -> Generate:
    """Compiles the graph for the CPU."""
    settings = _EXACT if job["precision"] == "fp32" else {}
    threads = {"INFERENCE_NUM_THREADS": job["threads"], "PERFORMANCE_HINT": "LATENCY"}
    model = ov.Core().compile_model(job["artefact"], "CPU", {**threads, **settings})
    _, *size = (it.max_length for it in model.input(0).partial_shape)
    pixels = np.random.default_rng(0).standard_normal(size).astype(np.float32)[None]

    def generate(case: dict[str, Any], told: Told) -> None:
        tell_features(model(pixels)[0][0], case, told)

    return generate


serve(open_model, "openvino")

"""INT8 copies of a bundle's graphs, good enough to ask whether TensorRT takes them.

Ranges are min-max over a few made pictures. They decide the numbers in the graph and nothing
about its form; for answers that are still right, calibrate.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import psutil
from PIL import Image

from atp_calibration.quantisation.linear_layers import linear_layers
from atp_calibration.quantisation.qdq import quantise
from atp_calibration.quantisation.ranges import RangeBackend, Ranges
from atp_runtime.bundle import Bundle
from atp_runtime.generation import GenerationOptions
from atp_runtime.session import Session

_QUESTIONS = ("What is in the picture?", "How many are there?", "Describe the picture.")
_NEW_TOKENS = 4
_ASSUMED = 16.0
# ONNX Runtime's CPU computes FP16 in FP32: twice the bytes for the weights, and room to work.
_MEMORY_FACTOR = {"fp16": 2.5, "fp32": 1.25}


def sampled_ranges(bundle: Bundle) -> dict[str, Ranges] | None:
    """What enters the linear layers of each stage when the bundle answers a few questions.

    Returns:
        Ranges by stage, or None where the machine has not the memory to run the bundle.
    """
    needed = sum(record.bytes for record in bundle.manifest.files.values())
    if needed * _MEMORY_FACTOR[bundle.manifest.precision] > psutil.virtual_memory().available:
        return None
    backend = RangeBackend()
    options = GenerationOptions(max_new_tokens=_NEW_TOKENS)
    with Session(bundle, backend) as session:
        for number, question in enumerate(_QUESTIONS):
            session.ask(question, [_picture(number)], options)
    return backend.ranges


def assumed_ranges(bundle: Bundle) -> dict[str, Ranges]:
    """The same number for every layer, where nothing could be run."""
    return {
        stage.name: {
            layer.name: _ASSUMED for layer in linear_layers(ir.load(bundle.path(stage.graph)))
        }
        for stage in bundle.manifest.stages
    }


def write_int8(graph: Path, ranges: Mapping[str, float], into: Path) -> bool:
    """Writes an INT8 copy of a graph with all its weights.

    Args:
        graph: The ONNX file of a stage.
        ranges: Of its linear layers.
        into: The ONNX file to write; weights go beside it.

    Returns:
        Whether there was anything to quantise; if not, nothing is written.
    """
    model = ir.load(graph)
    if quantise(model, ranges) == 0:
        return False
    ir.save(model, into, external_data=f"{into.stem}.data")
    return True


def _picture(number: int) -> Image.Image:
    """Coarse random colours, smoothly enlarged: no photo, and neither flat nor pure noise."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((336, 336), Image.Resampling.BICUBIC)

"""This project's runtime: the vision stages of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from protocol import Generate, Told, serve, tell_features

from atp_runtime.backends import open_backend
from atp_runtime.bundle import Bundle
from atp_runtime.vision_stages import VisionStages


def open_model(job: dict[str, Any]) -> Generate:
    """Loads the tower and the projector of a bundle."""
    backend = open_backend("onnxruntime", threads=job["threads"])
    bundle = backend.fastest_view(Bundle.open(Path(job["artefact"])))
    stages = VisionStages(bundle, backend)
    size = bundle.manifest.vision.image_size
    pixels = np.random.default_rng(0).standard_normal((3, *size)).astype(np.float32)

    def generate(case: dict[str, Any], told: Told) -> None:
        tell_features(stages.tokens(pixels).values, case, told)

    return generate


serve(open_model, "onnxruntime")

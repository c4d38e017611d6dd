"""Transformers, SDPA: the tower and the projector of a LLaVA."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from protocol import Generate, Told, serve, tell_features
from transformers import LlavaForConditionalGeneration

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def open_model(job: dict[str, Any]) -> Generate:
    """Loads the checkpoint, and lets its decoder go."""
    torch.set_num_threads(job["threads"])
    dtype = _DTYPES[job["precision"]]
    model = LlavaForConditionalGeneration.from_pretrained(
        job["artefact"], dtype=dtype, attn_implementation="sdpa"
    ).eval()
    side = model.config.vision_config.image_size
    model.model.language_model = None
    pixels = np.random.default_rng(0).standard_normal((3, side, side)).astype(np.float32)
    values = torch.from_numpy(pixels)[None].to(dtype)

    @torch.inference_mode()
    def generate(case: dict[str, Any], told: Told) -> None:
        features = model.model.get_image_features(values).pooler_output[0]
        tell_features(features.float().numpy(), case, told)

    return generate


serve(open_model, "transformers", "torch")

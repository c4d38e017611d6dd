"""OpenVINO GenAI's LLMPipeline: a directory that Optimum Intel exported."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import openvino_genai
from protocol import Generate, Told, serve

# Left to itself it computes in bfloat16 where the processor does, and keeps caches in 8 bits.
_EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


class _Teller(openvino_genai.StreamerBase):
    """Tells tokens as they are picked."""

    def __init__(self, told: Told) -> None:
        super().__init__()
        self._told = told

    def write(self, token: int | list[int]) -> openvino_genai.StreamingStatus:
        for one in token if isinstance(token, list) else [token]:
            self._told(one)
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """All were told."""


def open_model(job: dict[str, Any]) -> Generate:
    """Compiles the model for the CPU."""
    settings = _EXACT if job["precision"] == "fp32" else {}
    pipeline = openvino_genai.LLMPipeline(
        job["artefact"], "CPU", INFERENCE_NUM_THREADS=job["threads"], **settings
    )

    def generate(case: dict[str, Any], told: Told) -> None:
        ids = np.asarray([case["prompt"]], dtype=np.int64)
        prompt = openvino_genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        options = openvino_genai.GenerationConfig()
        options.max_new_tokens, options.ignore_eos, options.do_sample = case["tokens"], True, False
        pipeline.generate(prompt, options, _Teller(told))

    return generate


serve(open_model, "openvino-genai", "openvino", "optimum-intel")

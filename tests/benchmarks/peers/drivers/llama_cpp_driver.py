"""llama.cpp by llama-cpp-python: a GGUF file."""

from __future__ import annotations

from typing import Any

import llama_cpp
from protocol import Generate, Told, serve


def open_model(job: dict[str, Any]) -> Generate:
    """Loads the file; the prompt is computed in llama.cpp's usual pieces of 512."""
    cache = llama_cpp.GGML_TYPE_F32 if job["precision"] == "fp32" else llama_cpp.GGML_TYPE_F16
    model = llama_cpp.Llama(
        job["artefact"],
        n_ctx=job["capacity"],
        n_batch=job["capacity"],
        n_threads=job["threads"],
        n_threads_batch=job["threads"],
        type_k=cache,
        type_v=cache,
        verbose=False,
    )

    def generate(case: dict[str, Any], told: Told) -> None:
        model.reset()
        ids = case["prompt"]
        for _ in range(case["tokens"]):
            model.eval(ids)
            ids = [int(model.sample(temp=0.0, repeat_penalty=1.0))]
            told(ids[0])

    return generate


serve(open_model, "llama-cpp-python")

"""Transformers, SDPA: a LlamaForCausalLM directory."""

from __future__ import annotations

from typing import Any

import torch
from protocol import Generate, Told, serve
from transformers import AutoModelForCausalLM, DynamicCache

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def open_model(job: dict[str, Any]) -> Generate:
    """Loads the directory."""
    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        job["artefact"], dtype=_DTYPES[job["precision"]], attn_implementation="sdpa"
    ).eval()

    @torch.inference_mode()
    def generate(case: dict[str, Any], told: Told) -> None:
        cache, ids = DynamicCache(), torch.tensor([case["prompt"]])
        for _ in range(case["tokens"]):
            logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            ids = logits[:, -1].argmax(-1, keepdim=True)
            told(int(ids))

    return generate


serve(open_model, "transformers", "torch")

"""ONNX Runtime GenAI: a directory that its own builder wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime_genai as og
from protocol import Generate, Told, serve


def open_model(job: dict[str, Any]) -> Generate:
    """Loads the directory."""
    config = og.Config(job["artefact"])
    written = json.loads((Path(job["artefact"]) / "genai_config.json").read_text())
    # Answers must go on behind an end token, and min_length would forbid that it is picked. So a
    # token ends them that pads the vocabulary.
    end = written["model"]["vocab_size"] - 1
    threads = {"session_options": {"intra_op_num_threads": job["threads"]}}
    config.overlay(json.dumps({"model": {"decoder": threads, "eos_token_id": end}}))
    model = og.Model(config)

    def generate(case: dict[str, Any], told: Told) -> None:
        prompt, length = case["prompt"], len(case["prompt"]) + case["tokens"]
        options = og.GeneratorParams(model)
        options.set_search_options(max_length=length, do_sample=False)
        generator = og.Generator(model, options)
        generator.append_tokens(prompt)
        for _ in range(case["tokens"]):
            generator.generate_next_token()
            told(int(generator.get_next_tokens()[0]))

    return generate


serve(open_model, "onnxruntime-genai", "onnxruntime")

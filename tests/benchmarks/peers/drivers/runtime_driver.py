"""This project's runtime: the segments of a bundle, on ONNX Runtime's CPU backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from protocol import Generate, Told, serve
from tests.benchmarks.forced_selection import keep_counted

from atp_runtime.backends import open_backend
from atp_runtime.bundle import Bundle
from atp_runtime.chunk import Chunk
from atp_runtime.decoder import SegmentedDecoder
from atp_runtime.embedding import EmbeddingTable
from atp_runtime.image_tokens import Places

_TEXT_BEFORE = 16


def open_model(job: dict[str, Any]) -> Generate:
    """Loads the decoder of a bundle.

    A case's `keep` says that its prompt holds an image, behind a few tokens of text, and how many
    of that stay after each pruning point.
    """
    backend = open_backend("onnxruntime", threads=job["threads"])
    bundle = backend.fastest_view(Bundle.open(Path(job["artefact"])))
    manifest = bundle.manifest
    table = EmbeddingTable.open(bundle)
    decoder = SegmentedDecoder(bundle, backend, job["capacity"])
    points = [stage.pruning for stage in manifest.segments if stage.pruning]

    def chunk(case: dict[str, Any]) -> Chunk:
        ids = np.array(case["prompt"])
        if not case.get("keep"):
            return Chunk.text(len(ids))
        placeholder = manifest.vision.image_token_id
        ids[_TEXT_BEFORE : _TEXT_BEFORE + manifest.vision.tokens] = placeholder
        return Chunk.from_ids(ids, placeholder, [Places.whole(manifest.vision)])

    def generate(case: dict[str, Any], told: Told) -> None:
        decoder.reset()
        select = keep_counted(points, case.get("keep", ()))
        hidden = table.rows(case["prompt"])[None]
        logits = decoder.prefill(hidden, chunk(case), select).logits
        for left in reversed(range(case["tokens"])):
            token = int(np.argmax(logits))
            told(token)
            if left:
                logits = decoder.decode(table.rows([token])[None])

    return generate


serve(open_model, "onnxruntime")

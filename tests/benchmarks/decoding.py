"""Decoder-only runs of a bundle and of Transformers, on the same embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tests.benchmarks.forced_selection import keep_counted
from transformers import DynamicCache, LlavaForConditionalGeneration

from atp_runtime.backends import open_backend
from atp_runtime.bundle import Bundle
from atp_runtime.chunk import Chunk
from atp_runtime.decoder import SegmentedDecoder
from atp_runtime.decoder_results import PrefillResult
from atp_runtime.image_tokens import Places
from atp_runtime.pruning_point import PruningPoint

TEXT_TOKENS = 64
THREADS = torch.get_num_threads()


class BundleRunner:
    """A bundle's decoder with forced numbers of visual tokens.

    Args:
        path: The bundle.
        capacity: Positions of its caches.
        dialect: None is what the backend runs fastest.
    """

    def __init__(self, path: Path, capacity: int = 1024, dialect: str | None = None) -> None:
        backend = open_backend("onnxruntime", threads=THREADS)
        opened = Bundle.open(path)
        self.bundle = opened.in_dialect(dialect) if dialect else backend.fastest_view(opened)
        self.decoder = SegmentedDecoder(self.bundle, backend, capacity)
        self.manifest = self.bundle.manifest
        random = np.random.default_rng(0)
        shape = (1, self.manifest.vision.tokens + TEXT_TOKENS, self.manifest.text.hidden)
        self.hidden = (0.02 * random.standard_normal(shape)).astype(np.float32)

    def prefill(
        self, visual: int, keep: Sequence[int] = (), *, text: int = TEXT_TOKENS
    ) -> PrefillResult:
        """A prompt of `visual` and `text` tokens; `keep` many stay after each point."""
        placeholder = self.manifest.vision.image_token_id
        ids = np.zeros(visual + text, dtype=np.int64)
        chunk = Chunk.text(len(ids))
        if visual == self.manifest.vision.tokens:
            ids[16 : 16 + visual] = placeholder
            places = Places.whole(self.manifest.vision)
            chunk = Chunk.from_ids(ids, placeholder, [places])
        self.decoder.reset()
        hidden = self.hidden[:, : len(ids)].astype(self.bundle.manifest.embedding.dtype)
        return self.decoder.prefill(hidden, chunk, keep_counted(self._points(), keep))

    def decode(self, steps: int) -> None:
        """So many decode steps behind what was prefilled."""
        hidden = self.hidden[:, :1].astype(self.bundle.manifest.embedding.dtype)
        for _ in range(steps):
            self.decoder.decode(hidden)

    def _points(self) -> list[PruningPoint]:
        return [stage.pruning for stage in self.manifest.segments if stage.pruning]


class TransformersRunner:
    """Transformers' own decoder of the same checkpoint: SDPA, FP32, the same threads."""

    def __init__(self, checkpoint: Path, hidden: np.ndarray) -> None:
        model = LlavaForConditionalGeneration.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="sdpa"
        )
        self.model, self.head = model.model.language_model.eval(), model.lm_head
        self.hidden = torch.from_numpy(hidden)
        self.cache = DynamicCache()

    @torch.inference_mode()
    def prefill(self, visual: int) -> torch.Tensor:
        """Logits of the last of `visual` and 64 text tokens."""
        self.cache = DynamicCache()
        return self._run(self.hidden[:, : visual + TEXT_TOKENS])

    @torch.inference_mode()
    def decode(self, steps: int) -> None:
        """So many decode steps behind what was prefilled."""
        for _ in range(steps):
            self._run(self.hidden[:, :1])

    def _run(self, hidden: torch.Tensor) -> torch.Tensor:
        output = self.model(inputs_embeds=hidden, past_key_values=self.cache, use_cache=True)
        logits: torch.Tensor = self.head(output.last_hidden_state[:, -1])
        return logits

"""The demo's projector: LLaVA's two-layer MLP, seeded and untrained."""

from __future__ import annotations

import math

import numpy as np
import torch

_SEED = 336  # any number would do
# Mean square of gelu(z) for z ~ N(0, 1), that is E[z^2 Phi(z)^2].
_GELU_GAIN = 1 / 3 + 1 / (2 * math.pi * math.sqrt(3))


def untrained_projector(
    *, vision_width: int, text_width: int, input_rms: float, output_rms: float
) -> dict[str, torch.Tensor]:
    """Initialise `linear_1`, GELU, `linear_2` so that outputs have about a wanted size.

    The decoder then meets image features no larger than the word embeddings it knows.

    Args:
        vision_width: Width of the features that come in.
        text_width: Width of the token embeddings that go out, also the hidden width.
        input_rms: Root mean square of the features that come in.
        output_rms: Root mean square wanted of the embeddings that go out.

    Returns:
        float32 parameters named as in Transformers' `LlavaMultiModalProjector`.
    """
    # The raw bits of a PCG64 stream are the same in every version of NumPy and on every
    # machine; the distributions built on them, NumPy's and torch's, need not be.
    stream = np.random.PCG64(_SEED)
    return {
        "linear_1.weight": _uniform(stream, text_width, vision_width, rms=1 / input_rms),
        "linear_1.bias": torch.zeros(text_width),
        "linear_2.weight": _uniform(
            stream, text_width, text_width, rms=output_rms / math.sqrt(_GELU_GAIN)
        ),
        "linear_2.bias": torch.zeros(text_width),
    }


def _uniform(stream: np.random.PCG64, rows: int, columns: int, *, rms: float) -> torch.Tensor:
    """A matrix `[rows, columns]` that maps unit-RMS input to output of the given RMS."""
    unit = (stream.random_raw(rows * columns) >> np.uint64(11)) * 2.0**-53
    bound = rms * math.sqrt(3 / columns)
    values = ((2 * unit - 1) * bound).astype(np.float32)
    return torch.from_numpy(values.reshape(rows, columns))

"""What a question is about, for vision stages that ask: the mean of its words' embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from atp_runtime.embedding import EmbeddingTable
from atp_runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextMean:
    """Means of token embeddings.

    Attributes:
        tokenizer: Text to ids.
        embedding: Ids to embeddings.
    """

    tokenizer: Tokenizer
    embedding: EmbeddingTable

    def of(self, text: str) -> npt.NDArray[np.float32]:
        """Float32 [hidden]; zeros where there are no words.

        Raises:
            InputError: The text is no valid Unicode.
        """
        rows = self.embedding.rows(self.tokenizer.encode(text, add_special_tokens=False))
        mean: npt.NDArray[np.float32] = rows.astype(np.float32).sum(axis=0) / max(len(rows), 1)
        return mean

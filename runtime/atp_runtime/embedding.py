"""Token embeddings: rows of a memory-mapped table, with image features in their places."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from atp_runtime.bundle import Bundle
from atp_runtime.errors import InputError

_REBUILD = "export the bundle again with atp-export."


class EmbeddingTable:
    """The token embedding table, T [vocabulary, hidden], T being float32 or float16.

    Args:
        table: Usually memory-mapped; only the rows asked for are read.
    """

    def __init__(self, table: npt.NDArray[Any]) -> None:
        self._table = table

    @classmethod
    def open(cls, bundle: Bundle) -> EmbeddingTable:
        """Maps the bundle's table.

        Raises:
            InputError: The file is not a table of the manifest's shape and dtype.
        """
        declared, text = bundle.manifest.embedding, bundle.manifest.text
        path = bundle.path(declared.file)
        try:
            table = np.lib.format.open_memmap(path, mode="r")
        except (ValueError, OSError) as error:
            why = "it must be a NumPy array file."
            raise InputError(f"{path}: {error}", why=why, fix=_REBUILD) from error
        found, wanted = (table.shape, table.dtype.name), (text.vocabulary, text.hidden)
        if found != (wanted, declared.dtype):
            raise InputError(
                f"{path}: {found[1]} {list(found[0])}",
                why=f"the manifest says {declared.dtype} {list(wanted)}.",
                fix=_REBUILD,
            )
        return cls(table)

    def rows(self, ids: npt.ArrayLike) -> npt.NDArray[Any]:
        """The embeddings of token ids [n]: T [n, hidden], a copy.

        Raises:
            InputError: An id is negative or not below the vocabulary.
        """
        wanted = np.asarray(ids, dtype=np.int64)
        outside = wanted[(wanted < 0) | (wanted >= len(self._table))]
        if outside.size:
            raise InputError(
                f"token id {outside[0]}",
                why=f"the embedding table has {len(self._table)} rows.",
                fix="use the tokenizer of the bundle; if that is where the id comes from, "
                + _REBUILD,
            )
        return np.asarray(self._table[wanted])

    def splice(
        self, ids: npt.ArrayLike, image_features: npt.NDArray[Any], image_token_id: int
    ) -> npt.NDArray[Any]:
        """The decoder's input: embeddings, and features where the placeholder is.

        Args:
            ids: int64 [N], with one placeholder per feature.
            image_features: T [features, hidden] of all images; may be none.
            image_token_id: The placeholder. It need not have a row in the table.

        Returns:
            T [1, N, hidden].

        Raises:
            InputError: There are more or fewer placeholders than features, or an id is outside
                of the table.
        """
        wanted = np.asarray(ids, dtype=np.int64)
        places = wanted == image_token_id
        count = int(places.sum())
        if count != len(image_features):
            raise InputError(
                f"{count} image placeholders in the prompt, {len(image_features)} image features",
                why="each feature takes the place of one placeholder.",
                fix="name each image once in the prompt, and do not write the placeholder "
                f"(token id {image_token_id}) into the question.",
            )
        hidden = np.empty((1, len(wanted), self._table.shape[1]), dtype=self._table.dtype)
        hidden[0, ~places] = self.rows(wanted[~places])
        hidden[0, places] = image_features
        return hidden

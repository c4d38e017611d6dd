"""Which conversations are kept for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from atp_models.training.records import Record


def split_records(
    records: Sequence[Record], *, share: float, limit: int, seed: int
) -> tuple[list[Record], list[Record]]:
    """Splits by images, so that no image of the validation is trained on.

    A record's images (its name, where it has none) are hashed with the seed: which side it comes
    to does not depend on the other records. Records that share some but not all of their images
    may still come to different sides.

    Args:
        records: All of them.
        share: Of the records that is to be kept, about; 0 keeps none.
        limit: At most so many are kept; those beyond are left out, not trained on.
        seed: Another one gives another split.

    Returns:
        What is trained on, and what is kept, each in the order given.
    """
    kept = [_hash(f"{seed}:{record.key}") / 2**64 < share for record in records]
    training = [record for record, held in zip(records, kept, strict=True) if not held]
    validation = [record for record, held in zip(records, kept, strict=True) if held]
    return training, limited(validation, limit, seed)


def limited(records: Sequence[Record], limit: int, seed: int) -> list[Record]:
    """At most `limit` of the records, chosen by hash, in the order given."""
    if len(records) <= limit:
        return list(records)
    order = sorted(range(len(records)), key=lambda at: _hash(f"{seed}:{at}:{records[at].name}"))
    return [records[at] for at in sorted(order[:limit])]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

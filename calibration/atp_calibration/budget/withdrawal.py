"""Where all visual tokens may leave: VTW's search (arXiv 2405.05803).

The first layer from which on the decoder can do without them: where the first answer token's
distribution stays within a divergence from the unpruned model's, on samples. The paper takes 0.003
nats and about 20 samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from atp_calibration.budget.search import Divergence
from atp_runtime.errors import CheckFailedError
from atp_runtime.pruning_point import PruningPoint


def withdrawn_before(layers: Sequence[int], layer: int) -> tuple[PruningPoint, ...]:
    """Points that keep everything up to a layer, and nothing from it on.

    Args:
        layers: Where the bundle has points.
        layer: One of them.
    """
    return tuple(PruningPoint(it, "keep_all" if it < layer else "keep_none", {}) for it in layers)


def find_withdrawal(
    layers: Sequence[int],
    divergence: Divergence,
    limit: float,
    journal: Path,
    told: Callable[[int, int], None],
) -> int:
    """The first layer before which all visual tokens may leave.

    Args:
        layers: Where the bundle has pruning points, rising.
        divergence: Of points from the unpruned model, in nats.
        limit: How much of it is allowed.
        journal: Where what was found is filed; layers that are there are not asked again.
        told: How many layers are done, and how many there are.

    Raises:
        CheckFailedError: At none of them; the message has the nearest.
    """
    found = _read(journal)
    for number, layer in enumerate(layers, 1):
        if layer not in found:
            found[layer] = divergence(withdrawn_before(layers, layer))
            _write(journal, found)
        told(number, len(layers))
        if found[layer] <= limit:
            return layer
    nearest = min(layers, key=lambda layer: found[layer])
    raise CheckFailedError(
        f"visual tokens cannot leave within a divergence of {limit:g}",
        why=f"before layer {nearest} it is {found[nearest]:.2g}, and more at the bundle's other "
        "pruning points.",
        fix=f"allow --target-divergence {found[nearest]:.2g}, or export with a pruning point "
        "further down.",
    )


def _read(journal: Path) -> dict[int, float]:
    if not journal.is_file():
        return {}
    stored = json.loads(journal.read_text(encoding="utf-8"))
    return {int(layer): float(value) for layer, value in stored.items()}


def _write(journal: Path, found: dict[int, float]) -> None:
    written = journal.with_name(journal.name + ".new")
    written.write_text(json.dumps(found), encoding="utf-8")
    written.replace(journal)

"""Compares what a loaded stage takes and gives with what the manifest declares."""

from __future__ import annotations

from collections.abc import Iterable

from atp_runtime.errors import InputError
from atp_runtime.manifest import Stage

Tensors = Iterable[tuple[str, str]]
"""Names and dtypes."""


def check_signature(stage: Stage, inputs: Tensors, outputs: Tensors, fix: str) -> None:
    """Makes sure that a loaded stage has the manifest's inputs and outputs, in whatever order.

    Args:
        stage: What the manifest declares.
        inputs: What the loaded stage has.
        outputs: Likewise.
        fix: What the user can do if they differ.

    Raises:
        InputError: They differ; the message names the first tensor that does.
    """
    for kind, specs, found in (
        ("inputs", stage.inputs, inputs),
        ("outputs", stage.outputs, outputs),
    ):
        declared = {(spec.name, spec.dtype) for spec in specs}
        odd = sorted(declared ^ set(found))
        if odd:
            name, dtype = odd[0]
            raise InputError(
                f"stage {stage.name}: its {kind} are not those of the manifest, see {dtype} {name}",
                why="the runtime prepares what the manifest declares.",
                fix=fix,
            )

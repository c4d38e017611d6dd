"""Which mode a machine can afford."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from atp_export.plan import ExportPlan
from atp_runtime.errors import MachineError

# PyTorch holds float32; ONNX Runtime on x86 turns FP16 weights into float32 as well, and maps
# the bundle's file besides.
_BYTES_PER_PARAMETER = 4 + 4 + 1
_MARGIN = 1.1
_OTHERWISE = 1 << 30  # bytes: both libraries, activations, hidden states of every layer
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Mode:
    """How parity is checked, and why so."""

    name: str
    reason: str


def choose_mode(plan: ExportPlan, available_bytes: int) -> Mode:
    """Full where both models fit into memory, else sampled."""
    needed = full_bytes(plan)
    fits = needed <= available_bytes
    numbers = f"both models take {needed / 1e9:.1f} GB, {available_bytes / 1e9:.1f} GB are free"
    return Mode("full" if fits else "sampled", numbers)


def full_bytes(plan: ExportPlan) -> int:
    """Memory that the full mode is predicted to take."""
    shapes = plan.spec.tensor_shapes().values()
    parameters = sum(torch.Size(shape).numel() for shape in shapes)
    return int(parameters * _BYTES_PER_PARAMETER * _MARGIN) + _OTHERWISE


def available_bytes() -> int:
    """Memory that can still be taken: the machine's, or the container's if that is less.

    Raises:
        MachineError: It cannot be told.
    """
    try:
        free: int = psutil.virtual_memory().available
    except (OSError, RuntimeError) as error:
        raise MachineError(
            f"free memory is unknown: {error}",
            why="it decides how much parity compares at once.",
            fix="give --parity full or --parity sampled.",
        ) from error
    limit, used = (_number(_CGROUP / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else max(0, min(free, limit - used))


def _number(path: Path) -> int | None:
    """A control group's number; None where there is none or it says "max"."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None

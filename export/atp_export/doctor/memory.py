"""Memory, swap and disk. On a Jetson CPU and GPU share the memory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from atp_export.doctor.finding import Finding, Probe
from atp_export.doctor.system import System


def memory(subject: str, system: System) -> Finding:
    """What there is and what programs can still get."""
    sizes = memory_bytes(system)
    free, total = gigabytes(sizes["MemAvailable"]), gigabytes(sizes["MemTotal"])
    shared = ", shared by CPU and GPU" if system.is_jetson else ""
    return Finding(subject, f"{free} of {total} available{shared}")


def swap(subject: str, system: System) -> Finding:
    """Where memory is swapped to: compressed memory (zram), a file or a partition."""
    areas = _swap_areas(system)
    parts = [f"{area.name} ({area.kind}) {gigabytes(area.size)}" for area in areas if area.on_disk]
    compressed = sum(area.size for area in areas if not area.on_disk)
    if compressed:
        parts.append(f"zram, which is compressed memory, {gigabytes(compressed)}")
    return Finding(subject, ", ".join(parts) or "none")


def disk(directory: Path) -> Probe:
    """A probe for the disk that a directory lies on."""

    def probe(subject: str, system: System) -> Finding:  # noqa: ARG001 - a probe
        usage = shutil.disk_usage(directory)
        found = f"{gigabytes(usage.free)} of {gigabytes(usage.total)} free in {directory}"
        return Finding(subject, found)

    return probe


def memory_bytes(system: System) -> dict[str, int]:
    """What `/proc/meminfo` counts, in bytes by name.

    Raises:
        OSError: There is no such file.
        ValueError: It is malformed.
    """
    sizes = {}
    for line in system.text("proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        number, _, unit = value.strip().partition(" ")
        sizes[name] = int(number) * (1024 if unit == "kB" else 1)
    return sizes


def disk_swap_bytes(system: System) -> int:
    """What is left of the swap on disks, in bytes; zram takes from the memory that it adds to.

    Raises:
        OSError: There is no `/proc/swaps`.
        ValueError: It is malformed.
    """
    return sum(area.size - area.used for area in _swap_areas(system) if area.on_disk)


@dataclass(frozen=True)
class _SwapArea:
    name: str
    kind: str
    size: int
    used: int

    @property
    def on_disk(self) -> bool:
        return not self.name.startswith("/dev/zram")


def _swap_areas(system: System) -> list[_SwapArea]:
    areas = []
    for line in system.text("proc/swaps").splitlines()[1:]:
        name, kind, size, used = line.split()[:4]
        areas.append(_SwapArea(name, kind, 1024 * int(size), 1024 * int(used)))
    return areas


def gigabytes(count: int) -> str:
    """Bytes as a short text, in powers of ten."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"

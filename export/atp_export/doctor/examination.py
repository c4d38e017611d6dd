"""What is looked at, in the order in which it is told."""

from __future__ import annotations

from pathlib import Path

from atp_export.doctor import jetson, memory, power, software
from atp_export.doctor.bundle import examine_bundle
from atp_export.doctor.finding import Finding, Probe, look
from atp_export.doctor.system import System

__all__ = ["examine", "examine_bundle"]

_EVERYWHERE: tuple[tuple[str, Probe], ...] = (
    ("Python", software.python),
    ("machine", software.machine),
    ("Jetson", jetson.module),
)
_ON_JETSON: tuple[tuple[str, Probe], ...] = (
    ("JetPack", jetson.jetpack),
    ("power mode", power.power_mode),
    ("GPU clock", power.gpu_clock),
    ("CPU clocks", power.cpu_clocks),
    ("memory clock", power.memory_clock),
    ("jetson_clocks", power.fixed_clocks),
)
_LAST: tuple[tuple[str, Probe], ...] = (
    ("GPU", software.gpu),
    ("CUDA", software.cuda),
    ("TensorRT", software.tensorrt),
    ("run (atp-run)", software.run_packages),
    ("engines (atp-export engines)", software.engine_packages),
    ("export (atp-export)", software.export_packages),
    ("memory", memory.memory),
    ("swap", memory.swap),
)


def examine(system: System, directory: Path) -> tuple[Finding, ...]:
    """Looks at a machine. A probe that fails says so in its finding.

    Args:
        system: The machine.
        directory: Whose disk is looked at.
    """
    probes = [*_EVERYWHERE, *(_ON_JETSON if system.is_jetson else ()), *_LAST]
    probes.append(("disk", memory.disk(directory)))
    return tuple(look(subject, probe, system) for subject, probe in probes)

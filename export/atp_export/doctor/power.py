"""Power mode and clocks of a Jetson.

Paths and forms are those that owners of Orin modules publish (JetPack 6.2 and 7.2); none of it was
read on a device of this project's.
"""

from __future__ import annotations

import re
from pathlib import Path

from atp_export.doctor.finding import Finding
from atp_export.doctor.system import System

_MODE = re.compile(r"NV Power Mode: *(\S+)\s+(\d+)")
_STATUS = re.compile(r"pmode:0*(\d+)")
_MODES = re.compile(r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", re.MULTILINE)
_CPU = "sys/devices/system/cpu/cpufreq/policy*"
# 17000000.gpu since L4T R36, 17000000.ga10b before; Thor has gpu-gpc-0.
_GPU = ("sys/class/devfreq/*.gpu", "sys/class/devfreq/*.ga10b", "sys/class/devfreq/gpu-gpc-*")
_EMC_CAP = "sys/kernel/nvpmodel_clk_cap/emc"
_EMC = "sys/kernel/debug/bpmp/debug/clk/emc"


def power_mode(subject: str, system: System) -> Finding:
    """The mode of `nvpmodel`, and the others there are."""
    configured = system.root / "etc/nvpmodel.conf"
    modes = dict(_MODES.findall(configured.read_text()) if configured.is_file() else ())
    number, name = _current_mode(system)
    others = ", ".join(f"{modes[key]} ({key})" for key in modes if key != number)
    found = f"{name or modes.get(number, 'mode')} ({number})"
    if others:
        found += f"; there are {others}: sudo nvpmodel -m NUMBER"
    return Finding(subject, found)


def _current_mode(system: System) -> tuple[str, str]:
    """Number and name; the name may be missing."""
    try:
        said = system.run("/usr/sbin/nvpmodel", "-q")
    except OSError:
        # What nvpmodel keeps for the next start; a user may read it where only root may ask.
        status = _STATUS.search(system.text("var/lib/nvpmodel/status"))
        if not status:
            raise ValueError("/var/lib/nvpmodel/status names no mode") from None
        return status[1], ""
    match = _MODE.search(said)
    if not match:
        raise ValueError(f"nvpmodel -q says {said.strip()!r}")
    return match[2], match[1]


def gpu_clock(subject: str, system: System) -> Finding:
    """The GPU's clock and its limits."""
    now, low, high = _gpu(system)
    return Finding(subject, _range(now, low, high))


def cpu_clocks(subject: str, system: System) -> Finding:
    """The clocks of each cluster of cores."""
    clusters = [_range(now, low, high) for now, low, high in _cpus(system)]
    return Finding(subject, f"{'; '.join(clusters)}; cores {_online(system)}")


def memory_clock(subject: str, system: System) -> Finding:
    """The memory's clock (EMC); what it is now, only root may read."""
    cap = system.number(_EMC_CAP) if (system.root / _EMC_CAP).exists() else 0
    allowed = f", the power mode allows {_megahertz(cap)}" if cap else ""
    try:
        now, high = (system.number(f"{_EMC}/{name}") for name in ("rate", "max_rate"))
    except (PermissionError, FileNotFoundError):
        return Finding(subject, f"can only be told as root{allowed}", ok=None)
    return Finding(subject, f"{_megahertz(now)} now, {_megahertz(high)} at most{allowed}")


def fixed_clocks(subject: str, system: System) -> Finding:
    """Whether `jetson_clocks` has fixed the clocks, told from their limits.

    It sets every lower limit to the upper one. Somebody else can have done so, too.
    """
    _, low, high = _gpu(system)
    fixed = [low == high, *(low == high for _, low, high in _cpus(system))]
    if all(fixed):
        return Finding(subject, f"on: GPU and CPU have no range left{_emc_locked(system)}")
    found = "off: clocks follow the load. Before measuring: sudo jetson_clocks"
    return Finding(subject, found if not any(fixed) else f"in part; {found}")


def _emc_locked(system: System) -> str:
    try:
        locked = system.number(f"{_EMC}/mrq_rate_locked")
    except OSError:
        return ", the memory's lock can only be told as root"
    return ", the memory is locked" if locked else ", but the memory is not locked"


def _gpu(system: System) -> tuple[int, int, int]:
    found = [path for pattern in _GPU for path in system.found(pattern)]
    if not found:
        raise LookupError("/sys/class/devfreq lists no GPU")
    return _hertz(system, found[0], ("cur_freq", "min_freq", "max_freq"), 1)


def _cpus(system: System) -> list[tuple[int, int, int]]:
    policies = system.found(_CPU)
    if not policies:
        raise LookupError("/sys/devices/system/cpu/cpufreq has no policy")
    names = ("scaling_cur_freq", "scaling_min_freq", "scaling_max_freq")
    return [_hertz(system, policy, names, 1000) for policy in policies]


def _hertz(
    system: System, directory: Path, names: tuple[str, str, str], unit: int
) -> tuple[int, int, int]:
    relative = directory.relative_to(system.root)
    now, low, high = (unit * system.number(f"{relative}/{name}") for name in names)
    return now, low, high


def _online(system: System) -> str:
    return system.text("sys/devices/system/cpu/online")


def _range(now: int, low: int, high: int) -> str:
    return f"{_megahertz(now)} now, {low / 1e6:.0f} to {_megahertz(high)} allowed"


def _megahertz(hertz: int) -> str:
    return f"{hertz / 1e6:.0f} MHz"

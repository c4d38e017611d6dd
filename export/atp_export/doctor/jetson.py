"""Which Jetson this is and which JetPack it runs.

`/etc/nv_tegra_release` and the packages' versions have the form that owners of Orin modules with
L4T R36.4 and R39.2 publish; none of it was read on a device of this project's.
"""

from __future__ import annotations

import re

from atp_export.doctor.finding import Finding
from atp_export.doctor.system import System

_RELEASE = re.compile(r"# R(\d+) \(release\), REVISION: ([\d.]+)")
_OLDEST_L4T = 36  # JetPack 6, which brings TensorRT 10


def module(subject: str, system: System) -> Finding:
    """The module and its carrier board."""
    if not system.is_jetson:
        return Finding(subject, "no")
    return Finding(subject, system.text("proc/device-tree/model"))


def jetpack(subject: str, system: System) -> Finding:
    """JetPack's package, and the Linux for Tegra below it.

    A container has no `/etc/nv_tegra_release`, and many devices have JetPack's parts without the
    package `nvidia-jetpack`.
    """
    match = _RELEASE.match(system.text("etc/nv_tegra_release"))
    if not match:
        raise ValueError("/etc/nv_tegra_release does not name a release")
    package = package_on_system(system, "nvidia-jetpack")
    told = package or "package nvidia-jetpack not installed"
    return Finding(
        subject,
        f"{told}, L4T R{match[1]}.{match[2]}",
        ok=int(match[1]) >= _OLDEST_L4T,
        fix="update to JetPack 6.1 or later: older ones have no TensorRT 10.",
    )


def package_on_system(system: System, name: str) -> str | None:
    """A Debian package's version; None if it is not installed.

    Raises:
        OSError: The system has no Debian packages.
    """
    for stanza in system.text("var/lib/dpkg/status").split("\n\n"):
        if stanza.startswith(f"Package: {name}\n") and "\nStatus: install ok installed" in stanza:
            match = re.search(r"^Version: (.+)$", stanza, re.MULTILINE)
            return match[1] if match else None
    return None

"""Made-up file systems of two Jetsons.

The files' forms are those that owners of such devices publish.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from atp_export.doctor.gpu import Gpu
from atp_export.doctor.system import System

ORIN = Gpu("Orin", 87, "12.6")
_CPUFREQ = "sys/devices/system/cpu/cpufreq"
_EMC = "sys/kernel/debug/bpmp/debug/clk/emc"

_DPKG = """\
Package: libnvinfer10
Status: install ok installed
Architecture: arm64
Version: {tensorrt}

Package: nvidia-jetpack-runtime
Status: install ok installed
Version: 1.2.3

Package: nvidia-jetpack
Status: install ok installed
Section: metapackages
Version: {jetpack}
Description: NVIDIA Jetpack Meta Package
"""
_RELEASE = """\
# R{major} (release), REVISION: {minor}, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: {date}
# KERNEL_VARIANT: oot
TARGET_USERSPACE_LIB_DIR=nvidia
TARGET_USERSPACE_LIB_DIR_PATH=usr/lib/aarch64-linux-gnu/nvidia
"""
_SWAPS = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
_NANO_MODES = """\
# comment
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< POWER_MODEL ID=3 NAME=7W >
< PM_CONFIG DEFAULT=1 >
"""

ORIN_NANO: Mapping[str, str] = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,tegra234\0",
    "proc/meminfo": "MemTotal:        7802688 kB\nMemFree:          420000 kB\n"
    "MemAvailable:    5600000 kB\nHugePages_Total:       0\n",
    "proc/swaps": _SWAPS
    + "".join(f"/dev/zram{n}  partition\t650224\t0\t5\n" for n in range(6))
    + "/swapfile  file\t8388604\t4\t-2\n",
    "etc/nv_tegra_release": _RELEASE.format(major=36, minor="4.3", date="Wed Jan  8 2025"),
    "etc/nvpmodel.conf": _NANO_MODES,
    "var/lib/nvpmodel/status": "pmode:0001 fmode:fan_mode_quiet\n",
    "var/lib/dpkg/status": _DPKG.format(tensorrt="10.3.0.30-1+cuda12.5", jetpack="6.2+b77"),
    "usr/lib/aarch64-linux-gnu/libnvinfer.so.10": "",
    "usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0": "",
    "usr/lib/python3.10/dist-packages/tensorrt/__init__.py": "",
    "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}',
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
    "sys/devices/system/cpu/online": "0-5\n",
    f"{_CPUFREQ}/policy0/scaling_cur_freq": "1344000\n",
    f"{_CPUFREQ}/policy0/scaling_min_freq": "729600\n",
    f"{_CPUFREQ}/policy0/scaling_max_freq": "1344000\n",
    f"{_CPUFREQ}/policy4/scaling_cur_freq": "729600\n",
    f"{_CPUFREQ}/policy4/scaling_min_freq": "729600\n",
    f"{_CPUFREQ}/policy4/scaling_max_freq": "1344000\n",
    "sys/kernel/nvpmodel_clk_cap/emc": "3199000000\n",
}
"""JetPack 6.2 in the 25 W mode, as a user who is not root sees it."""

AGX_ORIN: Mapping[str, str] = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0",
    "proc/meminfo": "MemTotal:       64349844 kB\nMemAvailable:   60000000 kB\n",
    "proc/swaps": _SWAPS,
    "etc/nv_tegra_release": _RELEASE.format(major=39, minor="2.0", date="Mon Jun  1 2026"),
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=MODE_30W >\n",
    "var/lib/dpkg/status": _DPKG.format(tensorrt="10.16.1.11-1+cuda13.2", jetpack="7.2-b187"),
    "usr/lib/aarch64-linux-gnu/libnvinfer.so.10": "",
    "usr/lib/aarch64-linux-gnu/libnvinfer.so.10.16.1": "",
    "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "13.2.1"}}',
    "sys/class/devfreq/17000000.gpu/cur_freq": "1300500000\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "1300500000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1300500000\n",
    "sys/devices/system/cpu/online": "0-11\n",
    **{
        f"{_CPUFREQ}/policy{policy}/scaling_{name}_freq": "2201600\n"
        for policy in (0, 4, 8)
        for name in ("cur", "min", "max")
    },
    f"{_EMC}/rate": "3199000000\n",
    f"{_EMC}/max_rate": "3199000000\n",
    f"{_EMC}/mrq_rate_locked": "1\n",
}
"""JetPack 7.2 after `jetson_clocks`, as root sees it."""


def rewrite(system: System, name: str, text: str) -> None:
    """Changes a file of a made-up machine."""
    (system.root / name).write_text(text)


def without_gpu(system: System) -> System:
    """The same machine, whose driver is out of reach."""

    def none() -> Gpu:
        raise OSError("libcuda.so.1: cannot open shared object file")

    return replace(system, gpu=none)
